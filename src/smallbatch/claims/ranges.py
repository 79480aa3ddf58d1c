"""What the paper claims of the η̃ that train reliably: C2 (figure 16)."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from smallbatch.claims.cells import Cells, Edge
from smallbatch.claims.claim import NO_BN, RESNET_BN, WIDE, Claim
from smallbatch.claims.statistics import NOISE, REFUTED, SUPPORTED, UNDECIDED, Part, all_of, at_edge
from smallbatch.powers import format_power

SWEEPS = (*NO_BN, "resnet32_nobn", "fig05", "fig06", *RESNET_BN, "fig10", "fig11")

C2 = Claim("C2", "The range of η̃ that trains reliably shrinks as m grows")


@C2.test(*SWEEPS, reliability=True)
def range_shrinks(c: Cells) -> Iterator[Part]:
    """
    The highest η̃ that is reliable, in steps of those tried, rises from no m to the next larger by more than one step,
    and is at the largest m lower than at the smallest by at least two; by one, which an edge that moves with the seed
    can do, leaves it open. The grid spans a factor 16 in m. An m at which the highest η̃ tried is reliable may reach
    higher; two such neighbours are not compared. Where no η̃ tried is reliable, all count as too high. The lower end,
    below which the epochs do not suffice, depends little on m and is not asked for.
    """
    tops = {m: c.rate[(c.m == m) & c.reliable].max(initial=0.0) for m in c.sizes}
    told = {m: format_power(float(top)) if top else "none" for m, top in tops.items()}
    label = f"{c.name}: highest reliable η̃: {', '.join(f'm = {m}: {top}' for m, top in told.items())}"
    if not any(tops.values()):
        yield at_edge(label, Edge("nothing to compare"))
        return
    if c.sizes[-1] < WIDE * c.sizes[0]:
        yield at_edge(label, Edge(f"the grid spans less than a factor {WIDE}"))
        return
    steps = {m: float(np.searchsorted(np.unique(c.rate), top)) if top else -np.inf for m, top in tops.items()}
    cut = {m: bool(top == c.rate[c.m == m].max()) for m, top in tops.items()}
    verdict = _falls(steps, cut)
    if verdict != UNDECIDED:
        yield Part(label, verdict, seeds=len(c.seeds), keys=c.keys)
    elif any(cut.values()):
        text = f"the highest η̃ tried is reliable at m = {', '.join(str(m) for m, flag in cut.items() if flag)}"
        beyond = tuple(cell for m, flag in cut.items() if flag for cell in c.octave(m, 2))
        yield at_edge(label, Edge(text, beyond), seeds=len(c.seeds), keys=c.keys)
    else:
        text = "one step only, from the smallest m to the largest"
        yield Part(label, UNDECIDED, text, why=NOISE, seeds=len(c.seeds), keys=c.keys)


def _falls(steps: dict[int, float], cut: dict[int, bool]) -> str:
    """Whether the highest reliable η̃ by m falls, where those at the edge of the grid may be higher."""
    pairs = [(a, b) for a, b in pairwise(steps) if not (cut[a] and cut[b]) and max(steps[a], steps[b]) > -np.inf]
    rises = [_rises_by_at_most(1, steps[a], steps[b], cut[a], cut[b]) for a, b in pairs]
    first, last = min(steps), max(steps)
    # By one step less is what an edge that moves with the seed can do: no fall, and no sign against it.
    whole = [_rises_by_at_most(most, steps[first], steps[last], cut[first], cut[last]) for most in (-2, -1)]
    return all_of([*rises, whole[0] if whole[0] != REFUTED or whole[1] == REFUTED else UNDECIDED])


def _rises_by_at_most(most: int, before: float, after: float, before_cut: bool, after_cut: bool) -> str:
    """Whether it rises by at most so much, if one cut off by the edge of the grid may be higher."""
    if after - before <= most:
        return UNDECIDED if after_cut else SUPPORTED
    return UNDECIDED if before_cut else REFUTED
