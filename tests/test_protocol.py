"""The paper's protocol as a table, written from the paper and not from conf/, against every run that a figure names."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from smallbatch.data import Description
from smallbatch.grids.expand import Point, expand
from smallbatch.run import Run
from smallbatch.training.schedule import factor

# The paper

DATA = {
    # training and test images, classes, shares of all updates at which the learning rate drops
    "cifar10": (50_000, 10_000, 10, [0.5, 0.75]),
    "cifar100": (50_000, 10_000, 100, [0.5, 0.75]),
    "imagenet": (1_281_167, 50_000, 1_000, [1 / 3, 2 / 3, 8 / 9]),  # epochs 30, 60 and 80 of 90
}

# Points are (SGD batch m, exponent e of η̃ = 2^e, BN batch); None: the BN batch is the SGD batch.
SWEEP = {
    (m, e, None)
    for m in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    for e in (-12, -11, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1, 0)
}
FIG04 = {(m, -8, None) for m in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)}
FIG12 = {
    (m, e, None) for m in (2, 4, 8, 16, 32, 64, 128) for e in (-12, -11, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1, 0)
}
# The best η̃ of figures 8, 9 and 12 is for the store to say: here 2^-8 is given, and all else compared.
LOOKED_UP = ("fig13a", "fig13b", "fig14")
BN_BATCHES_13 = {
    8: (2, 4, None),
    16: (2, 4, 8, None),
    32: (2, 4, 8, 16, None),
    64: (2, 4, 8, 16, 32, None),
    128: (2, 4, 8, 16, 32, 64, None),
    256: (2, 4, 8, 16, 32, 64, 128, None),
    512: (2, 4, 8, 16, 32, 64, 128, 256, None),
}
BN_BATCHES_14 = {
    16: (2, 4, 8, None),
    32: (2, 4, 8, 16, None),
    64: (2, 4, 8, 16, 32, None),
    128: (2, 4, 8, 16, 32, 64, None),
    256: (2, 4, 8, 16, 32, 64, 128),
    512: (2, 4, 8, 16, 32, 64, 128),
    1024: (2, 4, 8, 16, 32, 64, 128),
    2048: (2, 4, 8, 16, 32, 64, 128),
}
FIG13 = {(m, -8, b) for m, bn_batches in BN_BATCHES_13.items() for b in bn_batches}
FIG14 = {(m, -8, b) for m, bn_batches in BN_BATCHES_14.items() for b in bn_batches}


class Row(NamedTuple):
    """What all runs of a figure share, which they are, and how many."""

    network: str
    data: str
    bn: str | None
    augment: bool
    epochs: int
    weight_decay: float
    warmup: float
    points: set[tuple[int, int, int | None]]
    seeds: tuple[int, ...]
    runs: int


PAPER = {
    # figure              network      data        BN in   augment epochs decay warm-up points seeds   runs
    "fig01":         Row("AlexNet",   "cifar10",  None,   False,  82,  5e-4, 0,    SWEEP, (0,),   143),
    "fig02":         Row("ResNet-8",  "cifar10",  None,   False,  82,  1e-4, 0,    SWEEP, (0,),   143),
    "fig03":         Row("ResNet-20", "cifar10",  None,   False,  82,  1e-4, 0,    SWEEP, (0,),   143),
    "resnet32_nobn": Row("ResNet-32", "cifar10",  None,   False,  82,  1e-4, 0,    SWEEP, (0,),   143),
    "fig04":         Row("ResNet-32", "cifar10",  "all",  False,  82,  1e-4, 0,    FIG04, (0,),    11),
    "fig05":         Row("AlexNet",   "cifar10",  "all",  False,  82,  5e-4, 0,    SWEEP, (0,),   143),
    "fig06":         Row("AlexNet",   "cifar10",  "conv", False,  82,  5e-4, 0,    SWEEP, (0,),   143),
    "fig07":         Row("ResNet-32", "cifar10",  "all",  False,  82,  1e-4, 0,    SWEEP, (0,),   143),
    "fig08":         Row("ResNet-32", "cifar10",  "all",  True,   82,  1e-4, 0,    SWEEP, (0,),   143),
    "fig09":         Row("ResNet-32", "cifar100", "all",  True,  164,  1e-4, 0,    SWEEP, (0,),   143),
    "fig10":         Row("ResNet-32", "cifar10",  "all",  True,   82,  1e-4, 0.05, SWEEP, (0,),   143),
    "fig11":         Row("ResNet-32", "cifar100", "all",  True,  164,  1e-4, 0.05, SWEEP, (0,),   143),
    "fig12":         Row("resnet50",  "imagenet", "all",  True,   90,  1e-4, 0,    FIG12, (0, 1), 182),
    "fig13a":        Row("ResNet-32", "cifar10",  "all",  True,   82,  1e-4, 0,    FIG13, (0,),    42),
    "fig13b":        Row("ResNet-32", "cifar100", "all",  True,  164,  1e-4, 0,    FIG13, (0,),    42),
    "fig14":         Row("resnet50",  "imagenet", "all",  True,   90,  1e-4, 0,    FIG14, (0,),    50),
    "fig17":         Row("ResNet-32", "cifar10",  "all",  True,   41,  1e-4, 0,    SWEEP, (0,),   143),
    "fig18":         Row("ResNet-32", "cifar10",  "all",  True,  164,  1e-4, 0,    SWEEP, (0,),   143),
}  # fmt: skip
SWEEPS = [figure for figure, row in PAPER.items() if row.points in (SWEEP, FIG12)]

# At m = 128: updates of a run, and the learning rate's factor at some of them, counted from 0.
AT_82_EPOCHS = {0: 1, 15_989: 1, 15_990: 0.1, 23_984: 0.1, 23_985: 0.01, 31_979: 0.01}
AT_164_EPOCHS = {0: 1, 31_979: 1, 31_980: 0.1, 47_969: 0.1, 47_970: 0.01, 63_959: 0.01}
FACTORS = {
    # epochs, warm-up; a third of the warm-up is at 1/32 + 31/32 · 1/3 = 34/96
    (41, 0): (15_990, {0: 1, 7_994: 1, 7_995: 0.1, 11_992: 0.1, 11_993: 0.01, 15_989: 0.01}),
    (82, 0): (31_980, AT_82_EPOCHS),
    (82, 0.05): (31_980, AT_82_EPOCHS | {0: 1 / 32, 533: 34 / 96, 1_598: 1 - 31 / 32 / 1_599, 1_599: 1}),
    (90, 0): (
        900_810,
        {0: 1, 300_269: 1, 300_270: 0.1, 600_539: 0.1, 600_540: 0.01, 800_719: 0.01, 800_720: 0.001, 900_809: 0.001},
    ),
    (164, 0): (63_960, AT_164_EPOCHS),
    (164, 0.05): (63_960, AT_164_EPOCHS | {0: 1 / 32, 1_066: 34 / 96, 3_197: 1 - 31 / 32 / 3_198, 3_198: 1}),
}


# What conf/ says


def describe(data: dict) -> Description:
    """The data set at its published size, or the subset asked for; no image is read."""
    source = data["_target_"].rpartition(".")[2]
    name = source if source in DATA else data["name"]  # each CIFAR has a function of its own; ImageNet is any folder
    train, test, classes, _ = DATA[name]
    used = (data["train_size"] or train, data["test_size"] or test)
    return Description(name, Path(), f"fingerprint of {name}", classes, *used, full=(train, test))


@cache
def points(figure: str, *given: str) -> list[Point]:
    """A figure's points at the paper's scale."""
    arguments = [f"figure={figure}", "scale=paper", *given]
    return expand(arguments, describe, rates=lambda words, sizes: dict.fromkeys(sizes, 2.0**-8)).points


def planned(figure: str) -> list[Point]:
    return points(figure, "base_lr=2**-8") if figure in LOOKED_UP else points(figure)


def runs(figure: str) -> dict[tuple, Run]:
    return {(p.run.batch_size, p.run.base_lr, p.run.bn_batch_size, p.run.seed): p.run for p in planned(figure)}


def keys(figure: str) -> set[str]:
    return {point.run.key for point in planned(figure)}


def network(model: dict) -> str:
    """Class and depth; a network of torchvision's by its name there."""
    name, depth = model["_target_"].rpartition(".")[2], model.get("depth")
    return model.get("network") or (f"{name}-{depth}" if depth else name)


def settings(run: Run) -> dict:
    """All that the paper, or our reading of it, fixes for the runs of one figure."""
    optimizer, schedule, norm = run.optimizer, run.schedule, run.norm
    return {
        "network": network(run.model),
        "data": (run.data["name"], run.data["train_size"], run.data["test_size"], run.data["augment"]),
        "norm": (norm.kind, norm.layers, norm.eps, norm.memory) if norm.kind != "none" else "none",
        "optimizer": (optimizer["_target_"], optimizer["momentum"], optimizer["nesterov"]),
        "weight decay": run.weight_decay,
        "epochs": run.epochs,
        "schedule": (schedule.kind, schedule.drops, schedule.drop_factor),
        "warm-up": (schedule.warmup, schedule.warmup_start),
        "precision": run.precision,
    }


# Figure by figure


@pytest.mark.parametrize("figure", PAPER)
def test_every_run_of_a_figure_has_the_paper_s_settings(figure):
    row = PAPER[figure]
    expected = {
        "network": row.network,
        "data": (row.data, None, None, row.augment),  # None: all images
        "norm": ("batch", row.bn, 1e-5, 1280) if row.bn else "none",
        "optimizer": ("torch.optim.SGD", 0, False),
        "weight decay": row.weight_decay,
        "epochs": row.epochs,
        "schedule": ("steps", DATA[row.data][3], 0.1),
        "warm-up": (row.warmup, 1 / 32),
        "precision": "32-true",
    }
    for point in planned(figure):
        assert settings(point.run) == expected, point.run.label


@pytest.mark.parametrize("figure", PAPER)
def test_a_figure_s_runs_are_exactly_the_paper_s_points(figure):
    row = PAPER[figure]
    expected = {(m, 2.0**e, b, seed) for m, e, b in row.points for seed in row.seeds}
    assert set(runs(figure)) == expected
    assert len(planned(figure)) == len(expected) == row.runs


def test_fig14_takes_the_rates_that_the_paper_prints_for_large_sgd_batches():
    found = {(p.run.batch_size, p.run.base_lr) for p in points("fig14") if p.run.batch_size >= 256}
    assert found == {(256, 2**-10), (512, 2**-10), (1024, 2**-10), (2048, 2**-9)}


# The learning rate


@pytest.mark.parametrize("figure", SWEEPS)
def test_the_learning_rate_of_a_sweep_turns_where_the_paper_says(figure):
    updates, expected = FACTORS[PAPER[figure].epochs, PAPER[figure].warmup]
    point = next(p for p in planned(figure) if p.run.batch_size == 128)
    assert point.updates == updates
    found = {update: factor(point.run.schedule, update, updates) for update in expected}
    assert found == pytest.approx(expected, rel=1e-12, abs=0)


# Figure against figure


@pytest.mark.parametrize(
    ("figure", "other", "change"),
    [
        ("fig06", "fig05", lambda run: {"norm": replace(run.norm, layers="conv")}),
        ("fig07", "fig08", lambda run: {"data": run.data | {"augment": False}}),
        ("fig10", "fig08", lambda run: {"schedule": replace(run.schedule, warmup=0.05)}),
        ("fig11", "fig09", lambda run: {"schedule": replace(run.schedule, warmup=0.05)}),
        ("fig17", "fig08", lambda run: {"epochs": 41}),
        ("fig18", "fig08", lambda run: {"epochs": 164}),
    ],
)
def test_a_figure_is_another_but_for_one_setting(figure, other, change):
    assert runs(figure) == {point: replace(run, **change(run)) for point, run in runs(other).items()}


def test_no_two_sweeps_share_a_run():
    assert len(set().union(*map(keys, SWEEPS))) == sum(PAPER[figure].runs for figure in SWEEPS)


def test_the_curves_of_fig04_are_runs_of_fig07():
    assert keys("fig04") < keys("fig07")


@pytest.mark.parametrize(
    ("figure", "sweep", "sgd_batches"),
    [
        ("fig13a", "fig08", {8, 16, 32, 64, 128, 256, 512}),
        ("fig13b", "fig09", {8, 16, 32, 64, 128, 256, 512}),
        ("fig14", "fig12", {16, 32, 64, 128}),
    ],
)
def test_the_right_end_of_a_bn_batch_curve_is_a_run_of_the_sweep(figure, sweep, sgd_batches):
    """At equal η̃; every other point of the curve is a run of its own."""
    ends = [point.run for point in planned(figure) if point.run.bn_batch_size is None]
    assert {run.batch_size for run in ends} == sgd_batches
    assert {run.key for run in ends} == keys(figure) & keys(sweep)
