"""Batch, ghost batch, group and no normalisation.

Ghost batch norm: an SGD batch of m images is normalised in m / bn_batch_size consecutive groups, each
by its own mean and variance (paper, section 4; Hoffer et al. 2017).
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smallbatch.config import ConfigError, Norm


@dataclass(frozen=True, kw_only=True)
class Normalization(Norm):
    """The `norm` config, bound to a BN batch: makes the layers that a network asks for."""

    bn_batch_size: int

    def __call__(self, features: int, dense: bool = False) -> nn.Module:
        """The layer behind `features` channels, or units if `dense`; `nn.Identity` where there is none."""
        if self.kind == "none" or (dense and self.layers == "conv"):
            return nn.Identity()
        if self.kind == "group":
            if self.groups < 1 or features % self.groups:
                raise ConfigError(f"norm.groups={self.groups} does not divide {features} channels")
            return nn.GroupNorm(self.groups, features, eps=self.eps)
        return GhostBatchNorm(features, self.bn_batch_size, self.eps, self.memory)


class GhostBatchNorm(nn.Module):
    """Batch normalisation over consecutive groups of `bn_batch_size` images; x is (m, C) or (m, C, H, W).

    In training, y = γ (x − μ_g) / √(σ²_g + ε) + β with the (biased) statistics of each group g.
    In evaluation, with running statistics: per group of b images r ← (1 − α) r + α s, where
    α = 1 − exp(−b / memory) and s is the group's mean or unbiased variance, groups in order,
    divided by 1 − exp(−images seen / memory), as Adam corrects its moments. So the memory is counted
    in images whatever the BN batch, and evaluation never sees groups.

    Raises ConfigError if m is no multiple of `bn_batch_size` or a group has one value per channel.

    >>> x = torch.tensor([[1.0], [3.0], [10.0], [30.0]])  # two groups of two, each normalised by itself
    >>> GhostBatchNorm(1, bn_batch_size=2)(x).flatten().round(decimals=3).tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, bn_batch_size: int, eps: float = 1e-5, memory: int = 1280) -> None:
        super().__init__()
        self.bn_batch_size, self.eps, self.memory = bn_batch_size, eps, memory
        self.alpha = -math.expm1(-bn_batch_size / memory)
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        # Both start at zero: the correction above makes any other start a bias.
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.zeros(features))
        self.images_seen: float = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self._evaluate(x)
        m, b = x.shape[0], self.bn_batch_size
        if m % b:
            raise ConfigError(f"a batch of {m} cannot be normalised in groups of bn_batch_size={b}")
        if b * math.prod(x.shape[2:]) == 1:
            raise ConfigError("batch norm over one value per channel has no variance; use a larger bn_batch_size")
        self.images_seen += m
        if m == b:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, True, self.alpha, self.eps
            )
        # Momentum 1 leaves each group's own mean and unbiased variance in these.
        mean, var = self.running_mean.new_zeros(2, m // b, len(self.weight))
        # A CPU's calls are cheap and its copies dear: one by one takes a third of the time there.
        y = self._one_by_one(x, mean, var) if x.device.type == "cpu" else self._at_once(x, mean, var)
        self._remember(mean, var)
        return y

    def _one_by_one(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """A call a group; its statistics are left in mean and var, (groups, C)."""
        parts = zip(x.split(self.bn_batch_size), mean, var, strict=True)
        return torch.cat([F.batch_norm(p, s, v, self.weight, self.bias, True, 1.0, self.eps) for p, s, v in parts])

    def _at_once(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """The same in one call: group g's channel c becomes channel g·C + c of a batch of b."""
        (groups, features), b = mean.shape, self.bn_batch_size
        wide = x.unflatten(0, (groups, b)).transpose(0, 1).reshape(b, groups * features, *x.shape[2:])
        scale, shift = self.weight.repeat(groups), self.bias.repeat(groups)
        y = F.batch_norm(wide, mean.view(-1), var.view(-1), scale, shift, True, 1.0, self.eps)
        return y.view(b, groups, features, *x.shape[2:]).transpose(0, 1).reshape(x.shape)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        """Fold the statistics (groups, C) into the running ones, in order, as one weighted sum."""
        groups = len(mean)
        ages = torch.arange(groups - 1, -1, -1, device=mean.device, dtype=mean.dtype)
        weights = self.alpha * (1 - self.alpha) ** ages
        keep = (1 - self.alpha) ** groups
        self.running_mean.mul_(keep).add_(weights @ mean)
        self.running_var.mul_(keep).add_(weights @ var)

    def _evaluate(self, x: Tensor) -> Tensor:
        if not self.images_seen:
            mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        else:
            correction = -math.expm1(-self.images_seen / self.memory)
            mean, var = self.running_mean / correction, self.running_var / correction
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def get_extra_state(self) -> dict[str, float]:
        return {"images_seen": self.images_seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.images_seen = int(state["images_seen"])

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, bn_batch_size={self.bn_batch_size}, memory={self.memory}"


@contextmanager
def precise_statistics(network: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Within it, ghost batch norms evaluate with their mean statistics over `batches`, each normalised as one group.

    "Precise BN" (Wu & Johnson 2021, section 3.2): what running averages stand for, at fixed weights. Nothing else of
    the network is in training mode meanwhile, so nothing is drawn; afterwards all is as it was, bit for bit.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, GhostBatchNorm)]
    names = ("running_mean", "running_var", "bn_batch_size", "alpha", "images_seen")
    kept = [{name: getattr(layer, name) for name in names} for layer in layers]
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        for layer in layers:
            layer.running_mean, layer.running_var = (torch.zeros_like(layer.running_mean) for _ in range(2))
            layer.train()
        with torch.no_grad():
            for number, batch in enumerate(batches, 1):
                for layer in layers:
                    layer.bn_batch_size, layer.alpha = len(batch), 1 / number
                network(batch)
        for layer in layers:
            layer.eval()
            layer.images_seen = math.inf  # a plain mean needs no correction
        yield
    finally:
        for layer, before in zip(layers, kept, strict=True):
            for name, value in before.items():
                setattr(layer, name, value)
        for module, mode in modes:
            module.training = mode


def initialise(network: nn.Module) -> None:
    """He et al. 2015b: weights normal with variance 2 / fan-in, biases 0 (norm layers start at γ=1, β=0)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
