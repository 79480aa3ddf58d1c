"""Which cell is best: the one rule by which claims choose an η̃ (and m), and how sure the choice is.

For each seed the best cell is that with the highest mean over the other seeds (ties to the smaller η̃), among converged
cells if there are any. It counts with the score of the seed left out: no run both chooses and is chosen.

A best η̃ at an edge of those tried at its m is censored: the true best may be higher. A comparison that this could turn
is undecided. In a best over several m, an m that trains at no η̃ tried counts as it came out, as in the paper.
"""

from dataclasses import replace

import numpy as np

from smallbatch.claims.cells import Array, Cells, Edge
from smallbatch.claims.statistics import Quantity, pooled
from smallbatch.powers import format_power

# Points that a censored m may catch up by one more octave of η̃. Tuned on the runs of figure 1, scale=reduced (one
# seed): there an octave brings 4.0 at most, 49.8 to 53.8 at m = 2 and 8.
RIVAL = 5.0
# Standard errors of a difference of cell means within which the two highest cells are too close to tell apart. Tuned,
# with CONTESTED, on the worlds of tests/claims/test_statistics.py: 5 m × 7 η̃, curvatures of 0.05, 0.3 and 1 point an
# octave², 2 to 5 seeds, noise of 0.4 points a run.
TIE = 3.0
# How often a contested best counts in Σ w². The choices of two seeds share the runs of all others, so among tied cells
# their values go together: the variance of their mean was 1.4, 2.0 and 2.8 times that of a fixed cell for 2, 5 and 10
# seeds in those worlds. Counted once, the intervals covered 0.83 where 0.95 was said. From 7 seeds on it counts a third
# of the seeds, which is more than it need be: intervals then hardly shrink with more seeds.
CONTESTED = 2.0


def choose(cells: Cells, among: Array) -> Array:
    """Rows (seeds,) of the best cell in the mask for each seed, by the mean score of the other seeds."""
    converged = among & cells.converged
    rows = np.flatnonzero(converged if converged.any() else among)  # an edge that one seed crosses is no best cell
    scores = cells.score[rows]
    others = (scores.sum(axis=1, keepdims=True) - scores) / (len(cells.seeds) - 1)
    return np.asarray(rows[np.round(others, 9).argmax(axis=0)])  # rows are in order of η̃: ties go to the smaller


def best(cells: Cells, among: Array) -> Quantity:
    """Accuracy at the best cell in the mask, with what is censored about it."""
    if not among.any():
        return Quantity(unknown=Edge(f"{cells.name}: no such batch size in the grid"))
    rows = choose(cells, among)
    level = _mean_at(cells, rows)
    rivals = []
    for m in np.unique(cells.m[among]):
        own = choose(cells, among & (cells.m == m))
        if _mean_at(cells, own) > level - RIVAL or m in cells.m[rows]:
            rivals += censored(cells, own)
    return replace(pick(cells, rows, _contested(cells, among)), may_rise=tuple(rivals))


def tuned(cells: Cells, *sizes: int) -> Quantity:
    """Accuracy at the best η̃ (and m, where several are given)."""
    return best(cells, cells.at(sizes))


def lead(cells: Cells, low: int, high: int) -> Quantity:
    """The best over m = `low` … `high` less the best over the other m."""
    inside = cells.within(low, high)
    return tuned(cells, *inside) - tuned(cells, *(m for m in cells.sizes if m not in inside))


def pick(cells: Cells, rows: Array, contested: bool = False) -> Quantity:
    """The score of one cell a seed: rows (seeds,); `contested` if the choice may have gone otherwise."""
    seeds = len(cells.seeds)
    weight = np.zeros(cells.score.shape)
    weight[rows, np.arange(seeds)] = 1.0
    times = max(CONTESTED, seeds / 3) if contested else 1.0
    return Quantity({cells: weight}, contested=seeds * (times - 1))


def fixed(cells: Cells, row: int) -> Quantity:
    """The score of one cell, the same for all seeds."""
    return pick(cells, np.full(len(cells.seeds), row))


def censored(cells: Cells, rows: Array) -> list[Edge]:
    """Why the best η̃ may lie outside those tried at its m; none if it does not, or is given."""
    for row in np.unique(rows):
        m = int(cells.m[row])
        where = f"at m = {m} in {cells.name}"
        tried = np.unique(cells.rate[cells.m == m])
        if not cells.converged[row]:
            return [Edge(f"no η̃ tried {where} trains", cells.octaves(m))]
        if len(tried) == 1 and not cells.rates_given:
            return [Edge(f"one η̃ only was tried {where}", cells.octaves(m))]
        if len(tried) > 1 and cells.rate[row] in (tried[0], tried[-1]):
            text = f"the best η̃ {where}, {format_power(cells.rate[row])}, is at an edge of those tried"
            return [Edge(text, cells.octave(m, 0.5 if cells.rate[row] == tried[0] else 2))]
    return []


def _contested(cells: Cells, among: Array) -> bool:
    """Whether the two highest cell means in the mask are too close to tell apart."""
    score = cells.score[among & cells.converged]
    variance, df = pooled(cells.score[cells.converged], paired=True)
    if len(score) < 2 or df == 0:
        return False
    second, first = np.sort(score.mean(axis=1))[-2:]
    return bool(first - second <= TIE * np.sqrt(2 * variance / len(cells.seeds)))


def _mean_at(cells: Cells, rows: Array) -> float:
    return float(cells.score[rows, np.arange(len(rows))].mean())
