"""From cells to intervals, and from intervals to answers: supported, not supported, undecided.

Accuracies and effects are in points (percent of the test images). Only seeds that all cells of the compared figures
have are used.

Intervals are 95 % t-intervals. With the weight w of each cell and seed in the effect, their variance is
Σ s² w² / seeds². s² is the variance within cells, pooled over the figure's converged cells of one m, since runs of
large m near their edge scatter more. Where the seeds cancel within a figure, s² is taken about cell and seed means
(paired), else about cell means. Degrees of freedom are Satterthwaite's. A contested best cell (`best.py`) counts more
in Σ w². A seed may be lucky in all cells of one figure and not in another's: an effect in which the seeds cancel only
between figures takes Welch's interval of the figures' values over the seeds where that is wider. An effect that reads a
cell that has not converged has a spread of its own, so its interval is that of its values over the seeds.
`tests/claims/test_statistics.py` simulates what these intervals cover.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from smallbatch.claims.cells import Array, Cells, Edge, Untried
from smallbatch.table import binomial_error

SUPPORTED, REFUTED, UNDECIDED = "supported", "not supported", "undecided"
SEEDS, EDGE, NOISE = "seeds", "edge", "noise"  # why a part is undecided; the first that applies is what to mend first
POINT = 1.0  # "coincide", "similar", "fair" and "clear" are within, or beyond, one point


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: effect and 95 % interval in points, and what they rest on.

    `train_*`: the same comparison of training accuracies at the end. `updates`, `updates_against`: fewest and most per
    run on the side with the plus sign and on the other. `binomial`: standard error of one accuracy from the test set's
    size, which all seeds share. `counts` is False for what is listed only, to show what another part rests on.
    `why`: of an undecided part, "seeds", "edge" or "noise"; `need`: how many seeds; `beyond`: the cells to try next.
    """

    label: str
    verdict: str
    reason: str = ""
    why: str = ""
    need: int = 0
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
class Quantity:
    """A linear function of each seed's scores, such as "accuracy at the best η̃ of m = 8": weights (cells, seeds).

    `contested`: what selection adds to the sum of squared weights. `may_rise`, `may_fall`: edges beyond which its true
    value may be higher, or lower. `unknown`: why it has none.
    """

    weights: dict[Cells, Array] = field(default_factory=dict)
    contested: float = 0.0
    may_rise: tuple[Edge, ...] = ()
    may_fall: tuple[Edge, ...] = ()
    unknown: Edge | None = None

    def __add__(self, other: "Quantity") -> "Quantity":
        weights = dict(self.weights)
        for cells, weight in other.weights.items():
            weights[cells] = weights[cells] + weight if cells in weights else weight
        rise, fall = self.may_rise + other.may_rise, self.may_fall + other.may_fall
        return Quantity(weights, self.contested + other.contested, rise, fall, self.unknown or other.unknown)

    def __neg__(self) -> "Quantity":
        weights = {cells: -weight for cells, weight in self.weights.items()}
        return Quantity(weights, self.contested, self.may_fall, self.may_rise, self.unknown)

    def __sub__(self, other: "Quantity") -> "Quantity":
        return self + -other

    def open_beyond(self, *edges: Edge) -> "Quantity":
        """Uncertain to both sides where what it stands on may lie beyond these edges."""
        return replace(self, may_rise=edges + self.may_rise, may_fall=edges + self.may_fall)


def mean(quantities: list[Quantity]) -> Quantity:
    """Their average; unknown if there are none."""
    if not quantities:
        return Quantity(unknown=Edge("no such batch size in the grid"))
    total, n = sum(quantities, Quantity()), len(quantities)
    weights = {cells: weight / n for cells, weight in total.weights.items()}
    return replace(total, weights=weights, contested=total.contested / n**2)


def pooled(score: Array, paired: bool) -> tuple[float, int]:
    """Variance within cells of (cells, seeds), about cell means or, `paired`, cell and seed means; and its df."""
    df = (len(score) - paired) * (score.shape[1] - 1)
    if df <= 0:
        return float("nan"), 0
    return float((_residuals(score, paired) ** 2).sum() / df), df


def _residuals(score: Array, paired: bool) -> Array:
    rest = score - score.mean(axis=1, keepdims=True)
    return np.asarray(rest - rest.mean(axis=0, keepdims=True) if paired else rest)


def interval(quantity: Quantity, column: str = "score") -> tuple[float, float, float, float]:
    """Mean over seeds of a known quantity, its 95 % interval (low, high) and degrees of freedom."""
    weights = quantity.weights
    figures = np.array([(w * getattr(c, column)).sum(axis=0) for c, w in weights.items()])  # (figures, seeds)
    values, seeds = figures.sum(axis=0), figures.shape[1]
    cancels = [bool(np.allclose(w.sum(axis=0), 0)) for w in weights.values()]
    terms = [t for (c, w), paired in zip(weights.items(), cancels, strict=True) for t in _terms(c, w, column, paired)]
    if not terms:  # a difference of a cell and itself
        reach, df = 0.0, seeds - 1.0
    elif any(w[~c.converged].any() for c, w in weights.items()) or not all(df > 0 for _, df, _ in terms):
        reach, df = _reach(np.array([values.var(ddof=1) / seeds]), np.array([seeds - 1.0]))
    else:
        variances, dfs, squares = np.array(terms).T
        contested = 1 + quantity.contested / squares.sum()
        reach, df = _reach(contested * variances * squares / seeds**2, dfs)
        if len(figures) > 1 and not all(cancels):
            welch = _reach(figures.var(axis=1, ddof=1) / seeds, np.full(len(figures), seeds - 1.0))
            reach, df = max((reach, df), welch)
    effect = float(values.mean())
    return effect, effect - reach, effect + reach, df


def _terms(cells: Cells, weight: Array, column: str, paired: bool) -> list[tuple[float, float, float]]:
    """Variance within cells, its degrees of freedom and Σ w² for each m that has weight."""
    score, m = getattr(cells, column)[cells.converged], cells.m[cells.converged]
    rest = _residuals(score, paired) ** 2
    each = (len(score) - paired) * (score.shape[1] - 1) / max(1, len(score))  # degrees of freedom of one cell
    terms = []
    for size in np.unique(cells.m[weight.any(axis=1)]):
        df = each * float((m == size).sum())
        variance = float(rest[m == size].sum() / df) if df > 0 else 0.0
        terms.append((variance, df, float((weight[cells.m == size] ** 2).sum())))
    return terms


def _reach(variances: Array, dfs: Array) -> tuple[float, float]:
    """Half a 95 % t-interval and its degrees of freedom (Satterthwaite) for a sum of independent estimates."""
    total = float(variances.sum())
    df = total**2 / float((variances**2 / dfs).sum()) if total > 0 else float(dfs.sum())
    return float(stdtrit(df, 0.975)) * total**0.5, df


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


def at_most_a_point(label: str, quantity: Quantity) -> Part:
    """Whether it is one point or less: the opposite of `clearly_higher`."""
    part = clearly_higher(label, quantity)
    return replace(part, verdict={SUPPORTED: REFUTED, REFUTED: SUPPORTED}.get(part.verdict, UNDECIDED))


def similar(label: str, quantity: Quantity, reference: float = 0.0) -> Part:
    """Whether it is within one point of the reference; the effect is the distance from it."""
    return _part(label, quantity, _is_within_a_point, reference)


def _is_above(bound: float) -> Decide:
    return lambda low, high: SUPPORTED if low > bound else REFUTED if high <= bound else UNDECIDED


def _is_higher(low: float, high: float) -> str:
    return REFUTED if -POINT <= low <= 0 and high <= POINT else _is_above(0.0)(low, high)


def _is_within_a_point(low: float, high: float) -> str:
    if low >= -POINT and high <= POINT:
        return SUPPORTED
    return REFUTED if low > POINT or high < -POINT else UNDECIDED


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
    cells = next(iter(quantity.weights))
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
    used = [(cells, sign * weight > 0) for cells, weight in quantity.weights.items()]
    updates = [int(u) for cells, mask in used for u in cells.updates[mask.any(axis=1)]]
    scores = [float(score) for cells, mask in used for score in cells.score[mask]]
    keys = [str(key) for cells, mask in used for key in cells.key[mask]]
    return (min(updates), max(updates)) if updates else None, scores, keys


def all_of(verdicts: Iterable[str]) -> str:
    """Supported if all are, not supported if any is not, else undecided; of none, undecided."""
    given = set(verdicts)
    return REFUTED if REFUTED in given else SUPPORTED if given == {SUPPORTED} else UNDECIDED


def any_of(verdicts: Iterable[str]) -> str:
    """Supported if any is, not supported if none can be, else undecided; of none, undecided."""
    given = set(verdicts)
    return SUPPORTED if SUPPORTED in given else REFUTED if given == {REFUTED} else UNDECIDED
