"""Batch, ghost batch, group and no normalisation.

Ghost batch norm: an SGD batch of m images is normalised in m / bn_batch_size consecutive groups, each
by its own mean and variance (paper, section 4; Hoffer et al. 2017).
"""

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from smallbatch.config import Norm
from smallbatch.errors import ConfigError
from smallbatch.models.across import normalize
from smallbatch.ranks import ALONE, Ranks, gather


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


class OneValue(ConfigError, ValueError):
    """Batch norm over one value per channel, in torch's words."""


class GhostBatchNorm(_BatchNorm):
    """Batch normalisation over consecutive groups of `bn_batch_size` images; all else is torch's batch norm.

    x is (m, C) or (m, C, …). In training, y = γ (x − μ_g) / √(σ²_g + ε) + β with the (biased) statistics of each
    group g. In evaluation, with running statistics: the average of all groups' means and unbiased variances, in
    which an image fades by exp(−1 / memory) with each one that follows. So the memory is counted in images
    whatever the BN batch, and evaluation never sees groups. Of k groups, which `num_batches_tracked` counts, the
    newest weighs α / (1 − (1 − α)^k), with α = `momentum` = 1 − exp(−b / memory), or 1 / k if `momentum` is None.

    `settings` are torch's, as `affine` or `device`. Raises ConfigError if m is no multiple of `bn_batch_size` or
    a group has one value per channel.

    >>> x = torch.tensor([[1.0], [3.0], [10.0], [30.0]])  # two groups of two, each normalised by itself
    >>> GhostBatchNorm(1, bn_batch_size=2)(x).flatten().round(decimals=3).tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    running_mean: Any
    running_var: Any
    num_batches_tracked: Any
    ranks: Ranks = ALONE  # those that hold a share of each batch

    def __init__(
        self, num_features: int, bn_batch_size: int, eps: float = 1e-5, memory: int = 1280, **settings: Any
    ) -> None:
        super().__init__(num_features, eps, -math.expm1(-bn_batch_size / memory), **settings)
        self.bn_batch_size, self.memory = bn_batch_size, memory

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):  # torch.fx keeps this layer whole, as it keeps torch's own
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        m, b = x.shape[0], self.bn_batch_size
        span = self._span(m)
        if b == 1 and m and math.prod(x.shape[2:]) == 1:
            words = f"Expected more than 1 value per channel when training, got input size {x.shape}"
            raise OneValue(f"{words}; use a larger bn_batch_size")
        if not m:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        if self.ranks.world > 1:
            return self._over_ranks(x, span)
        count = self._count(m // b) if self.track_running_stats else None
        # A CPU's calls are cheap and its copies dear: one by one takes a third of the time there.
        at_once = isinstance(count, Tensor) or (m > b and x.device.type != "cpu")
        return self._at_once(x, count) if at_once else self._one_by_one(x, count)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (m, C) or (m, C, …), got {input.dim()}D input")

    def _span(self, m: int) -> int:
        """How many ranks, with m images each, hold a group. Raises ConfigError if groups do not divide the batch."""
        b, world = self.bn_batch_size, self.ranks.world
        span = b // m if m % b else 1
        if span * m % b or span == 0 or world % span:
            batch = f"a batch of {m}" if world == 1 else f"a batch of {world} ranks of {m}"
            raise ConfigError(f"{batch} cannot be normalised in groups of bn_batch_size={b}")
        return span

    def _over_ranks(self, x: Tensor, span: int) -> Tensor:
        """This rank's share of a batch; the statistics of all ranks' groups are folded in on each, in their order."""
        if span > 1:
            y, statistics = normalize(x, self.weight, self.bias, self.eps, self.ranks, span)
        elif not self.track_running_stats:
            return self._at_once(x, None)
        else:
            parts, weight, bias = x.split(self.bn_batch_size), self.weight, self.bias
            own = self.running_mean.new_zeros(2, len(parts), x.shape[1])
            if x.device.type == "cpu":
                each = zip(parts, *own.unbind(), strict=True)
                y = torch.cat([F.batch_norm(p, mean, var, weight, bias, True, 1.0, self.eps) for p, mean, var in each])
            else:
                y = self._wide(x, *own.flatten(1))
            statistics = gather(own).transpose(0, 1).flatten(1, 2)
        if self.track_running_stats:
            mean, var = statistics
            self._fold(mean, var, self._count(len(mean)))
        return y

    def _count(self, groups: int) -> Any:
        """Count `groups` more: how many there are now, as a number where that needs no wait for a device."""
        count: Tensor = self.num_batches_tracked.add_(groups)
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(count) is not Tensor
        return count if traced or count.device.type != "cpu" else int(count)

    def _share(self, groups: int, count: Any) -> Any:
        """What the newest `groups` of `count`, a number or a tensor, weigh together."""
        if self.momentum is None:
            return groups / count
        if not 0 < self.momentum < 1:  # as for torch, 0 remembers nothing new and 1 nothing else
            return self.momentum
        expm1: Any = torch.expm1 if isinstance(count, Tensor) else math.expm1
        rate = math.log1p(-self.momentum)
        return math.expm1(groups * rate) / expm1(count * rate)

    def _one_by_one(self, x: Tensor, count: int | None) -> Tensor:
        """A call a group, which folds its statistics into the running ones; `count` groups with these."""
        parts = x.split(self.bn_batch_size) if len(x) > self.bn_batch_size else (x,)
        mean, var, weight, bias = None, None, self.weight, self.bias
        shares = [0.0] * len(parts)
        if count is not None:
            mean, var = self.running_mean, self.running_var
            shares = [self._share(1, k) for k in range(count - len(parts) + 1, count + 1)]
        y = [F.batch_norm(p, mean, var, weight, bias, True, s, self.eps) for p, s in zip(parts, shares, strict=True)]
        return y[0] if len(y) == 1 else torch.cat(y)

    def _at_once(self, x: Tensor, count: Any) -> Tensor:
        """The same in one call."""
        groups, features = len(x) // self.bn_batch_size, x.shape[1]
        kept: Any = (None, None) if count is None else self.running_mean.new_zeros(2, groups * features)
        mean, var = kept
        y = self._wide(x, mean, var)
        if count is not None:
            self._fold(mean.view(groups, features), var.view(groups, features), count)
        return y

    def _wide(self, x: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
        """Group g's channel c becomes channel g·C + c of a batch of b; `mean` and `var` take on each group's own."""
        b, features = self.bn_batch_size, x.shape[1]
        groups = len(x) // b
        wide = x.unflatten(0, (groups, b)).transpose(0, 1).reshape(b, groups * features, *x.shape[2:])
        scale, shift = (None if p is None else p.repeat(groups) for p in (self.weight, self.bias))
        y = F.batch_norm(wide, mean, var, scale, shift, True, 1.0, self.eps)  # momentum 1 remembers nothing else
        return y.view(b, groups, features, *x.shape[2:]).transpose(0, 1).reshape(x.shape)

    @torch.no_grad()
    def _fold(self, mean: Tensor, var: Tensor, count: Any) -> None:
        """Fold the statistics (groups, C) into the running ones, in order, as one weighted sum."""
        groups = len(mean)
        share = self._share(groups, count.to(mean.dtype) if isinstance(count, Tensor) else count)
        ages = torch.arange(groups - 1, -1, -1, device=mean.device, dtype=mean.dtype)
        weights = (1 - (self.momentum or 0.0)) ** ages
        weights /= weights.sum()
        self.running_mean.lerp_(weights @ mean, share)
        self.running_var.lerp_(weights @ var, share)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bn_batch_size={self.bn_batch_size}, memory={self.memory}"


class GhostBatchNorm1d(GhostBatchNorm, nn.BatchNorm1d):
    """`GhostBatchNorm` that takes what torch's takes: (m, C) or (m, C, L)."""

    def _check_input_dim(self, input: Tensor) -> None:
        nn.BatchNorm1d._check_input_dim(self, input)


class GhostBatchNorm2d(GhostBatchNorm, nn.BatchNorm2d):
    """`GhostBatchNorm` that takes what torch's takes: (m, C, H, W)."""

    def _check_input_dim(self, input: Tensor) -> None:
        nn.BatchNorm2d._check_input_dim(self, input)


@contextmanager
def precise_statistics(network: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Within it, ghost batch norms evaluate with their mean statistics over `batches`, each normalised as one group.

    "Precise BN" (Wu & Johnson 2021, section 3.2): what running averages stand for, at fixed weights. Nothing else of
    the network is in training mode meanwhile, so nothing is drawn; afterwards all is as it was, bit for bit.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, GhostBatchNorm)]
    kept = [(vars(module), vars(module).copy()) for module in network.modules()]
    try:
        network.eval()
        for layer in layers:
            layer.ranks = ALONE
            layer._buffers = copy.deepcopy(layer._buffers)
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        with torch.no_grad():
            for batch in batches:
                for layer in layers:
                    layer.bn_batch_size = len(batch)
                network(batch)
        network.eval()
        yield
    finally:
        for attributes, before in kept:
            attributes.update(before)


def initialise(network: nn.Module) -> None:
    """He et al. 2015b: weights normal with variance 2 / fan-in, biases 0 (norm layers start at γ=1, β=0)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
