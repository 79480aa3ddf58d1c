"""What the paper claims of the η̃ that train reliably: C2 (figure 16)."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from smallbatch.claims.cells import Cells, Edge
from smallbatch.claims.claim import NO_BN, RESNET_BN, WIDE, Claim
from smallbatch.claims.statistics import NOISE, REFUTED, SUPPORTED, UNDECIDED, Part, all_of, at_edge

SWEEPS = (*NO_BN, "resnet32_nobn", "fig05", "fig06", *RESNET_BN, "fig10", "fig11")

C2 = Claim("C2", "The range of η̃ that trains reliably shrinks as m grows")


@C2.test(*SWEEPS, reliability=True)
def range_shrinks(c: Cells) -> Iterator[Part]:
    """
    Of the η̃ tried at every m, the number that is reliable grows from no m to the next larger by more than one, and is
    at the largest m lower than at the smallest by at least two; by one, which an edge that moves with the seed can do,
    leaves it open. The grid spans a factor 16 in m. An m at which the highest η̃ is reliable may have a wider range;
    two such neighbours are not compared. The lower end is cut off alike for all m.
    """
    rates = [rate for rate in np.unique(c.rate) if not c.untried(c.sizes, [rate])]
    trains = {m: [bool(c.reliable[c.row(m, rate)]) for rate in rates] for m in c.sizes}
    widths = {m: sum(flags) for m, flags in trains.items()}
    label = f"{c.name}: reliable η̃ of {len(rates)}, {', '.join(f'm = {m}: {n}' for m, n in widths.items())}"
    if not rates or not any(widths.values()):
        yield at_edge(label, Edge("nothing to compare"))
        return
    if c.sizes[-1] < WIDE * c.sizes[0]:
        yield at_edge(label, Edge(f"the grid spans less than a factor {WIDE}"))
        return
    cut = {m: flags[-1] for m, flags in trains.items()}
    verdict = _shrinks(widths, cut)
    if verdict != UNDECIDED:
        yield Part(label, verdict, seeds=len(c.seeds), keys=c.keys)
    elif any(cut.values()):
        text = f"the highest η̃ tried is reliable at m = {', '.join(str(m) for m, flag in cut.items() if flag)}"
        yield at_edge(label, Edge(text, c.untried(c.sizes, [2 * max(rates)])), seeds=len(c.seeds), keys=c.keys)
    else:
        text = "one less only, from the smallest m to the largest"
        yield Part(label, UNDECIDED, text, why=NOISE, seeds=len(c.seeds), keys=c.keys)


def _shrinks(widths: dict[int, int], cut: dict[int, bool]) -> str:
    """Whether the widths by m shrink, where those cut off by the edge of the grid may be larger."""
    pairs = [(a, b) for a, b in pairwise(widths) if not (cut[a] and cut[b])]
    steps = [_grows_by_at_most(1, widths[a], widths[b], cut[a], cut[b]) for a, b in pairs]
    first, last = min(widths), max(widths)
    # By one less is what an edge that moves with the seed can do: no shrinking, and no sign against it.
    whole = [_grows_by_at_most(most, widths[first], widths[last], cut[first], cut[last]) for most in (-2, -1)]
    return all_of([*steps, whole[0] if whole[0] != REFUTED or whole[1] == REFUTED else UNDECIDED])


def _grows_by_at_most(most: int, before: int, after: int, before_cut: bool, after_cut: bool) -> str:
    """Whether a width grows by at most so much, if one cut off by the edge of the grid may be wider."""
    if after - before <= most:
        return UNDECIDED if after_cut else SUPPORTED
    return UNDECIDED if before_cut else REFUTED
