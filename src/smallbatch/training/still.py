"""T1: the variance of one update at fixed weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Still(torch.optim.Optimizer):
    """Stays where it is, and measures the updates u that plain SGD would have made.

    `measured` gives 1/K Σ ‖u − ū‖² over the K updates since it was last asked. For disjoint batches of m
    that make up N examples and u = η̃ Σ∇L, its expectation is η̃² m S (1 − m/N), where S is the trace of the
    covariance of one example's gradient, with N − 1.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self._forget()

    def _forget(self) -> None:
        self.count, self.squares = 0, 0.0
        self.total: Any = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        parts = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    parts.append(group["lr"] * (p.grad + group["weight_decay"] * p).flatten().double())
        update = torch.cat(parts)
        self.count += 1
        self.squares += float(update @ update)
        self.total = self.total + update

    def measured(self) -> dict[str, float]:
        """`update_variance`, and a fresh start."""
        mean = self.total / self.count
        variance = self.squares / self.count - float(mean @ mean)
        self._forget()
        return {"update_variance": variance}
