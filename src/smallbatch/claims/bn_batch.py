"""What the paper claims of the BN batch against the SGD batch: C11 (figures 13 and 14)."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np

from smallbatch.claims.best import best, censored, tuned
from smallbatch.claims.cells import Cells, Edge
from smallbatch.claims.claim import Claim
from smallbatch.claims.statistics import Part, Quantity, at_edge, higher, leads, mean

C11 = Claim(
    "C11",
    "SGD batch matters most; for each SGD batch the best BN batch is smaller than it: 4–8 (CIFAR), 16–64 (ImageNet), "
    "nearly independent of the SGD batch",
)


@C11.test(("fig13a", "fig08"), ("fig13b", "fig09"), ("fig14", "fig12"), own_seeds=True)
def sgd_batch_matters_most(c: Cells, sweep: Cells) -> Iterator[Part]:
    """
    What the best SGD batch gains over the largest, both at their best BN batch and at the best η̃ that figure 8 (9, 12)
    has for them, is higher than what the best BN batch gains over one of the SGD batch's size, mean over SGD batches.
    """
    *smaller, largest = (_given_at_edge(c, sweep, m) for m in c.sizes)
    sgd = tuned(c, *c.sizes) - tuned(c, c.sizes[-1])
    sgd = replace(sgd, may_rise=(*sgd.may_rise, *chain(*smaller)), may_fall=(*sgd.may_fall, *largest))
    bn = mean([tuned(c, m) - _undivided(c, m) for m in _divided(c, 0)])
    yield higher(f"{c.name}: gain of the best SGD batch − mean gain of the best BN batch", sgd - bn)


def _given_at_edge(c: Cells, sweep: Cells, m: int) -> list[Edge]:
    """Why the η̃ given for m may not be its best; none if it is, or if the sweep did not try m."""
    rates = np.unique(c.rate[c.m == m])
    given = (sweep.m == m) & np.isin(sweep.rate, rates)
    return censored(sweep, given) if given.any() else []


@C11.test("fig14", above=64)
@C11.test("fig13a", "fig13b", above=8)
def smaller_bn_batch_is_better(c: Cells, above: int) -> Iterator[Part]:
    """
    At each SGD batch above 8 (ImageNet: 64) the best smaller BN batch is higher than one of its size, where that was
    tried.
    """
    for m in _divided(c, above + 1):
        less = best(c, (c.m == m) & (c.bn < m))
        yield higher(f"{c.name}: SGD batch {m}: best smaller BN batch − BN batch {m}", less - _undivided(c, m))
    if not _divided(c, above + 1):
        label = f"{c.name}: SGD batches above {above}"
        yield at_edge(label, Edge("none in the grid with a BN batch of its size"))


@C11.test("fig14", low=16, high=64)
@C11.test("fig13a", "fig13b", low=4, high=8)
def best_bn_batch(c: Cells, low: int, high: int) -> Iterator[Part]:
    """
    The best of BN batches 4 … 8 (ImageNet: 16 … 64) is higher than the best other one, as mean over the smaller half of
    the SGD batches above 8 (64) and as mean over the larger half.
    """
    sizes = c.within(high + 1)
    middle = (len(sizes) + 1) // 2
    inside = (c.bn >= low) & (c.bn <= high)
    for which, half in (("smaller", sizes[:middle]), ("larger", sizes[middle:] or sizes)):
        gaps = [best(c, (c.m == m) & inside) - best(c, (c.m == m) & ~inside) for m in half]
        among = ", ".join(map(str, half))
        yield leads(f"{c.name}: BN batch {low} … {high} − others, mean over {which} SGD batches ({among})", mean(gaps))


def _divided(c: Cells, low: int) -> list[int]:
    """SGD batches from `low` with a BN batch of their own size and a smaller one."""
    return [m for m in c.within(low) if {*c.bn[c.m == m]} > {m}]


def _undivided(c: Cells, m: int) -> Quantity:
    return best(c, (c.m == m) & (c.bn == m))
