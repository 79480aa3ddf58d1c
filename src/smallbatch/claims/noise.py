"""How runs scatter: the variance within cells that an interval rests on."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import fdtri

from smallbatch.claims.cells import Array, Cells

# Beyond each end of an interval: with looks at 3, 5 and 8 seeds a true zero is called decided in 5 % of cases.
TAIL = 0.01
ALIKE = 3.0  # points: cells of one m whose accuracy is that near scatter alike


class Noise(NamedTuple):
    """The variance of a run, its degrees of freedom, and the cells (a mask, as bytes) that it comes from."""

    variance: float
    df: float
    cells: bytes


def noise(cells: Cells, row: int, paired: bool, column: str = "score") -> Noise:
    """How runs like those of a cell scatter, about cell means or, `paired`, cell and seed means.

    From the figure's cells within `ALIKE` points of the best of their m, less the m that scatter more than the others;
    for a cell of such an m, and one whose like at its m do, from its own like.
    """
    squares, each, all_quiet = _squares(cells, column, paired)
    mean = cells.score.mean(axis=1)
    own = cells.converged & (cells.m == cells.m[row]) & (np.abs(mean - mean[row]) <= ALIKE)
    loud = own.any() and _louder(squares, own, all_quiet & ~own, each)
    return _pooled(squares, own if loud or not all_quiet.any() else all_quiet, each)


@lru_cache(maxsize=256)
def _squares(cells: Cells, column: str, paired: bool) -> tuple[Array, float, Array]:
    """Squared residuals (cells, seeds), degrees of freedom of each cell, and the cells near the best of a quiet m."""
    score, several = getattr(cells, column)[cells.converged], int(cells.converged.sum())
    rest = score - score.mean(axis=1, keepdims=True)
    rest = rest - rest.mean(axis=0, keepdims=True) if paired else rest
    squares = np.zeros(cells.score.shape)
    squares[cells.converged] = rest**2
    each = (several - paired) * (score.shape[1] - 1) / max(1, several)
    mean = np.where(cells.converged, cells.score.mean(axis=1), -np.inf)
    tops = [cells.converged & (cells.m == m) & (mean >= mean[cells.m == m].max() - ALIKE) for m in cells.sizes]
    tops = [top for top in tops if top.any()]
    every = np.any(tops, axis=0) if tops else np.zeros(len(mean), bool)
    quiet = [top for top in tops if not _louder(squares, top, every & ~top, each)]
    return squares, each, np.any(quiet, axis=0) if quiet else every


def _pooled(squares: Array, mask: Array, each: float) -> Noise:
    df = each * float(mask.sum())
    return Noise(float(squares[mask].sum() / df) if df > 0 else 0.0, df, mask.tobytes())


def _louder(squares: Array, some: Array, others: Array, each: float) -> bool:
    """Whether some cells scatter more than others, beyond what chance does in one of a hundred cases (F test)."""
    ours, theirs = _pooled(squares, some, each), _pooled(squares, others, each)
    if not (ours.df > 0 and theirs.df > 0):
        return False
    return ours.variance > theirs.variance * float(fdtri(ours.df, theirs.df, 1 - TAIL))
