"""The committed numbers of `make reproduce` catch training that is broken on purpose, and nothing else."""

import copy
import json
from dataclasses import replace

import pytest
import reproduce

from smallbatch.data import arrays
from smallbatch.models.norm import GhostBatchNorm
from smallbatch.training import module

pytestmark = pytest.mark.trains

COMMITTED = json.loads(reproduce.NUMBERS.read_text(encoding="utf-8"))


def departs(name):
    """What the steps of one case, trained now, differ in from the committed numbers."""
    now = reproduce.steps(*reproduce.CASES[name])
    return reproduce.depart({name: COMMITTED["steps"][name]}, {name: now}, reproduce.TOLERANCE)


def test_every_case_is_committed():
    assert COMMITTED["steps"].keys() == reproduce.CASES.keys()
    assert set(COMMITTED["grid"]["counts"]) <= {"finished", "diverged"}
    assert COMMITTED["repetitions"] >= 3


def test_unbroken_nothing_departs():
    assert departs("ghost groups of 4") == []


def the_mean_in_place_of_the_sum(monkeypatch):
    init = module.SmallBatch.__init__

    def changed(self, run, *sizes):
        init(self, run, *sizes)
        self.run = replace(run, base_lr=run.base_lr / run.batch_size)

    monkeypatch.setattr(module.SmallBatch, "__init__", changed)
    return "resnet8, none", "rate departs from update 1"


def groups_mixed(monkeypatch):
    forward = GhostBatchNorm.forward

    def changed(self, x):
        order = list(range(0, len(x), 2)) + list(range(1, len(x), 2))
        y = forward(self, x[order])
        back = sorted(range(len(order)), key=order.__getitem__)
        return y[back]

    monkeypatch.setattr(GhostBatchNorm, "forward", changed)
    return "ghost groups of 4", "loss departs from update 1"


def schedule_dropped(monkeypatch):
    monkeypatch.setattr("smallbatch.training.schedule.factor", lambda schedule, update, total: 1.0)
    return "resnet8, none", "rate departs from update 16"


def augmentation_seed_reused(monkeypatch):
    draw = arrays.draw_shifts
    monkeypatch.setattr(arrays, "draw_shifts", lambda seed, epoch, count: draw(seed, 0, count))
    return "second epoch, augmented", "loss departs from update 31"


def running_statistics_wrong(monkeypatch):
    monkeypatch.setattr(GhostBatchNorm, "_share", lambda self, groups, count: 0.1)
    return "resnet8, batch", "test_loss departs"


BREAKS = [
    the_mean_in_place_of_the_sum,
    groups_mixed,
    schedule_dropped,
    augmentation_seed_reused,
    running_statistics_wrong,
]


@pytest.mark.parametrize("broken", BREAKS)
def test_broken_on_purpose_it_departs(broken, monkeypatch):
    name, expected = broken(monkeypatch)
    assert any(expected in line for line in departs(name)), departs(name)


def test_a_verdict_a_count_or_a_score_that_departs_is_told():
    old = COMMITTED["grid"]
    spread = COMMITTED["deviation"]
    assert reproduce.depart_grid(old, old, spread) == []
    new = copy.deepcopy(old)
    new["verdicts"][next(iter(new["verdicts"]))] = "something else"
    new["counts"]["finished"] -= 1
    assert len(reproduce.depart_grid(old, new, spread)) == 2
    few, many = (dict(list(old["scores"].items())[:n]) for n in (4, 12))
    for some, told in ((few, 0), (many, 12)):
        off = old["scores"] | {label: score + 3 * spread[label] for label, score in some.items()}
        lines = reproduce.depart_grid(old, old | {"scores": off}, spread)
        assert len(lines) == told
        assert all("apart" in line for line in lines)


def test_a_case_that_is_new_or_shorter_is_told():
    steps = {"a": {"loss": [1.0, 2.0]}, "b": {"loss": [1.0]}}
    assert reproduce.depart(steps, {"a": {"loss": [1.0]}}, 0.0) == ["b: only there", "a: loss: 2 values before, 1 now"]
    assert reproduce.depart(steps, steps, 0.0) == []
    (line,) = reproduce.depart({"a": {"loss": [1.0, 2.0]}}, {"a": {"loss": [1.0, 2.1]}}, 1e-8)
    assert line == "a: loss departs from update 2 on: 2.0 before, 2.1 now (relative 4.8e-02)"


@pytest.mark.parametrize("now", [float("nan"), float("inf"), -1.0])
def test_a_loss_that_is_no_number_any_more_departs(now):
    assert len(reproduce.depart({"a": {"loss": [1.0]}}, {"a": {"loss": [now]}}, 1e-8)) == 1


def test_nothing_of_the_package_stays_changed():
    from smallbatch.data import blocks

    before = blocks.normalise
    reproduce.steps(["model=alexnet"], 2)
    assert blocks.normalise is before
