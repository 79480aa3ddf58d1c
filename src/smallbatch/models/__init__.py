"""The paper's networks and their normalisation."""

import torch
from torch import nn

from smallbatch.errors import ConfigError
from smallbatch.models.norm import Normalization
from smallbatch.run import Run
from smallbatch.targets import accepted, check_call, locate

__all__ = ["build"]


def build(run: Run, channels: int, classes: int) -> nn.Module:
    """The run's network, with initial weights that depend on its seed alone, drawn on the CPU.

    The class is called with its own settings and those of `classes`, `channels` and `norm` that it
    takes; `norm(n)` and `norm(n, dense=True)` give the layer to put behind n channels or units.
    Raises ConfigError if the class cannot be built, or takes no `norm` while one is asked for.
    """
    settings = {k: v for k, v in run.model.items() if k not in ("_target_", "name")}
    target = locate(run.model["_target_"], "model")
    norm = Normalization(**vars(run.norm), bn_batch_size=run.bn_batch_size or run.batch_size)
    offered = {"classes": classes, "channels": channels, "norm": norm}
    taken = accepted(target, offered)
    if "norm" not in taken and run.norm.kind != "none":
        raise ConfigError(f"norm={run.norm.kind}: {run.model['_target_']} takes no argument `norm`; use norm=none")
    check_call(target, {**settings, **taken}, "model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return target(**settings, **taken)
