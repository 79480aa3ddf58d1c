"""From cells to intervals, and from intervals to answers: supported, not supported, undecided.

Accuracies and effects are in points (percent of the test images). Only seeds that all compared cells have are used.

An effect is a sum of terms, each the mean score of one cell: a given one, or the best of a group. Its interval is a
98 % t-interval of variance Σ s² w² / seeds. s² is the variance within cells, pooled over the figure's cells near the
best of their m, since runs near an edge scatter more; an m that scatters more than the others has its own (`noise.py`).
Where the seeds cancel within a figure, s² is taken about cell and seed means (paired), else about cell means. Degrees
of freedom are Satterthwaite's.

The highest of k cells that nearly tie is higher by chance. The end of the interval to which this could lead astray
takes the quantile at 0.01 / k (Bonferroni), k being the product over the chosen terms: the lower end for a best with
the plus sign, the upper one for a best with the minus sign. The other end needs nothing, since the best that is seen is
no lower than what the true best shows.

A seed may be lucky in all cells of one figure and not in another's: an effect in which the seeds cancel only between
figures takes Welch's interval of the figures' values over the seeds where that is wider. An effect that reads a cell
that has not converged has a spread of its own, so its interval is that of its values over the seeds.
`make simulate` shows what these intervals cover, and how soon they decide.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from scipy.special import stdtrit

from smallbatch.claims.cells import Array, Cells, Edge, Untried
from smallbatch.claims.noise import TAIL, Noise, noise
from smallbatch.table import binomial_error

SUPPORTED, REFUTED, UNDECIDED = "supported", "not supported", "undecided"
SEEDS, EDGE, NOISE = "seeds", "edge", "noise"  # why a part is undecided; the first that applies is what to mend first
POINT = 1.0  # "clear" is beyond one point
REDUCED_MARGIN = 2.0  # "coincide", "similar" and "fair" below the paper's scale: see `margin`


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: effect and 98 % interval in points, and what they rest on.

    `train_*`: the same comparison of training accuracies at the end. `updates`, `updates_against`: fewest and most per
    run on the side with the plus sign and on the other. `binomial`: standard error of one accuracy from the test set's
    size, which all seeds share. `counts` is False for what is listed only, to show what another part rests on.
    `why`: of an undecided part, "seeds", "edge" or "noise"; `beyond`: the cells to try next.
    """

    label: str
    verdict: str
    reason: str = ""
    why: str = ""
    beyond: tuple[Untried, ...] = ()
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    df: float | None = None
    seeds: int | None = None
    train_effect: float | None = None
    train_low: float | None = None
    train_high: float | None = None
    updates: tuple[int, int] | None = None
    updates_against: tuple[int, int] | None = None
    binomial: float | None = None
    keys: tuple[str, ...] = ()
    counts: bool = True

    @property
    def in_training(self) -> bool | None:
        """Whether training accuracy shows the effect's sign beyond noise (optimisation, not generalisation alone)."""
        if self.effect is None or self.train_low is None or self.train_high is None:
            return None
        return self.train_low > 0 if self.effect > 0 else self.train_high < 0


@dataclass(frozen=True)
class Term:
    """`times` the mean score of a cell: its row, and how many cells it may have been chosen from by chance.

    `group`: the rows that it is the highest of, or the lowest if `lowest`; itself alone if it is given.
    """

    cells: Cells
    times: float
    row: int
    group: tuple[int, ...]
    ties: int = 1
    lowest: bool = False


@dataclass(frozen=True)
class Quantity:
    """A sum of terms, such as "accuracy at the best η̃ of m = 8 less that of m = 32".

    `may_rise`, `may_fall`: edges beyond which its true value may be higher, or lower. `unknown`: why it has none.
    """

    terms: tuple[Term, ...] = ()
    may_rise: tuple[Edge, ...] = ()
    may_fall: tuple[Edge, ...] = ()
    unknown: Edge | None = None

    def __add__(self, other: "Quantity") -> "Quantity":
        rise, fall = self.may_rise + other.may_rise, self.may_fall + other.may_fall
        return Quantity(self.terms + other.terms, rise, fall, self.unknown or other.unknown)

    def __neg__(self) -> "Quantity":
        return Quantity(self._times(-1.0), self.may_fall, self.may_rise, self.unknown)

    def __sub__(self, other: "Quantity") -> "Quantity":
        return self + -other

    def _times(self, factor: float) -> tuple[Term, ...]:
        return tuple(replace(term, times=factor * term.times) for term in self.terms)

    def open_beyond(self, *edges: Edge) -> "Quantity":
        """Uncertain to both sides where what it stands on may lie beyond these edges."""
        return replace(self, may_rise=edges + self.may_rise, may_fall=edges + self.may_fall)


def mean(quantities: list[Quantity]) -> Quantity:
    """Their average; unknown if there are none."""
    if not quantities:
        return Quantity(unknown=Edge("no such batch size in the grid"))
    total = sum(quantities, Quantity())
    return replace(total, terms=total._times(1 / len(quantities)))


def interval(quantity: Quantity, column: str = "score") -> tuple[float, float, float, float]:
    """Value of a known quantity, its 98 % interval (low, high) and degrees of freedom."""
    terms = _merged(quantity.terms)
    figures = list(dict.fromkeys(term.cells for term in terms))
    by_figure = {cells: [term for term in terms if term.cells is cells] for cells in figures}
    values = np.array([sum(t.times * getattr(c, column)[t.row] for t in some) for c, some in by_figure.items()])
    seeds = quantity.terms[0].cells.score.shape[1]
    if not terms:  # a difference of a cell and itself
        return 0.0, 0.0, 0.0, seeds - 1.0
    effect, total = float(values.sum(axis=0).mean()), values.sum(axis=0)
    cancels = [bool(np.isclose(sum(t.times for t in some), 0)) for some in by_figure.values()]
    variances = [
        v for some, paired in zip(by_figure.values(), cancels, strict=True) for v in _each(some, column, paired)
    ]
    spread = np.array([total.var(ddof=1) / seeds]), np.array([seeds - 1.0])
    if any(not t.cells.converged[t.row] for t in terms) or not all(df > 0 for _, df in variances):
        kinds = [spread]
    else:
        kinds = [tuple(np.array(variances).T)]
        if len(figures) > 1 and not all(cancels):
            kinds.append((values.var(axis=1, ddof=1) / seeds, np.full(len(figures), seeds - 1.0)))
    # A best that is seen is too high: that pulls the low end up where it has the plus sign.
    low, df = max(_reach(*kind, _ties(terms, 1)) for kind in kinds)
    high, _ = max(_reach(*kind, _ties(terms, -1)) for kind in kinds)
    return effect, effect - low, effect + high, df


def _merged(terms: Iterable[Term]) -> list[Term]:
    """Terms of the same choice as one; those that cancel are gone."""
    times: dict[Term, float] = {}
    for term in terms:
        alike = replace(term, times=1.0)
        times[alike] = times.get(alike, 0.0) + term.times
    return [replace(term, times=factor) for term, factor in times.items() if not np.isclose(factor, 0)]


def _ties(terms: Iterable[Term], sign: int) -> int:
    """In how many ways the choices that pull an effect upward (1) or downward (-1) may have gone by chance."""
    return prod(t.ties for t in terms if (t.times > 0) == ((sign > 0) != t.lowest))


def _each(terms: list[Term], column: str, paired: bool) -> list[tuple[float, float]]:
    """Of one figure's terms: variance of their sum's mean and its degrees of freedom, for each estimate of noise."""
    cells = terms[0].cells
    squares: dict[Noise, float] = {}
    for row in dict.fromkeys(term.row for term in terms):
        weights = [term.times for term in terms if term.row == row]
        # Two terms that chose one cell may stand for two: their weights neither cancel nor, at worst, stay apart.
        square = max(sum(weights) ** 2, sum(w**2 for w in weights))
        found = noise(cells, row, paired, column)
        squares[found] = squares.get(found, 0.0) + square
    return [(found.variance * square / len(cells.seeds), found.df) for found, square in squares.items()]


def _reach(variances: Array, dfs: Array, ties: int) -> tuple[float, float]:
    """From the middle to an end of the t-interval, and its degrees of freedom (Satterthwaite)."""
    total = float(variances.sum())
    df = total**2 / float((variances**2 / dfs).sum()) if total > 0 else float(dfs.sum())
    return float(stdtrit(df, 1 - TAIL / ties)) * total**0.5, df


Decide = Callable[[float, float], str]


def at_edge(label: str, edge: Edge, **more: Any) -> Part:
    """What the grid, ending too early, leaves undecided; `more` of a part's fields."""
    return Part(label, UNDECIDED, edge.text, why=EDGE, beyond=edge.beyond, **more)


def undecided_as(parts: Iterable[Part]) -> tuple[str, tuple[Untried, ...]]:
    """Why parts that others rest on are undecided, and the cells to try next; ("", ()) if none is."""
    undecided = [part for part in parts if part.verdict == UNDECIDED]
    why = next((why for why in (SEEDS, EDGE, NOISE) if any(part.why == why for part in undecided)), "")
    return why, tuple(dict.fromkeys(cell for part in undecided for cell in part.beyond))


def higher(label: str, quantity: Quantity) -> Part:
    """Whether it is above 0: refuted from the interval below 0 or, unless wholly above, within a point of it."""
    return _part(label, quantity, _is_higher)


def leads(label: str, quantity: Quantity) -> Part:
    """Whether it is above 0, of a group that is said to hold the best: a tie leaves it open."""
    return _part(label, quantity, _is_above(0.0))


def clearly_higher(label: str, quantity: Quantity) -> Part:
    """Whether it is above one point."""
    return _part(label, quantity, _is_above(POINT))


def beyond_margin(label: str, quantity: Quantity) -> Part:
    """Whether it is above the margin."""
    return _part(label, quantity, _is_above(margin(quantity)))


def within_margin(label: str, quantity: Quantity) -> Part:
    """Whether it is the margin or less: the opposite of `beyond_margin`."""
    part = beyond_margin(label, quantity)
    return replace(part, verdict={SUPPORTED: REFUTED, REFUTED: SUPPORTED}.get(part.verdict, UNDECIDED))


def similar(label: str, quantity: Quantity, reference: float = 0.0) -> Part:
    """Whether it is within the margin of the reference; the effect is the distance from it."""
    most = margin(quantity)

    def decide(low: float, high: float) -> str:
        if low >= -most and high <= most:
            return SUPPORTED
        return REFUTED if low > most or high < -most else UNDECIDED

    return _part(label, quantity, decide, reference)


def margin(quantity: Quantity) -> float:
    """How far apart what is "similar" may be: a point at the paper's scale, two at smaller ones.

    There a run's noise of 0.6 points (figure 1 of scale=reduced) makes an interval of three seeds ± 1.2, which no
    effect keeps within a point.
    """
    return POINT if all(term.cells.scale == "paper" for term in quantity.terms) else REDUCED_MARGIN


def _is_above(bound: float) -> Decide:
    return lambda low, high: SUPPORTED if low > bound else REFUTED if high <= bound else UNDECIDED


def _is_higher(low: float, high: float) -> str:
    return REFUTED if -POINT <= low <= 0 and high <= POINT else _is_above(0.0)(low, high)


def _part(label: str, quantity: Quantity, decide: Decide, reference: float = 0.0) -> Part:
    if quantity.unknown:
        return at_edge(label, quantity.unknown)
    effect, low, high, df = interval(quantity)
    effect, low, high = effect - reference, low - reference, high - reference
    verdict = decide(low, high)
    reason, why = ("the interval leaves it open", NOISE) if verdict == UNDECIDED else ("", "")
    beyond: tuple[Untried, ...] = ()
    for edges, ends in ((quantity.may_rise, (low, np.inf)), (quantity.may_fall, (-np.inf, high))):
        if edges and verdict != UNDECIDED and decide(*ends) != verdict:
            verdict, reason, why = UNDECIDED, edges[0].text, EDGE
            beyond = tuple(cell for edge in edges for cell in edge.beyond)
    train, train_low, train_high, _ = interval(quantity, "train")
    updates, scores, keys = _side(quantity, 1)
    updates_against, _, keys_against = _side(quantity, -1)
    cells = quantity.terms[0].cells
    return Part(
        label=label,
        verdict=verdict,
        reason=reason,
        why=why,
        beyond=beyond,
        effect=effect,
        low=low,
        high=high,
        df=df,
        seeds=len(cells.seeds),
        train_effect=train,
        train_low=train_low,
        train_high=train_high,
        updates=updates,
        updates_against=updates_against,
        binomial=binomial_error(float(np.mean(scores)), cells.test_images) if scores else None,
        keys=tuple(sorted({*keys, *keys_against})),
    )


def _side(quantity: Quantity, sign: int) -> tuple[tuple[int, int] | None, list[float], list[str]]:
    """Of the runs that enter an effect with one sign: fewest and most updates, accuracies and keys."""
    used = [(t.cells, t.row) for t in quantity.terms if sign * t.times > 0]
    updates = [int(cells.updates[row]) for cells, row in used]
    scores = [float(score) for cells, row in used for score in cells.score[row]]
    keys = [str(key) for cells, row in used for key in cells.key[row]]
    return (min(updates), max(updates)) if updates else None, scores, keys


def all_of(verdicts: Iterable[str]) -> str:
    """Supported if all are, not supported if any is not, else undecided; of none, undecided."""
    given = set(verdicts)
    return REFUTED if REFUTED in given else SUPPORTED if given == {SUPPORTED} else UNDECIDED


def any_of(verdicts: Iterable[str]) -> str:
    """Supported if any is, not supported if none can be, else undecided; of none, undecided."""
    given = set(verdicts)
    return SUPPORTED if SUPPORTED in given else REFUTED if given == {REFUTED} else UNDECIDED
