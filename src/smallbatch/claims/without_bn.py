"""What the paper claims of networks without batch normalisation: C1, C4, C5 (figures 1 to 3, and the text)."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from smallbatch.claims.best import fixed, tuned
from smallbatch.claims.cells import Cells, Edge, reliable
from smallbatch.claims.claim import NO_BN, Claim
from smallbatch.claims.statistics import REFUTED, SUPPORTED, Part, Quantity, at_edge, higher, mean, similar
from smallbatch.powers import format_power

WELL = 0.75  # of the way from chance to the best score, as reliability is at ½: before a collapse

C1 = Claim(
    "C1",
    "At fixed η̃ and epochs, raising m first lowers test accuracy, then it drops sharply as training becomes unstable",
)


@C1.test(*NO_BN, reliability=True)
def falls_then_collapses(c: Cells) -> Iterator[Part]:
    """
    Over the η̃ that train well (reliable at ¾) at the smallest m and at the next, but not reliably at some larger m: the
    mean fall of accuracy from the smallest m to the last that trains well is higher than 0, and the mean fall from
    there to the next m is higher than that whole fall before it. Not supported if every η̃ that trains at the smallest
    m, the highest tried not among them, trains at every m, of three or more.
    """
    paths, fails = _paths(c)
    if not paths:
        yield _no_path(c, fails)
        return
    falls = mean([fixed(c, first) - fixed(c, last) for first, last, _ in paths])
    collapse = mean([fixed(c, last) - fixed(c, lost) for _, last, lost in paths])
    rates = ", ".join(format_power(c.rate[first]) for first, _, _ in paths)
    yield higher(f"{c.name}: fall from the smallest m to the last that trains well, mean over η̃ = {rates}", falls)
    yield higher(f"{c.name}: fall to the next m, beyond the whole fall before", collapse - falls)


def _paths(c: Cells) -> tuple[list[tuple[int, int, int]], bool]:
    """Rows (smallest m, last that trains well, next) of each η̃ with a fall to see, and whether any η̃ fails."""
    paths, fails = [], False
    well = c.reliable & reliable(c.score, c.chance, c.test_images, WELL)
    for rate in np.unique(c.rate):
        rows = [int(row) for row in np.flatnonzero(c.rate == rate)]  # in order of m
        if c.m[rows[0]] == c.sizes[0] and c.reliable[rows[0]] and not c.reliable[rows].all():
            fails = True
            lost = int(np.argmin(well[rows]))  # the first that does not train well
            if lost > 1:
                paths.append((rows[0], rows[lost - 1], rows[lost]))
    return paths, fails


def _no_path(c: Cells, fails: bool) -> Part:
    label, first = f"{c.name}: accuracy against m at fixed η̃", c.sizes[0]
    smallest = c.m == first
    if fails:
        return at_edge(label, Edge("no η̃ that fails trains well at the second m: no fall before it to see"))
    if not c.reliable[smallest].any():
        return at_edge(label, Edge(f"m = {first} trains at no η̃ tried", c.octaves(first)))
    if c.reliable[smallest][-1]:
        text = f"m = {first} trains at the highest η̃ tried: nothing seen becomes unstable"
        return at_edge(label, Edge(text, c.untried(c.sizes, [2 * c.rate[smallest].max()])))
    trained = c.rate[smallest & c.reliable]
    holes = c.untried(c.sizes, trained)
    if len(c.sizes) < 3 or holes:
        text = "fewer than three m, or some not tried at every η̃ that trains at the smallest"
        return at_edge(label, Edge(text, holes))
    return Part(label, REFUTED, "every η̃ that trains at the smallest m trains at every m")


C4 = Claim(
    "C4", "Without BN, best accuracy keeps rising down to m = 2 (ResNet-8, -20: best at 2 and 4); AlexNet best at m ≤ 8"
)


@C4.test("fig02", "fig03", most=4)
@C4.test("fig01", most=8)
def best_below(c: Cells, most: int) -> Iterator[Part]:
    """The best over m ≤ 4 (AlexNet, figure 1: m ≤ 8) is higher than the best over larger m."""
    yield higher(f"{c.name}: best over m ≤ {most} − best over larger m", _gain(c, most))


def _gain(c: Cells, most: int) -> Quantity:
    return tuned(c, *c.within(0, most)) - tuned(c, *c.within(most + 1))


C5 = Claim(
    "C5",
    "ResNet-32 without BN learns only at m = 2, 4, 8 (best 76 %); every run at m ≥ 16 fails; deeper nets gain more "
    "from small m",
)


@C5.test("resnet32_nobn", reliability=True)
def trains_only_up_to_8(c: Cells) -> Iterator[Part]:
    """Some η̃ tried is reliable at every m ≤ 8, and none at any m ≥ 16."""
    for m in [*c.within(0, 8), *c.within(16)]:
        trains = bool(c.reliable[c.m == m].any())
        verdict = SUPPORTED if trains == (m <= 8) else REFUTED
        label = f"{c.name}: m = {m} trains at {'some' if trains else 'no'} η̃ tried"
        yield Part(label, verdict, seeds=len(c.seeds), keys=c.keys)
    for group, sizes in (("≤ 8", c.within(0, 8)), ("≥ 16", c.within(16))):
        if not sizes:
            yield at_edge(f"{c.name}: m {group}", Edge("no such batch size in the grid"))


@C5.test("resnet32_nobn")
def reaches_76(c: Cells) -> Iterator[Part]:
    """At the paper's scale the best accuracy is within one point of 76 %."""
    if c.scale == "paper":
        yield similar(f"{c.name}: best accuracy − 76", tuned(c, *c.sizes), 76.0)


@C5.test(("fig03", "fig02"), ("resnet32_nobn", "fig03"))
def deeper_gains_more(deep: Cells, shallow: Cells) -> Iterator[Part]:
    """
    The gain of the best m ≤ 8 over the best larger m is higher in the deeper network. Where no larger m trains at any
    η̃ tried, they count as they came out, since that they fail is the claim.
    """
    gain = _gain_as_tried(deep, 8) - _gain_as_tried(shallow, 8)
    yield higher(f"gain of best m ≤ 8 over larger m: {deep.name} − {shallow.name}", gain)


def _gain_as_tried(c: Cells, most: int) -> Quantity:
    larger = c.at(c.within(most + 1))
    gain = _gain(c, most)
    return gain if (c.converged & larger).any() else replace(gain, may_fall=())
