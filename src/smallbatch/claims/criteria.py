"""The tests behind the paper's claims: each reads figures and yields parts with an answer of their own."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pandas as pd

from smallbatch.claims.cells import Cells, Evidence, Undecided, reliable
from smallbatch.claims.statistics import (
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Array,
    Part,
    Quantity,
    all_of,
    any_of,
    at_most_a_point,
    best,
    censored,
    choose,
    clearly_higher,
    higher,
    leads,
    mean,
    pick,
    similar,
    tuned,
)
from smallbatch.config import format_power

SMALL = 32  # the largest batch size that the paper's title and conclusion call small
LARGE = 128  # the smallest of common practice then; 64, between the two, is called neither
WIDE = 16  # a "wide range" of batch sizes: largest over smallest
WELL = 0.75  # of the way from chance to the best score, as reliability is at ½: before a collapse


# C1


def falls_then_collapses(name: str, evidence: Evidence) -> Iterator[Part]:
    """At the η̃ that train well at the smallest m and at the next, and fail at a larger one."""
    (cells,) = evidence.cells(name, seeds=3)
    paths, collapses = _paths(cells)
    if not paths:
        yield Part(f"{name}: accuracy against m at fixed η̃", *_no_path(cells, collapses))
        return
    falls = mean([_row(cells, first) - _row(cells, last) for first, last, _ in paths])
    collapse = mean([_row(cells, last) - _row(cells, lost) for _, last, lost in paths])
    rates = ", ".join(format_power(cells.rate[first]) for first, _, _ in paths)
    yield higher(f"{name}: fall from the smallest m to the last that trains well, mean over η̃ = {rates}", falls)
    yield higher(f"{name}: fall to the next m, beyond the whole fall before", collapse - falls)


def _paths(cells: Cells) -> tuple[list[tuple[int, int, int]], int]:
    """Rows (smallest m, last that trains well, next) of each η̃ with a fall to see, and how many η̃ fail at all."""
    paths, collapses = [], 0
    well = cells.reliable & reliable(cells.score, cells.chance, cells.test_images, WELL)
    for rate in np.unique(cells.rate):
        rows = [int(row) for row in np.flatnonzero(cells.rate == rate)]  # in order of m
        if cells.m[rows[0]] == cells.sizes[0] and cells.reliable[rows[0]] and not cells.reliable[rows].all():
            collapses += 1
            lost = int(np.argmin(well[rows]))  # the first that does not train well
            if lost > 1:
                paths.append((rows[0], rows[lost - 1], rows[lost]))
    return paths, collapses


def _no_path(cells: Cells, collapses: int) -> tuple[str, str]:
    if collapses:
        return UNDECIDED, "no η̃ that fails trains well at the second m: no fall before it to see"
    smallest = cells.m == cells.sizes[0]
    if not cells.reliable[smallest].any():
        return UNDECIDED, f"m = {cells.sizes[0]} trains at no η̃ tried"
    if cells.reliable[smallest][-1]:
        return UNDECIDED, f"m = {cells.sizes[0]} trains at the highest η̃ tried: nothing seen becomes unstable"
    trained = cells.rate[smallest & cells.reliable]
    if len(cells.sizes) < 3 or any((cells.rate == rate).sum() < len(cells.sizes) for rate in trained):
        return UNDECIDED, "fewer than three m, or some not tried at every η̃ that trains at the smallest"
    return REFUTED, "every η̃ that trains at the smallest m trains at every m"


def _row(cells: Cells, row: int) -> Quantity:
    return pick(cells, np.full(len(cells.seeds), row))


# C2


def range_shrinks(name: str, evidence: Evidence) -> Iterator[Part]:
    """Number of reliable η̃ against m."""
    (cells,) = evidence.cells(name, seeds=3)
    rates = [r for r in np.unique(cells.rate) if all(cells.row(m, r) is not None for m in cells.sizes)]
    trains = {m: [bool(cells.reliable[cells.row(m, rate)]) for rate in rates] for m in cells.sizes}
    widths = {m: sum(flags) for m, flags in trains.items()}
    label = f"{name}: reliable η̃ of {len(rates)}, {', '.join(f'm = {m}: {n}' for m, n in widths.items())}"
    if not rates or not any(widths.values()):
        yield Part(label, UNDECIDED, "nothing to compare")
        return
    if cells.sizes[-1] < WIDE * cells.sizes[0]:
        yield Part(label, UNDECIDED, f"the grid spans less than a factor {WIDE}")
        return
    cut = {m: flags[-1] for m, flags in trains.items()}
    pairs = [(a, b) for a, b in pairwise(cells.sizes) if not (cut[a] and cut[b])]
    steps = [_grows_by_at_most(1, widths[a], widths[b], cut[a], cut[b]) for a, b in pairs]
    first, last = cells.sizes[0], cells.sizes[-1]
    # By one less is what an edge that moves with the seed can do: no shrinking, and no sign against it.
    whole = [_grows_by_at_most(most, widths[first], widths[last], cut[first], cut[last]) for most in (-2, -1)]
    verdict = all_of([*steps, whole[0] if whole[0] != REFUTED or whole[1] == REFUTED else UNDECIDED])
    yield Part(label, verdict, _cut_reason(verdict, cut), seeds=len(cells.seeds), keys=_keys(cells))


def _grows_by_at_most(most: int, before: int, after: int, before_cut: bool, after_cut: bool) -> str:
    """Whether a width grows by at most so much, if one cut off by the edge of the grid may be wider."""
    if after - before <= most:
        return UNDECIDED if after_cut else SUPPORTED
    return UNDECIDED if before_cut else REFUTED


def _cut_reason(verdict: str, cut: dict[int, bool]) -> str:
    edge = ", ".join(str(m) for m, flag in cut.items() if flag)
    if verdict != UNDECIDED:
        return ""
    return (
        f"the highest η̃ tried is reliable at m = {edge}"
        if edge
        else "one less only, from the smallest m to the largest"
    )


def _keys(cells: Cells) -> tuple[str, ...]:
    return tuple(sorted(str(key) for key in cells.key.flat))


# C3, C13


def one_optimum(name: str, critical: int, evidence: Evidence) -> Iterator[Part]:
    """What a batch size loses at the setting's best η̃ against its own best."""
    (cells,) = evidence.cells(name, seeds=3)
    if not cells.within(0, critical) or not cells.within(critical + 1):
        yield Part(f"{name}: critical m", UNDECIDED, f"the grid lacks m ≤ {critical} or m > {critical}")
        return
    star = choose(cells, np.ones(len(cells.m), bool))
    text = " or ".join(format_power(rate) for rate in np.unique(cells.rate[star]))
    for m in cells.sizes:
        label = f"{name}: loss of m = {m} at η̃* = {text}"
        there = _moved(cells, np.full(len(star), m), cells.rate[star])
        if there is None:
            yield Part(label, UNDECIDED, f"{text} was not tried at m = {m}")
        elif not cells.reliable[there].all():
            yield _fails(label, cells, there, SUPPORTED if m > critical else REFUTED, censored(cells, star))
        else:
            loss = _both_ways(tuned(cells, m) - pick(cells, there), censored(cells, star))
            yield (at_most_a_point if m <= critical else clearly_higher)(label, loss)


def _fails(label: str, cells: Cells, rows: Array, verdict: str, censor: str) -> Part:
    if censor:
        return Part(label, UNDECIDED, censor)
    keys = tuple(sorted({str(key) for row in rows for key in cells.key[row]}))
    return Part(label, verdict, "not reliable there", seeds=len(cells.seeds), keys=keys)


def _moved(cells: Cells, sizes: Array, rates: Array) -> Array | None:
    """Rows (seeds,) of the cells with these m and η̃; None if one was not tried."""
    rows = [cells.row(int(m), float(rate)) for m, rate in zip(sizes, rates, strict=True)]
    return None if None in rows else np.array(rows)


def _both_ways(quantity: Quantity, censor: str) -> Quantity:
    """Uncertain to both sides if the η̃ that it stands on is censored."""
    more = (censor,) if censor else ()
    return replace(quantity, may_rise=more + quantity.may_rise, may_fall=more + quantity.may_fall)


def misled_by_large(name: str, evidence: Evidence) -> Iterator[Part]:
    """What the best small batch loses at the η̃ that is best for the largest one."""
    (cells,) = evidence.cells(name)
    label = f"{name}: loss of the best m ≤ {SMALL} at the best η̃ of m = {cells.sizes[-1]}"
    if cells.sizes[-1] < LARGE or not cells.within(0, SMALL):
        yield Part(label, UNDECIDED, f"the grid lacks m ≤ {SMALL} or m ≥ {LARGE}")
        return
    small, large = (choose(cells, cells.at(sizes)) for sizes in (cells.within(0, SMALL), cells.sizes[-1:]))
    there = _moved(cells, cells.m[small], cells.rate[large])
    if there is None:
        yield Part(label, UNDECIDED, "that η̃ was not tried at the small batch size")
        return
    loss = tuned(cells, *cells.within(0, SMALL)) - pick(cells, there)
    yield clearly_higher(label, _both_ways(loss, censored(cells, large)))


# C4, C5


def best_below(name: str, most: int, evidence: Evidence) -> Iterator[Part]:
    """Small batches against all larger ones, each group at its best."""
    (cells,) = evidence.cells(name)
    yield higher(f"{name}: best over m ≤ {most} − best over larger m", _gain(cells, most))


def _gain(cells: Cells, most: int) -> Quantity:
    return tuned(cells, *cells.within(0, most)) - tuned(cells, *cells.within(most + 1))


def trains_only_at(name: str, most: int, above: int, evidence: Evidence) -> Iterator[Part]:
    """At which m some η̃ is reliable."""
    (cells,) = evidence.cells(name, seeds=3)
    for m in [*cells.within(0, most), *cells.within(above)]:
        trains = bool(cells.reliable[cells.m == m].any())
        verdict = SUPPORTED if trains == (m <= most) else REFUTED
        label = f"{name}: m = {m} trains at {'some' if trains else 'no'} η̃ tried"
        yield Part(label, verdict, seeds=len(cells.seeds), keys=_keys(cells))
    for missing, low, high in (("≤", 0, most), ("≥", above, None)):
        if not cells.within(low, high):
            yield Part(f"{name}: m {missing} {high or low}", UNDECIDED, "no such batch size in the grid")


def reaches(name: str, accuracy: float, evidence: Evidence) -> Iterator[Part]:
    """The one accuracy that the paper prints, which is one at its own scale."""
    figure = evidence.figure(name)
    if figure.scale == "paper":
        (cells,) = evidence.cells(name)
        yield similar(f"{name}: best accuracy − {accuracy:g}", tuned(cells, *cells.sizes), accuracy)


def deeper_gain_more(shallow: str, deep: str, evidence: Evidence) -> Iterator[Part]:
    """Whether small batches gain more in a deeper network; an m that trains at no η̃ tried counts as it came out."""
    gains = [_gain_as_tried(cells, 8) for cells in evidence.cells(shallow, deep)]
    yield higher(f"gain of best m ≤ 8 over larger m: {deep} − {shallow}", gains[1] - gains[0])


def _gain_as_tried(cells: Cells, most: int) -> Quantity:
    larger = cells.at(cells.within(most + 1))
    gain = _gain(cells, most)
    return gain if (cells.converged & larger).any() else replace(gain, may_fall=())


# C6, C7, C9, C10, C12


def higher_over_wide_range(name: str, base: str, evidence: Evidence) -> Iterator[Part]:
    """One figure above another at each m of a stretch of the grid."""
    cells, other = evidence.cells(name, base)
    sizes = _shared(cells, other)
    parts = [higher(f"{name} − {base} at m = {m}", tuned(cells, m) - tuned(other, m)) for m in sizes]
    yield from (replace(part, counts=False) for part in parts)
    sure = _stretch(sizes, [part.verdict == SUPPORTED for part in parts])
    possible = _stretch(sizes, [part.verdict != REFUTED for part in parts])
    spans = bool(sizes) and sizes[-1] >= WIDE * sizes[0]
    verdict = SUPPORTED if sure >= WIDE else REFUTED if spans and possible < WIDE else UNDECIDED
    reason = "" if spans else f"the grid spans less than a factor {WIDE}"
    yield Part(f"{name} above {base} over a factor {sure} in m, or up to {possible}", verdict, reason)


def _stretch(sizes: list[int], flags: list[bool]) -> int:
    """Largest ratio of two batch sizes such that the flag holds from one to the other; 0 if it never does."""
    widest, start = 0, 0
    for m, flag in zip(sizes, flags, strict=True):
        start = (start or m) if flag else 0
        widest = max(widest, m // start if start else 0)
    return widest


def _shared(*figures: Cells) -> list[int]:
    return sorted(set.intersection(*(set(cells.sizes) for cells in figures)))


def best_within(name: str, low: int, high: int, evidence: Evidence) -> Iterator[Part]:
    """A range of batch sizes against all others, each at its best."""
    (cells,) = evidence.cells(name)
    inside = cells.within(low, high)
    others = [m for m in cells.sizes if m not in inside]
    lead = tuned(cells, *inside) - tuned(cells, *others)
    yield leads(f"{name}: best over m = {low} … {high} − best over other m", lead)


def same_best(name: str, other: str, evidence: Evidence) -> Iterator[Part]:
    """The best accuracies of two figures."""
    ours, theirs = (tuned(cells, *cells.sizes) for cells in evidence.cells(name, other))
    yield similar(f"best of {name} − best of {other}", ours - theirs)


def clear_loss_at_large(name: str, low: int, high: int, evidence: Evidence) -> Iterator[Part]:
    """The best range against each large batch."""
    (cells,) = evidence.cells(name)
    inside = tuned(cells, *cells.within(low, high))
    for m in cells.within(LARGE) or [LARGE]:
        yield clearly_higher(f"{name}: best over m = {low} … {high} − m = {m}", inside - tuned(cells, m))


def fair_up_to(name: str, low: int, high: int, end: int, evidence: Evidence) -> Iterator[Part]:
    """The best range against each batch size above it."""
    (cells,) = evidence.cells(name)
    inside = tuned(cells, *cells.within(low, high))
    for m in cells.within(high + 1, end) or [end]:
        yield similar(f"{name}: best over m = {low} … {high} − m = {m}", inside - tuned(cells, m))


def helps_large(name: str, base: str, evidence: Evidence) -> Iterator[Part]:
    """What a figure gains over another at large m."""
    cells, other = evidence.cells(name, base)
    yield higher(f"{name} − {base}, mean over m ≥ {LARGE}", _mean_gain(cells, other, LARGE))


def helps_large_more(name: str, base: str, evidence: Evidence) -> Iterator[Part]:
    """What a figure gains over another at large m, against that at small m."""
    cells, other = evidence.cells(name, base)
    gain, small = _mean_gain(cells, other, LARGE), _mean_gain(cells, other, 0, SMALL)
    yield higher(f"{name} − {base}, mean over m ≥ {LARGE} − mean over m ≤ {SMALL}", gain - small)


def _mean_gain(cells: Cells, other: Cells, low: int, high: int | None = None) -> Quantity:
    sizes = [m for m in cells.within(low, high) if m in other.sizes]
    return mean([tuned(cells, m) - tuned(other, m) for m in sizes])


def large_stays_below(name: str, evidence: Evidence) -> Iterator[Part]:
    """The best small batch against large ones."""
    (cells,) = evidence.cells(name)
    lead = tuned(cells, *cells.within(0, SMALL)) - mean([tuned(cells, m) for m in cells.within(LARGE)])
    yield higher(f"{name}: best over m ≤ {SMALL} − mean over m ≥ {LARGE}", lead)


def reliable_everywhere(name: str, most: int, evidence: Evidence) -> Iterator[Part]:
    """Whether small batches train at every η̃ tried, those left out that are too small for any m."""
    (cells,) = evidence.cells(name, seeds=3)
    enough = cells.rate >= cells.rate[cells.reliable].min(initial=np.inf)
    for m in cells.within(0, most) or [most]:
        flags = cells.reliable[(cells.m == m) & enough]
        verdict = all_of(SUPPORTED if flag else REFUTED for flag in flags)
        label = f"{name}: m = {m} is reliable at {flags.sum()} of {len(flags)} η̃"
        yield Part(label, verdict, seeds=len(cells.seeds), keys=_keys(cells))


def large_is_worst(name: str, evidence: Evidence) -> Iterator[Part]:
    """The lowest other batch size at the setting's best η̃ against the large ones there."""
    (cells,) = evidence.cells(name)
    star = choose(cells, np.ones(len(cells.m), bool))
    label = f"{name}: lowest of m < {LARGE} − mean over m ≥ {LARGE}, at the setting's best η̃"
    others, large = (
        [_moved(cells, np.full(len(star), m), cells.rate[star]) for m in sizes]
        for sizes in (cells.within(0, LARGE - 1), cells.within(LARGE))
    )
    tried = [rows for rows in (*others, *large) if rows is not None]
    if not others or not large or len(tried) < len(cells.sizes):
        yield Part(label, UNDECIDED, f"that η̃ was not tried at every m, or no m ≥ {LARGE} was")
        return
    lowest = _lowest(cells, np.array(tried[: len(others)]))
    gap = pick(cells, lowest, contested=True) - mean([pick(cells, rows) for rows in tried[len(others) :]])
    yield higher(label, _both_ways(gap, censored(cells, star)))


def _lowest(cells: Cells, rows: Array) -> Array:
    """Of rows (candidates, seeds) the one with the lowest mean over the other seeds, for each seed."""
    seeds = np.arange(rows.shape[1])
    scores = cells.score[rows, seeds]
    return np.asarray(rows[(scores.sum(axis=1, keepdims=True) - scores).argmin(axis=0), seeds])


# C8


def curves_coincide(name: str, evidence: Evidence) -> Iterator[Part]:
    """Neighbouring curves of 4 ≤ m ≤ 64 in both halves of training; those that do not train coincide in nothing."""
    halves = _halves(name, evidence)
    first = halves["first"]
    pairs = [(a, b) for a, b in pairwise(first.within(4, 64)) if first.converged[first.at([a, b])].all()]
    verdicts = []
    for a, b in pairs:
        label = f"{name}: training accuracy of m = {a} − m = {b}"
        parts = [
            similar(f"{label}, {half} half", _curve(cells, a) - _curve(cells, b)) for half, cells in halves.items()
        ]
        yield from (replace(part, counts=False) for part in parts)
        verdicts.append(all_of(part.verdict for part in parts))
    agree = [f"{a} and {b}" for (a, b), verdict in zip(pairs, verdicts, strict=True) if verdict == SUPPORTED]
    label = f"{name}: neighbours whose curves coincide: {', '.join(agree) or 'none for sure'}"
    yield Part(label, any_of(verdicts), "" if pairs else "no two neighbours from m = 4 to 64 that train")


def larger_train_worse(name: str, evidence: Evidence) -> Iterator[Part]:
    """Training accuracy over all epochs above m = 64 against the mean of 4 to 64."""
    cells, curves = _curves(name, evidence)
    whole = _scored(cells, curves.mean(axis=1))
    for m in whole.within(65) or [LARGE]:
        gap = mean([_curve(whole, n) for n in whole.within(4, 64)]) - _curve(whole, m)
        yield higher(f"{name}: training accuracy, mean over m = 4 … 64 − m = {m}", gap)


def _halves(name: str, evidence: Evidence) -> dict[str, Cells]:
    """The cells scored by mean training accuracy over the first and over the second half of the epochs."""
    cells, curves = _curves(name, evidence)
    middle = (curves.shape[1] + 1) // 2
    halves = {"first": curves.iloc[:, :middle], "second": curves.iloc[:, -middle:]}
    return {name: _scored(cells, half.mean(axis=1)) for name, half in halves.items()}


def _curves(name: str, evidence: Evidence) -> tuple[Cells, pd.DataFrame]:
    """The cells, and the training accuracy in points of each run (row, by key) and epoch (column). Raises Undecided."""
    (cells,) = evidence.cells(name)
    curves = evidence.figure(name).curves
    if curves is None or not (cells.rate == 2**-8).any():
        raise Undecided(f"{name} has no curves at η̃ = 2^-8")
    epochs = int(evidence.figure(name).frame["epochs"].max())
    wide = curves.pivot(index="key", columns="epoch", values="train_accuracy").reindex(columns=range(1, epochs + 1))
    return cells, (100 * wide).fillna(cells.chance)  # an epoch that a diverged run never reached counts as chance


def _scored(cells: Cells, by_key: pd.Series) -> Cells:
    score = by_key.reindex(cells.key.ravel()).to_numpy().reshape(cells.key.shape)
    return replace(cells, score=score, train=score)


def _curve(cells: Cells, m: int) -> Quantity:
    row = cells.row(m, 2**-8)
    return Quantity(unknown=f"η̃ = 2^-8 was not tried at m = {m}") if row is None else _row(cells, row)


# C11


def sgd_batch_matters_most(name: str, rates_of: str, evidence: Evidence) -> Iterator[Part]:
    """What the best SGD batch gains over the largest, against what the best BN batch gains over the whole batch.

    Each SGD batch has the η̃ that was best for it in the figure `rates_of`, where that may be censored.
    """
    (cells,) = evidence.cells(name)
    (sweep,) = evidence.cells(rates_of)
    *smaller, largest = ([why] if (why := _given_at_edge(cells, sweep, m)) else [] for m in cells.sizes)
    sgd = tuned(cells, *cells.sizes) - tuned(cells, cells.sizes[-1])
    sgd = replace(sgd, may_rise=sgd.may_rise + tuple(chain(*smaller)), may_fall=sgd.may_fall + tuple(largest))
    bn = mean([tuned(cells, m) - _undivided(cells, m) for m in _divided(cells, 0)])
    yield higher(f"{name}: gain of the best SGD batch − mean gain of the best BN batch", sgd - bn)


def _given_at_edge(cells: Cells, sweep: Cells, m: int) -> str:
    """Why the η̃ given for m may not be its best; "" if it is, or if the sweep did not try m."""
    rates = np.unique(cells.rate[cells.m == m])
    rows = np.flatnonzero((sweep.m == m) & np.isin(sweep.rate, rates))
    return censored(sweep, rows)


def smaller_bn_is_better(name: str, high: int, evidence: Evidence) -> Iterator[Part]:
    """BN batches below the SGD batch against one of its size, for SGD batches beyond the best BN batches claimed."""
    (cells,) = evidence.cells(name)
    for m in _divided(cells, high + 1):
        less = best(cells, (cells.m == m) & (cells.bn < m))
        yield higher(f"{name}: SGD batch {m}: best smaller BN batch − BN batch {m}", less - _undivided(cells, m))
    if not _divided(cells, high + 1):
        yield Part(f"{name}: SGD batches above {high}", UNDECIDED, "none in the grid with a BN batch of its size")


def best_bn_within(name: str, low: int, high: int, evidence: Evidence) -> Iterator[Part]:
    """The claimed BN batches against the others, at the smaller and at the larger half of the SGD batches."""
    (cells,) = evidence.cells(name)
    sizes = cells.within(high + 1)
    middle = (len(sizes) + 1) // 2
    inside = (cells.bn >= low) & (cells.bn <= high)
    for which, half in (("smaller", sizes[:middle]), ("larger", sizes[middle:] or sizes)):
        gaps = [best(cells, (cells.m == m) & inside) - best(cells, (cells.m == m) & ~inside) for m in half]
        among = ", ".join(map(str, half))
        yield leads(f"{name}: BN batch {low} … {high} − others, mean over {which} SGD batches ({among})", mean(gaps))


def _divided(cells: Cells, low: int) -> list[int]:
    """SGD batches from `low` with a BN batch of their own size and a smaller one."""
    return [m for m in cells.within(low) if {*cells.bn[cells.m == m]} > {m}]


def _undivided(cells: Cells, m: int) -> Quantity:
    return best(cells, (cells.m == m) & (cells.bn == m))
