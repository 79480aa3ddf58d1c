"""What the paper claims of ResNet-50 on ImageNet: C10 (figure 12)."""

from collections.abc import Iterator

import numpy as np

from smallbatch.claims.best import censored, fixed, highest, lead, lowest
from smallbatch.claims.cells import Cells, Edge
from smallbatch.claims.claim import LARGE, Claim
from smallbatch.claims.statistics import EDGE, REFUTED, SUPPORTED, Part, all_of, at_edge, higher, leads, mean

C10 = Claim("C10", "ImageNet ResNet-50: best m 16–64; small m stable at every η̃; large m worst where η̃ is best")


@C10.test("fig12")
def best_at_16_to_64(c: Cells) -> Iterator[Part]:
    """The best over m = 16 … 64 is higher than the best over the other m."""
    yield leads(f"{c.name}: best over m = 16 … 64 − best over other m", lead(c, 16, 64))


@C10.test("fig12", reliability=True)
def small_is_stable(c: Cells) -> Iterator[Part]:
    """Every m ≤ 8 is reliable at every η̃ tried from the lowest that is reliable at some m."""
    enough = c.rate >= c.rate[c.reliable].min(initial=np.inf)
    for m in c.within(0, 8) or [8]:
        flags = c.reliable[(c.m == m) & enough]
        label = f"{c.name}: m = {m} is reliable at {flags.sum()} of {len(flags)} η̃"
        verdict = all_of(SUPPORTED if flag else REFUTED for flag in flags)
        yield Part(label, verdict, why="" if len(flags) else EDGE, seeds=len(c.seeds), keys=c.keys)


@C10.test("fig12")
def large_is_worst(c: Cells) -> Iterator[Part]:
    """At the η̃ of the best cell the lowest m < 128 is higher than the mean over m ≥ 128."""
    star = highest(c, np.ones(len(c.m), bool))
    label = f"{c.name}: lowest of m < {LARGE} − mean over m ≥ {LARGE}, at the setting's best η̃"
    rows = {m: c.row(m, float(c.rate[star])) for m in c.sizes}
    tried = {m: row for m, row in rows.items() if row is not None}
    smaller, large = c.within(0, LARGE - 1), c.within(LARGE)
    if not smaller or not large or len(tried) < len(rows):
        text = f"that η̃ was not tried at every m, or no m ≥ {LARGE} was"
        yield at_edge(label, Edge(text, c.untried(c.sizes, [float(c.rate[star])])))
        return
    gap = lowest(c, [tried[m] for m in smaller]) - mean([fixed(c, tried[m]) for m in large])
    yield higher(label, gap.open_beyond(*censored(c, c.m == c.m[star])))
