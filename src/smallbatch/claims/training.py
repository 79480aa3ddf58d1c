"""What the paper claims of training curves, warm-up and longer training: C8, C9, C12 (figures 4, 10, 11, 17, 18)."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pandas as pd

from smallbatch.claims.best import fixed, lead, tuned
from smallbatch.claims.cells import Cells, Edge, Undecided
from smallbatch.claims.claim import LARGE, SMALL, Claim
from smallbatch.claims.statistics import (
    SUPPORTED,
    UNDECIDED,
    Part,
    Quantity,
    all_of,
    any_of,
    at_edge,
    higher,
    leads,
    mean,
    similar,
    undecided_as,
)

C8 = Claim("C8", "At η̃ = 2^-8 the training curves of some 4 ≤ m ≤ 64 coincide; larger m train worse")


@C8.test("fig04")
def curves_coincide(c: Cells) -> Iterator[Part]:
    """
    For at least two neighbours in the grid from m = 4 to 64, both trained, mean training accuracy is within the margin
    (1 point at the paper's scale, 2 at smaller ones) both over the first half of the epochs and over the second.
    """
    curves = _curves(c)
    middle = (curves.shape[1] + 1) // 2
    halves = {"first": _scored(c, curves.iloc[:, :middle]), "second": _scored(c, curves.iloc[:, -middle:])}
    pairs = [(a, b) for a, b in pairwise(c.within(4, 64)) if c.converged[c.at([a, b])].all()]
    parts = {
        (a, b): [
            similar(f"{c.name}: training accuracy of m = {a} − m = {b}, {name} half", _at(half, a) - _at(half, b))
            for name, half in halves.items()
        ]
        for a, b in pairs
    }
    yield from (replace(part, counts=False) for some in parts.values() for part in some)
    verdicts = {pair: all_of(part.verdict for part in some) for pair, some in parts.items()}
    agree = [f"{a} and {b}" for (a, b), verdict in verdicts.items() if verdict == SUPPORTED]
    label = f"{c.name}: neighbours whose curves coincide: {', '.join(agree) or 'none for sure'}"
    if not pairs:
        yield at_edge(label, Edge("no two neighbours from m = 4 to 64 that train"))
        return
    part = Part(label, any_of(verdicts.values()))
    if part.verdict == UNDECIDED:
        why, beyond = undecided_as(part for some in parts.values() for part in some)
        part = replace(part, why=why, beyond=beyond)
    yield part


@C8.test("fig04")
def larger_trains_worse(c: Cells) -> Iterator[Part]:
    """Over all epochs, mean training accuracy of m = 4 … 64 is higher than that of every m > 64."""
    whole = _scored(c, _curves(c))
    for m in whole.within(65) or [LARGE]:
        gap = mean([_at(whole, n) for n in whole.within(4, 64)]) - _at(whole, m)
        yield higher(f"{c.name}: training accuracy, mean over m = 4 … 64 − m = {m}", gap)


def _curves(c: Cells) -> pd.DataFrame:
    """Training accuracy of each run (row, by key) and epoch (column). Raises Undecided."""
    if c.curves is None or not (c.rate == 2**-8).any():
        raise Undecided(f"{c.name} has no curves at η̃ = 2^-8", beyond=c.untried(c.sizes, [2**-8]))
    return c.curves


def _scored(c: Cells, epochs: pd.DataFrame) -> Cells:
    """The cells, scored by mean training accuracy over these epochs."""
    score = epochs.mean(axis=1).reindex(c.key.ravel()).to_numpy().reshape(c.key.shape)
    return replace(c, score=score, train=score)


def _at(c: Cells, m: int) -> Quantity:
    row = c.row(m, 2**-8)
    if row is None:
        return Quantity(unknown=Edge(f"η̃ = 2^-8 was not tried at m = {m}", c.untried([m], [2**-8])))
    return fixed(c, row)


C9 = Claim(
    "C9",
    "Warm-up helps, mainly large m, but does not recover small-m accuracy; best m 4, 8 (CIFAR-10, fair to 128), "
    "4–16 (CIFAR-100)",
)
C12 = Claim(
    "C12",
    "Longer training (41 → 82 → 164 epochs) helps, mainly large m; large m at 164 epochs stays below small m",
)


@C9.test(("fig10", "fig08"), ("fig11", "fig09"))
@C12.test(("fig08", "fig17"), ("fig18", "fig08"))
def helps_large(c: Cells, base: Cells) -> Iterator[Part]:
    """Accuracy at the best η̃, mean over m ≥ 128, is higher in the first figure than in the second."""
    yield higher(f"{c.name} − {base.name}, mean over m ≥ {LARGE}", _mean_gain(c, base, LARGE))


@C9.test(("fig10", "fig08"), ("fig11", "fig09"))
@C12.test(("fig18", "fig17"))
def helps_large_more(c: Cells, base: Cells) -> Iterator[Part]:
    """What the first figure gains over the second at the best η̃ is higher as mean over m ≥ 128 than over m ≤ 32."""
    gain = _mean_gain(c, base, LARGE) - _mean_gain(c, base, 0, SMALL)
    yield higher(f"{c.name} − {base.name}, mean over m ≥ {LARGE} − mean over m ≤ {SMALL}", gain)


def _mean_gain(c: Cells, base: Cells, low: int, high: int | None = None) -> Quantity:
    return mean([tuned(c, m) - tuned(base, m) for m in c.within(low, high) if m in base.sizes])


@C9.test("fig10", "fig11")
@C12.test("fig18")
def large_stays_below(c: Cells) -> Iterator[Part]:
    """The best over m ≤ 32 is higher than the mean over m ≥ 128, each at its best η̃."""
    gap = tuned(c, *c.within(0, SMALL)) - mean([tuned(c, m) for m in c.within(LARGE)])
    yield higher(f"{c.name}: best over m ≤ {SMALL} − mean over m ≥ {LARGE}", gap)


@C9.test("fig11", high=16)
@C9.test("fig10", high=8)
def best_from_4(c: Cells, high: int) -> Iterator[Part]:
    """The best over m = 4, 8 (CIFAR-100, figure 11: 4 … 16) is higher than the best over the other m."""
    yield leads(f"{c.name}: best over m = 4 … {high} − best over other m", lead(c, 4, high))


@C9.test("fig10")
def fair_to_128(c: Cells) -> Iterator[Part]:
    """
    The best over m = 4, 8 is within the margin (1 point at the paper's scale, 2 at smaller ones) of each of
    m = 16 … 128.
    """
    for m in c.within(16, 128) or [128]:
        gap = tuned(c, *c.within(4, 8)) - tuned(c, m)
        yield similar(f"{c.name}: best over m = 4 … 8 − m = {m}", gap)
