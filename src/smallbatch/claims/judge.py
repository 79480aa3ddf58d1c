"""What the paper claims, C1 to C13, each as a criterion on the run table and the code that tests it.

A claim is supported if all its parts are, not supported if any is not, else undecided. The words "best", "reliable",
"higher", "clearly", "similar" and "censored" mean what `evidence.py` says. Criteria precede the runs that they judge.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from smallbatch.claims import criteria
from smallbatch.claims.cells import Evidence, Undecided
from smallbatch.claims.criteria import LARGE, SMALL, WIDE
from smallbatch.claims.statistics import SUPPORTED, UNDECIDED, Part, all_of
from smallbatch.figures.collect import FigureRuns

SHARES = (0.25, 0.5, 0.75)  # where reliability claims are judged; the verdict is that at ½
NAMED = 3  # parts in a reason; more are counted

Test = Callable[[Evidence], Iterator[Part]]


@dataclass(frozen=True)
class Claim:
    """A claim in the paper's words, how it is tested, on which figures, and the tests, which yield its parts."""

    id: str
    text: str
    criterion: str
    figures: tuple[str, ...]
    tests: tuple[Test, ...]
    by_share: bool = False  # whether reliability is what it is about


@dataclass(frozen=True)
class Verdict:
    """A claim judged at one scale; `by_share`: for claims about reliability, the verdict at each share."""

    id: str
    text: str
    criterion: str
    scale: str
    figures: tuple[str, ...]
    stand_in: str
    verdict: str
    reason: str
    parts: tuple[Part, ...]
    by_share: dict[float, str]


def judge(runs: dict[str, FigureRuns]) -> list[Verdict]:
    """All claims in order, from the figures of one scale by name."""
    return [_judge(claim, runs) for claim in CLAIMS]


def _judge(claim: Claim, runs: dict[str, FigureRuns]) -> Verdict:
    parts = _parts(claim, Evidence(runs))
    verdict = _verdict(parts)
    shares = SHARES if claim.by_share else ()
    stand_ins = [f"{name}: {runs[name].stand_in}" for name in claim.figures if name in runs and runs[name].stand_in]
    return Verdict(
        id=claim.id,
        text=claim.text,
        criterion=claim.criterion,
        scale=next((figure.scale for figure in runs.values()), ""),
        figures=claim.figures,
        stand_in="; ".join(stand_ins),
        verdict=verdict,
        reason=_reason(verdict, parts),
        parts=tuple(parts),
        by_share={share: _verdict(_parts(claim, Evidence(runs, share))) for share in shares},
    )


def _parts(claim: Claim, evidence: Evidence) -> list[Part]:
    parts: list[Part] = []
    for test in claim.tests:
        try:
            parts.extend(test(evidence))
        except Undecided as why:
            parts.append(Part(str(why), UNDECIDED))
    return list(dict.fromkeys(parts))  # several tests of one figure may lack the same


def _verdict(parts: list[Part]) -> str:
    return all_of(part.verdict for part in parts if part.counts)


def _reason(verdict: str, parts: list[Part]) -> str:
    """One line: the parts that made it what it is, the first few by name."""
    if verdict == SUPPORTED:
        return ""
    told = [f"{p.label}: {p.reason}" if p.reason else p.label for p in parts if p.counts and p.verdict == verdict]
    told = list(dict.fromkeys(told))
    more = f"; and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return "; ".join(told[:NAMED]) + more


NO_BN = ("fig01", "fig02", "fig03")
RESNET_BN = ("fig07", "fig08", "fig09")
SWEEPS = (*NO_BN, "resnet32_nobn", "fig05", "fig06", *RESNET_BN, "fig10", "fig11")

CLAIMS = (
    Claim(
        "C1",
        "At fixed η̃ and epochs, raising m first lowers test accuracy, then it drops sharply as training becomes "
        "unstable",
        "In each figure, over the η̃ that train well (reliable at ¾) at the smallest m and at the next, but not "
        "reliably at some larger m: the mean fall of accuracy from the smallest m to the last that trains well is "
        "higher than 0, and the mean fall from there to the next m is higher than that whole fall before it. Not "
        "supported if every η̃ that trains at the smallest m, the highest tried not among them, trains at every m, "
        "of three or more.",
        NO_BN,
        tuple(partial(criteria.falls_then_collapses, name) for name in NO_BN),
        by_share=True,
    ),
    Claim(
        "C2",
        "The range of η̃ that trains reliably shrinks as m grows",
        "In each figure, of the η̃ tried at every m: the number that is reliable grows from no m to the next "
        "larger by more than one, and is at the largest m lower than at the smallest by at least two; by one, "
        f"which an edge that moves with the seed can do, leaves it open. The grid spans a factor {WIDE} in m. An m "
        "at which the highest η̃ is reliable may have a wider range; two such neighbours are not compared. The "
        "lower end is cut off alike for all m.",
        SWEEPS,
        tuple(partial(criteria.range_shrinks, name) for name in SWEEPS),
        by_share=True,
    ),
    Claim(
        "C3",
        "One optimum η̃ per setting, usable only below a critical m: ≤ 16 (ResNet-32 BN CIFAR-10), ≤ 8 (CIFAR-100)",
        "In each figure, with η̃* that of its best cell: what m loses at η̃* against its own best η̃ is at most "
        "one point for every m ≤ 16 (figure 9: 8), and above one point, or η̃* is not reliable there, for every "
        "larger m.",
        RESNET_BN,
        (
            partial(criteria.one_optimum, "fig07", 16),
            partial(criteria.one_optimum, "fig08", 16),
            partial(criteria.one_optimum, "fig09", 8),
        ),
        by_share=True,
    ),
    Claim(
        "C4",
        "Without BN, best accuracy keeps rising down to m = 2 (ResNet-8, -20: best at 2 and 4); AlexNet best at m ≤ 8",
        "The best over m ≤ 4 (AlexNet: m ≤ 8) is higher than the best over larger m.",
        NO_BN,
        (
            partial(criteria.best_below, "fig01", 8),
            partial(criteria.best_below, "fig02", 4),
            partial(criteria.best_below, "fig03", 4),
        ),
    ),
    Claim(
        "C5",
        "ResNet-32 without BN learns only at m = 2, 4, 8 (best 76 %); every run at m ≥ 16 fails; deeper nets "
        "gain more from small m",
        "ResNet-32: some η̃ tried is reliable at every m ≤ 8 and none at any m ≥ 16; at the paper's scale its "
        "best accuracy is within one point of 76 %. The gain of the best m ≤ 8 over the best larger m is higher "
        "in ResNet-20 than in ResNet-8, and in ResNet-32 than in ResNet-20; where no larger m trains at any η̃ "
        "tried, they count as they came out, since that they fail is the claim.",
        ("resnet32_nobn", "fig02", "fig03"),
        (
            partial(criteria.trains_only_at, "resnet32_nobn", 8, 16),
            partial(criteria.reaches, "resnet32_nobn", 76.0),
            partial(criteria.deeper_gain_more, "fig02", "fig03"),
            partial(criteria.deeper_gain_more, "fig03", "resnet32_nobn"),
        ),
        by_share=True,
    ),
    Claim(
        "C6",
        "BN raises AlexNet's accuracy over a wide range of m; best m 8–64 with BN in conv and FC, 4–32 in conv "
        "only; similar final accuracy",
        "Accuracy at the best η̃ with BN is higher than without at every m of some stretch of the grid that "
        f"spans a factor {WIDE}, in figure 5 and in figure 6. The best over m = 8 … 64 in figure 5, and over 4 … "
        "32 in figure 6, is higher than the best over the other m. The bests of figures 5 and 6 are similar.",
        ("fig01", "fig05", "fig06"),
        (
            partial(criteria.higher_over_wide_range, "fig05", "fig01"),
            partial(criteria.higher_over_wide_range, "fig06", "fig01"),
            partial(criteria.best_within, "fig05", 8, 64),
            partial(criteria.best_within, "fig06", 4, 32),
            partial(criteria.same_best, "fig05", "fig06"),
        ),
    ),
    Claim(
        "C7",
        "With BN, ResNet-32 is best at m = 4 or 8, with a clear loss for larger m",
        "In each figure the best over m = 4, 8 is higher than the best over the other m, and clearly (by more "
        f"than one point) higher than every m ≥ {LARGE}.",
        RESNET_BN,
        (
            *(partial(criteria.best_within, name, 4, 8) for name in RESNET_BN),
            *(partial(criteria.clear_loss_at_large, name, 4, 8) for name in RESNET_BN),
        ),
    ),
    Claim(
        "C8",
        "At η̃ = 2^-8 the training curves of some 4 ≤ m ≤ 64 coincide; larger m train worse",
        "For at least two neighbours in the grid from m = 4 to 64, mean training accuracy is similar both over "
        "the first half of the epochs and over the second; and over all epochs the mean of m = 4 … 64 is higher "
        "than every m > 64.",
        ("fig04",),
        (partial(criteria.curves_coincide, "fig04"), partial(criteria.larger_train_worse, "fig04")),
    ),
    Claim(
        "C9",
        "Warm-up helps, mainly large m, but does not recover small-m accuracy; best m 4, 8 (CIFAR-10, fair to "
        "128), 4–16 (CIFAR-100)",
        "Accuracy at the best η̃ with warm-up (figures 10, 11) less that without (8, 9): the mean over m ≥ "
        f"{LARGE} is higher than 0, and than the mean over m ≤ {SMALL}. With warm-up the best over m ≤ {SMALL} is "
        f"higher than the mean over m ≥ {LARGE}. In figure 10 the best over m = 4, 8 is higher than the best over "
        "the other m, and similar to each of 16 … 128; in figure 11 the best over 4 … 16 is higher than the best "
        "over the others.",
        ("fig10", "fig08", "fig11", "fig09"),
        (
            partial(criteria.helps_large, "fig10", "fig08"),
            partial(criteria.helps_large, "fig11", "fig09"),
            partial(criteria.helps_large_more, "fig10", "fig08"),
            partial(criteria.helps_large_more, "fig11", "fig09"),
            partial(criteria.large_stays_below, "fig10"),
            partial(criteria.large_stays_below, "fig11"),
            partial(criteria.best_within, "fig10", 4, 8),
            partial(criteria.fair_up_to, "fig10", 4, 8, 128),
            partial(criteria.best_within, "fig11", 4, 16),
        ),
    ),
    Claim(
        "C10",
        "ImageNet ResNet-50: best m 16–64; small m stable at every η̃; large m worst where η̃ is best",
        "The best over m = 16 … 64 is higher than the best over the other m; every m ≤ 8 is reliable at every η̃ "
        "tried from the lowest that is reliable at some m; at the η̃ of the setting's best cell the lowest m < "
        f"{LARGE} is higher than the mean over m ≥ {LARGE}.",
        ("fig12",),
        (
            partial(criteria.best_within, "fig12", 16, 64),
            partial(criteria.reliable_everywhere, "fig12", 8),
            partial(criteria.large_is_worst, "fig12"),
        ),
        by_share=True,
    ),
    Claim(
        "C11",
        "SGD batch matters most; for each SGD batch the best BN batch is smaller than it: 4–8 (CIFAR), 16–64 "
        "(ImageNet), nearly independent of the SGD batch",
        "In each figure: what the best SGD batch gains over the largest, both at their best BN batch and at the "
        "best η̃ that figures 8, 9 and 12 have for them, is higher than what the best BN batch gains over one of "
        "the SGD batch's size, mean over SGD batches. At each SGD batch above 8 (ImageNet: 64) the best smaller BN "
        "batch is higher than one of its size, where that was tried. The best of BN batches 4 … 8 (16 … 64) is "
        "higher than the best other one, as mean over the smaller half of those SGD batches and as mean over the "
        "larger half.",
        ("fig13a", "fig13b", "fig14", "fig08", "fig09", "fig12"),
        (
            partial(criteria.sgd_batch_matters_most, "fig13a", "fig08"),
            partial(criteria.sgd_batch_matters_most, "fig13b", "fig09"),
            partial(criteria.sgd_batch_matters_most, "fig14", "fig12"),
            partial(criteria.smaller_bn_is_better, "fig13a", 8),
            partial(criteria.smaller_bn_is_better, "fig13b", 8),
            partial(criteria.smaller_bn_is_better, "fig14", 64),
            partial(criteria.best_bn_within, "fig13a", 4, 8),
            partial(criteria.best_bn_within, "fig13b", 4, 8),
            partial(criteria.best_bn_within, "fig14", 16, 64),
        ),
    ),
    Claim(
        "C12",
        "Longer training (41 → 82 → 164 epochs) helps, mainly large m; large m at 164 epochs stays below small m",
        f"Accuracy at the best η̃, mean over m ≥ {LARGE}, is higher at 82 epochs than at 41 and at 164 than at "
        f"82; its gain from 41 to 164 is higher than that of the mean over m ≤ {SMALL}; at 164 epochs the best "
        f"over m ≤ {SMALL} is higher than the mean over m ≥ {LARGE}.",
        ("fig17", "fig08", "fig18"),
        (
            partial(criteria.helps_large, "fig08", "fig17"),
            partial(criteria.helps_large, "fig18", "fig08"),
            partial(criteria.helps_large_more, "fig18", "fig17"),
            partial(criteria.large_stays_below, "fig18"),
        ),
    ),
    Claim(
        "C13",
        "An η̃ sweep at large m alone would give the wrong optimum",
        f"In figures 7, 8 and 9 the best m ≤ {SMALL} loses clearly (more than one point) at the η̃ "
        "that is best for the largest m.",
        RESNET_BN,
        tuple(partial(criteria.misled_by_large, name) for name in RESNET_BN),
    ),
)
