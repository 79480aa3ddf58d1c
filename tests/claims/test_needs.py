"""The command beside a verdict names the runs that it lacks: expanded, they are those and no others."""

import shlex
from dataclasses import replace

import pytest
from synthetic import figure

from smallbatch.claims.cells import LOOKS, Untried
from smallbatch.claims.judge import judge
from smallbatch.claims.needs import Need, merged, more_cells, more_seeds, whole
from smallbatch.ended import Ended
from smallbatch.figures.collect import collect
from smallbatch.grids.expand import expand
from smallbatch.store import Record

EMPTY = Ended({})


def expanded(command):
    python, script, multirun, *words = shlex.split(command)
    assert (python, script, multirun) == ("python", "src/train.py", "-m")
    return [point.run for point in expand(words).points]


def record(run, score):
    row = {"epoch": 1, "updates": 1} | dict.fromkeys(("train_accuracy", "test_accuracy"), score)
    result = {"status": "finished", "score": score, "chance": 0.1, "seconds": 1.0}
    return Record(run, [row], result | {"train_images": 1024, "test_images": 360})


def smoke(*seeds, but=0, words=()):
    """Figure 1's runs at smoke, in which the best η̃ of every m is the highest tried."""
    changed = [f"seed={','.join(map(str, seeds))}", *words]
    runs = [point.run for point in expand(["figure=fig01", "scale=smoke", *changed]).points]
    return [record(run, 0.8 + run.base_lr * 4 + run.seed / 1000) for run in runs[but:]]


def verdict(records, claim="C4", words=()):
    ended = Ended({r.run.key: r for r in records})
    rows = judge({"fig01": collect("fig01", "smoke", list(words), ended)}, words)
    return next(v for row in rows if row.id == claim for v in row.verdicts if v.column == "fig01")


def lacking(found, records):
    there = {r.run.key for r in records}
    return [run for need in found.needs for run in expanded(need.command) if run.key not in there]


def test_seeds(tmp_path):
    records = smoke(0)
    found = verdict(records)
    assert (found.state, found.why) == ("undecided", "seeds")
    assert [need.command for need in found.needs] == ["python src/train.py -m figure=fig01 scale=smoke seeds=3"]
    assert {run.seed for run in lacking(found, records)} == {1, 2, 3}
    assert len(lacking(found, records)) == 3 * len(records)


def test_words_that_change_a_figure_stay():
    records = smoke(0, words=["epochs=3"])
    found = verdict(records, words=["epochs=3"])
    assert {(run.epochs, run.seed) for run in lacking(found, records)} == {(3, 1), (3, 2), (3, 3)}


def test_an_octave_further_at_that_m():
    records = smoke(1, 2, 3)
    found = verdict(records)
    assert (found.state, found.why) == ("undecided", "edge")
    runs = lacking(found, records)
    assert {run.base_lr for run in runs} == {2 * max(r.run.base_lr for r in records)}
    assert {run.seed for run in runs} == {1, 2, 3}
    assert {run.batch_size for run in runs} <= {r.run.batch_size for r in records}
    assert len(runs) == 3 * len({run.batch_size for run in runs})


def test_an_incomplete_figure():
    records = smoke(1, 2, 3, but=5)
    found = verdict(records)
    assert (found.state, found.why) == ("not trained", "incomplete")
    assert len(lacking(found, records)) == 5


def test_no_runs():
    found = verdict([])
    assert (found.state, found.why) == ("not trained", "no runs")
    assert {run.key for run in lacking(found, [])} == {r.run.key for r in smoke(1, 2, 3)}


def test_a_figure_that_takes_best_rates_comes_with_its_sweep():
    assert whole(["fig13b"], "reduced", {}, []).figures == ("fig09", "fig13b")


@pytest.mark.parametrize(("seeds", "wanted"), [((0,), 3), ((1, 2), 3), ((1, 2, 3), 5), (range(1, 7), 8)])
def test_seeds_come_at_a_look(seeds, wanted):
    (need,) = more_seeds([figure("fig01", seeds=seeds, sizes=[2])], 1, ["seed=9", "epochs=2"])
    assert need.words == ("epochs=2", f"seeds={wanted}")


def test_a_changed_criterion_asks_for_fresh_seeds():
    (need,) = more_seeds([figure("fig01", seeds=range(1, 9), sizes=[2])], 9, [])
    assert need.words == ("seed=9,10,11",)


def test_cells_for_a_changed_criterion_have_its_fresh_seeds():
    runs = {"fig01": figure("fig01", seeds=range(1, 13), sizes=[2])}
    (need,) = more_cells([Untried("fig01", 2, 2.0**-13)], 9, runs, [])
    assert need.words == ("batch_size=2", "base_lr=1/8192", "seed=9,10,11")


def test_nothing_is_wanted_after_the_last_look():
    assert more_seeds([figure("fig01", seeds=range(1, LOOKS[-1] + 1), sizes=[2])], 1, []) == []


def test_needs_that_differ_in_figures_are_one():
    needs = [Need(("a",), "paper", ()), Need(("b", "a"), "paper", ()), Need(("a",), "smoke", ())]
    assert merged(needs) == [Need(("a", "b"), "paper", ()), Need(("a",), "smoke", ())]
    assert replace(needs[0], words=("seed=0,1",)).command == "python src/train.py -m figure=a scale=paper seed=0,1"
