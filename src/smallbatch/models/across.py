"""Batch normalisation of groups that span ranks; torch's SyncBatchNorm refuses the CPU, and knows no groups."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from smallbatch.ranks import Ranks, gather


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks, span: int
) -> tuple[Tensor, Tensor]:
    """y of this rank's share x (n, C, …) of a group that `span` ranks hold, one behind the other.

    And (2, groups, C): mean and unbiased variance of every group of the batch, the same on each rank.
    """
    return _Normalize.apply(x, weight, bias, eps, ranks, span)


class _Normalize(torch.autograd.Function):
    """y = γ (x − μ) / √(σ² + ε) + β, with μ and σ² of shares of equal size (Chan et al. 1979), in float32 at least."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks, span: int
    ) -> tuple[Tensor, Tensor]:
        ctx.dims, ctx.group = [0, *range(2, x.dim())], (ranks.rank // span, span)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        own = torch.var_mean(values, ctx.dims, correction=0)
        variances, means = gather(torch.stack(own)).unflatten(0, (-1, span)).unbind(2)  # each (groups, span, C)
        mean = means.mean(1)
        variance = (variances + (means - mean[:, None]).square()).mean(1)
        count = span * x.numel() // x.shape[1]
        mu, sigma2 = mean[ranks.rank // span], variance[ranks.rank // span]
        ctx.count = count
        ctx.save_for_backward(x, weight, mu, (sigma2 + eps).rsqrt())
        statistics = torch.stack([mean, variance * (count / (count - 1))])
        ctx.mark_non_differentiable(statistics)
        return F.batch_norm(x, mu, sigma2, weight, bias, False, 0.0, eps), statistics

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
        """∂L/∂x = γ/σ (g − mean of g − x̂ · mean of g x̂), both means over the whole group."""
        x, weight, mu, rstd = ctx.saved_tensors
        (group, span), shape = ctx.group, (1, -1, *[1] * (x.dim() - 2))
        g = gradient.to(mu.dtype)
        normal = (x - mu.view(shape)) * rstd.view(shape)
        sums = torch.stack([g.sum(ctx.dims), (g * normal).sum(ctx.dims)])
        means = gather(sums).unflatten(0, (-1, span))[group].sum(0) / ctx.count
        scale = rstd if weight is None else rstd * weight
        of_x = scale.view(shape) * (g - means[0].view(shape) - normal * means[1].view(shape))
        affine = (None, None) if weight is None else (sums[1], sums[0])
        return of_x.to(x.dtype), *affine, None, None, None
