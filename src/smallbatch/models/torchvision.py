"""torchvision's networks, with our normalisation and initial weights."""

import difflib
from typing import Any

from torch import nn
from torchvision import models

from smallbatch.errors import ConfigError
from smallbatch.models.norm import Normalization, initialise

# Their second outputs in training have no place in the paper's loss.
_WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": False}
_SETTINGS: dict[str, dict[str, Any]] = {"googlenet": _WITHOUT_AUXILIARY, "inception_v3": _WITHOUT_AUXILIARY}


def network(network: str, classes: int, channels: int, norm: Normalization) -> nn.Module:
    """The network of that name, each batch norm replaced by what `norm` gives; without one, convolutions get a bias.

    Convolutions and linear layers start by `initialise`, all else as in torchvision. Input (N, 3, H, W), output
    logits (N, classes). Raises ConfigError for an unknown name, other channels, or a norm without one to replace.
    """
    names = models.list_models(module=models)
    if network not in names:
        close = difflib.get_close_matches(network, names, 3) or names
        raise ConfigError(f"model.network={network}: torchvision has no such network; it has {', '.join(close)}")
    if channels != 3:
        raise ConfigError(f"model.network={network}: takes images of 3 channels, not {channels}")
    built = models.get_model(network, weights=None, num_classes=classes, **_SETTINGS.get(network, {}))
    normalised = any(isinstance(layer, nn.BatchNorm2d) for layer in built.modules())
    if normalised:
        _renormalise(built, norm)
    elif norm.kind != "none":
        raise ConfigError(f"norm={norm.kind}: {network} has no batch norm to replace; use norm=none")
    initialise(built)
    return built


def _renormalise(module: nn.Module, norm: Normalization) -> None:
    """Replace batch norms, depth first; without one, every convolution that left its bias to it gets its own."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, norm(child.num_features))
        elif isinstance(child, nn.Conv2d) and norm.kind == "none" and child.bias is None:
            child.bias = nn.Parameter(child.weight.new_zeros(child.out_channels))
        _renormalise(child, norm)
