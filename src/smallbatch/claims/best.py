"""Which cell is best: the one rule by which claims choose an η̃ (and m), and how sure the choice is.

The best cell has the highest mean over the seeds (ties to the smaller η̃), among converged cells if there are any: what
the figure shows. That the highest of cells that nearly tie is too high by chance is allowed for in the interval.

A best η̃ at an edge of those tried at its m is censored: the true best may be higher. A comparison that this could turn
is undecided. In a best over several m, an m that trains at no η̃ tried counts as it came out, as in the paper.
"""

from collections.abc import Iterable

import numpy as np

from smallbatch.claims.cells import Array, Cells, Edge
from smallbatch.claims.noise import noise
from smallbatch.claims.statistics import Quantity, Term
from smallbatch.powers import format_power

# Points that a censored m may catch up by one more octave of η̃. Tuned on the runs of figure 1, scale=reduced (one
# seed): there an octave brings 4.0 at most, 49.8 to 53.8 at m = 2 and 8.
RIVAL = 5.0
# Standard errors of a difference of cell means within which a cell may be the best by chance. At 3 intervals cover
# 0.988 to 1.0 of the worlds of `make simulate`, at 2 0.984 to 1.0 and are narrower, at 1 0.955 to 1.0, where 0.98 is
# said (n = 1,500 a world; 2026-11-27).
TIE = 2.0


def highest(cells: Cells, among: Array) -> int:
    """The row of the best cell in the mask."""
    return _highest(cells, candidates(cells, among))


def best(cells: Cells, among: Array) -> Quantity:
    """Accuracy at the best cell in the mask, with what is censored about it."""
    if not among.any():
        return Quantity(unknown=Edge(f"{cells.name}: no such batch size in the grid"))
    rows = candidates(cells, among)
    row = _highest(cells, rows)
    level = cells.score[row].mean()
    rivals = []
    for m in np.unique(cells.m[among]):
        own = among & (cells.m == m)
        if cells.score[highest(cells, own)].mean() > level - RIVAL:
            rivals += censored(cells, own)
    return Quantity((Term(cells, 1.0, row, tuple(rows), near(cells, rows).size),), may_rise=tuple(rivals))


def tuned(cells: Cells, *sizes: int) -> Quantity:
    """Accuracy at the best η̃ (and m, where several are given)."""
    return best(cells, cells.at(sizes))


def lead(cells: Cells, low: int, high: int) -> Quantity:
    """The best over m = `low` … `high` less the best over the other m."""
    inside = cells.within(low, high)
    return tuned(cells, *inside) - tuned(cells, *(m for m in cells.sizes if m not in inside))


def fixed(cells: Cells, row: int, ties: int = 1) -> Quantity:
    """The score of one cell; `ties`: among how many its row was chosen by the runs that it is compared with."""
    return Quantity((Term(cells, 1.0, row, (row,), ties),))


def lowest(cells: Cells, rows: Iterable[int]) -> Quantity:
    """The lowest of some cells."""
    some = np.array(list(rows))
    row = int(some[cells.score[some].mean(axis=1).argmin()])
    return Quantity((Term(cells, 1.0, row, tuple(some), near(cells, some, sign=-1).size, lowest=True),))


def near(cells: Cells, rows: Array, sign: int = 1) -> Array:
    """Of some rows those that may be the highest (lowest: `sign` -1) by chance; one alone where nothing trains."""
    means = sign * cells.score[rows].mean(axis=1)
    top = rows[[means.argmax()]]
    if len(cells.seeds) < 2 or not cells.converged[rows].any():
        return top
    variance = noise(cells, int(top[0]), paired=True).variance
    return np.asarray(rows[means >= means.max() - TIE * np.sqrt(2 * variance / len(cells.seeds))])


def censored(cells: Cells, among: Array) -> list[Edge]:
    """Why the best η̃ of one m, the mask, may lie outside those tried; none if it does not, or is given.

    The best is that of all seeds, or of all but one.
    """
    rows = candidates(cells, among)
    m = int(cells.m[rows[0]])
    where, tried = f"at m = {m} in {cells.name}", np.unique(cells.rate[cells.m == m])
    if cells.rates_given:
        return []
    if not cells.learnt[rows].any():
        return [Edge(f"no η̃ tried {where} trains", cells.octaves(m))]
    if len(tried) == 1:
        return [Edge(f"one η̃ only was tried {where}", cells.octaves(m))]
    for row in _choices(cells, rows):
        if cells.rate[row] in (tried[0], tried[-1]):
            text = f"the best η̃ {where}, {format_power(cells.rate[row])}, is at an edge of those tried"
            return [Edge(text, cells.octave(m, 0.5 if cells.rate[row] == tried[0] else 2))]
    return []


def candidates(cells: Cells, among: Array) -> Array:
    """The rows of the mask among which the best is: those that converged, if there are any."""
    converged = among & cells.converged
    return np.flatnonzero(converged if converged.any() else among)  # an edge that one seed crosses is no best cell


def _highest(cells: Cells, rows: Array) -> int:
    return int(rows[np.round(cells.score[rows].mean(axis=1), 9).argmax()])  # in order of η̃: ties go to the smaller


def _choices(cells: Cells, rows: Array) -> list[int]:
    """The best row by all seeds, and by all but each, as a search asks for their neighbours."""
    scores = cells.score[rows]
    others = (scores.sum(axis=1, keepdims=True) - scores) / max(1, len(cells.seeds) - 1)
    means = np.round(np.hstack([scores.mean(axis=1, keepdims=True), others]), 9)
    return list(dict.fromkeys(int(row) for row in rows[means.argmax(axis=0)]))
