"""What the paper claims of networks with batch normalisation: C3, C6, C7, C13 (figures 5 to 9)."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from smallbatch.claims.best import censored, fixed, highest, lead, tuned
from smallbatch.claims.cells import Cells, Edge
from smallbatch.claims.claim import LARGE, RESNET_BN, SMALL, WIDE, Claim
from smallbatch.claims.statistics import (
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Part,
    at_edge,
    beyond_margin,
    clearly_higher,
    higher,
    leads,
    similar,
    undecided_as,
    within_margin,
)
from smallbatch.powers import format_power

C3 = Claim(
    "C3",
    "One optimum η̃ per setting, usable only below a critical m: ≤ 16 (ResNet-32 BN CIFAR-10), ≤ 8 (CIFAR-100)",
)


@C3.test("fig09", critical=8, reliability=True)
@C3.test("fig07", "fig08", critical=16, reliability=True)
def one_optimum(c: Cells, critical: int) -> Iterator[Part]:
    """
    With η̃* that of the best cell: what any other m ≤ 16 (CIFAR-100, figure 9: m ≤ 8) loses at η̃* against its own best
    η̃ is at most the margin (1 point at the paper's scale, 2 at smaller ones). Every larger m loses more, or η̃* is not
    reliable there.
    """
    if not c.within(0, critical) or not c.within(critical + 1):
        yield at_edge(f"{c.name}: critical m", Edge(f"the grid lacks m ≤ {critical} or m > {critical}"))
        return
    star = highest(c, np.ones(len(c.m), bool))
    rate = float(c.rate[star])
    text = format_power(rate)
    edges = censored(c, c.m == c.m[star])
    for m in (m for m in c.sizes if m > critical or m != c.m[star]):
        label = f"{c.name}: loss of m = {m} at η̃* = {text}"
        there = c.row(m, rate)
        there = c.failing(m, rate) if there is None else there
        if there is None:
            yield at_edge(label, Edge(f"{text} was not tried at m = {m}", c.untried([m], [rate])))
        elif c.reliable[there]:
            loss = (tuned(c, m) - fixed(c, there)).open_beyond(*edges)
            yield (within_margin if m <= critical else beyond_margin)(label, loss)
        elif edges:
            yield at_edge(label, edges[0])
        else:
            keys = tuple(sorted(str(key) for key in c.key[there]))
            verdict = SUPPORTED if m > critical else REFUTED
            yield Part(label, verdict, "not reliable there", seeds=len(c.seeds), keys=keys)


C6 = Claim(
    "C6",
    "BN raises AlexNet's accuracy over a wide range of m; best m 8–64 with BN in conv and FC, 4–32 in conv only; "
    "similar final accuracy",
)


@C6.test(("fig05", "fig01"), ("fig06", "fig01"))
def higher_over_a_wide_range(c: Cells, base: Cells) -> Iterator[Part]:
    """
    Accuracy at the best η̃ with BN is higher than without at every m of some stretch of the grid that spans a factor 16.
    """
    sizes = [m for m in c.sizes if m in base.sizes]
    parts = [higher(f"{c.name} − {base.name} at m = {m}", tuned(c, m) - tuned(base, m)) for m in sizes]
    yield from (replace(part, counts=False) for part in parts)
    sure = _stretch(sizes, [part.verdict == SUPPORTED for part in parts])
    possible = _stretch(sizes, [part.verdict != REFUTED for part in parts])
    label = f"{c.name} above {base.name} over a factor {sure} in m, or up to {possible}"
    if sure >= WIDE:
        yield Part(label, SUPPORTED)
    elif not sizes or sizes[-1] < WIDE * sizes[0]:
        yield at_edge(label, Edge(f"the grid spans less than a factor {WIDE}"))
    elif possible < WIDE:
        yield Part(label, REFUTED)
    else:
        why, beyond = undecided_as(parts)
        yield Part(label, UNDECIDED, why=why, beyond=beyond)


def _stretch(sizes: list[int], flags: list[bool]) -> int:
    """Largest ratio of two batch sizes such that the flag holds from one to the other; 0 if it never does."""
    widest, start = 0, 0
    for m, flag in zip(sizes, flags, strict=True):
        start = (start or m) if flag else 0
        widest = max(widest, m // start if start else 0)
    return widest


@C6.test("fig06", low=4, high=32)
@C6.test("fig05", low=8, high=64)
def best_at_medium(c: Cells, low: int, high: int) -> Iterator[Part]:
    """The best over m = 8 … 64 (BN in the convolutions only, figure 6: 4 … 32) is higher than that over the other m."""
    yield leads(f"{c.name}: best over m = {low} … {high} − best over other m", lead(c, low, high))


@C6.test(("fig05", "fig06"))
def similar_best(c: Cells, other: Cells) -> Iterator[Part]:
    """
    The best accuracies with BN in all layers and in the convolutions only are within the margin (1 point at the paper's
    scale, 2 at smaller ones).
    """
    yield similar(f"best of {c.name} − best of {other.name}", tuned(c, *c.sizes) - tuned(other, *other.sizes))


C7 = Claim("C7", "With BN, ResNet-32 is best at m = 4 or 8, with a clear loss for larger m")


@C7.test(*RESNET_BN)
def best_at_4_or_8(c: Cells) -> Iterator[Part]:
    """
    The best over m = 4, 8 is higher than the best over the other m, and clearly (by more than one point) higher than
    every m ≥ 128.
    """
    yield leads(f"{c.name}: best over m = 4 … 8 − best over other m", lead(c, 4, 8))
    for m in c.within(LARGE) or [LARGE]:
        loss = tuned(c, *c.within(4, 8)) - tuned(c, m)
        yield clearly_higher(f"{c.name}: best over m = 4 … 8 − m = {m}", loss)


C13 = Claim("C13", "An η̃ sweep at large m alone would give the wrong optimum")


@C13.test(*RESNET_BN)
def misled_by_large(c: Cells) -> Iterator[Part]:
    """
    The best of m ≤ 32 is clearly (by more than one point) higher than what the same m reaches at the η̃ that is best for
    the largest m.
    """
    label = f"{c.name}: loss of the best m ≤ {SMALL} at the best η̃ of m = {c.sizes[-1]}"
    small = c.within(0, SMALL)
    if c.sizes[-1] < LARGE or not small:
        yield at_edge(label, Edge(f"the grid lacks m ≤ {SMALL} or m ≥ {LARGE}"))
        return
    theirs = highest(c, c.at(c.sizes[-1:]))
    ours = tuned(c, *small)
    (term,) = ours.terms
    m, rate = int(c.m[term.row]), float(c.rate[theirs])
    there = c.row(m, rate)
    if there is None:
        yield at_edge(label, Edge("that η̃ was not tried at the small batch size", c.untried([m], [rate])))
        return
    loss = ours - fixed(c, there, term.ties)
    yield clearly_higher(label, loss.open_beyond(*censored(c, c.at(c.sizes[-1:]))))
