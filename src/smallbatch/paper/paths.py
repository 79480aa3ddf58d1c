"""The blog's sketch, computed: n small steps against one large step of the same cost, on a loss of two weights."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sketch:
    """Least squares L(θ) = 1/(2n) Σ (x_iᵀθ − y_i)², x (n, 2), and two paths (steps + 1, 2) from one start."""

    x: np.ndarray
    y: np.ndarray
    base_lr: float
    small: np.ndarray
    large: np.ndarray
    minimum: np.ndarray

    def loss(self, theta: np.ndarray) -> np.ndarray:
        """L at each of (…, 2) weights."""
        return np.asarray(((theta @ self.x.T - self.y) ** 2).mean(axis=-1) / 2)


def compute(n: int = 16, base_lr: float = 0.15, seed: int = 2) -> Sketch:
    """n updates θ ← θ − η̃ ∇L_i with m = 1, and one update θ ← θ − η̃ Σ ∇L_i with m = n (paper, eqs. 2 to 4)."""
    random = np.random.RandomState(seed)
    x = random.standard_normal((n, 2)) * [1.0, 0.7]
    y = x @ [1.0, -1.0] + 0.2 * random.standard_normal(n)
    start = np.array([-1.0, 1.5])
    small = [start]
    for xi, yi in zip(x, y, strict=True):
        small.append(small[-1] - base_lr * (xi @ small[-1] - yi) * xi)
    large = [start, start - base_lr * (x @ start - y) @ x]
    minimum = np.linalg.lstsq(x, y, rcond=None)[0]
    return Sketch(x, y, base_lr, np.array(small), np.array(large), minimum)
