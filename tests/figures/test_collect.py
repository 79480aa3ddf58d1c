"""A figure's runs are found whatever their seed, what is missing is named, and each figure shows what it should."""

from dataclasses import replace

import numpy as np
import pytest

from smallbatch.ended import Ended
from smallbatch.errors import ConfigError
from smallbatch.figures import draw
from smallbatch.figures.collect import collect
from smallbatch.grids.best_rates import best_rates
from smallbatch.grids.expand import expand
from smallbatch.store import Record

EMPTY = Ended({})


def rates(words, sizes):
    return {m: 2.0**-8 for m in sizes}


def record(run, score: float = 0.5, status: str = "finished", epochs: int | None = None) -> Record:
    columns = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "train_seconds")
    rows = [
        {"epoch": e, "updates": e, "images": e, "eval_seconds": 0.5} | dict.fromkeys(columns, score)
        for e in range(1, (epochs or run.epochs) + 1)
    ]
    result = {"status": status, "score": score, "chance": 0.1, "train_images": 1024, "test_images": 360, "seconds": 3.0}
    return Record(run, rows, result)


def runs_of(name: str, scale: str = "smoke", *words: str) -> list:
    return [p.run for p in expand([f"figure={name}", f"scale={scale}", *words], EMPTY.describe, rates).points]


def ended(*records: Record) -> Ended:
    return Ended({r.run.key: r for r in records})


def test_every_seed_of_a_figure_s_points_is_found_and_only_what_has_none_is_missing():
    some = runs_of("fig07")
    other = [replace(run, seed=7) for run in some]
    store = ended(*map(record, some[:4]), *map(record, other[2:6]), *map(record, runs_of("fig08")))
    found = collect("fig07", "smoke", [], store)
    assert set(found.frame["key"]) == {run.key for run in [*some[:4], *other[2:6]]}
    assert found.missing == some[6:]
    strict = collect("fig07", "smoke", ["seed=0"], store)
    assert set(strict.frame["key"]) == {run.key for run in some[:4]}
    assert strict.missing == some[4:]


def test_runs_of_one_name_that_saw_other_images_are_not_taken_for_a_figure_s(tmp_path):
    words = ["data=digits", "model=resnet8", f"data.root={tmp_path}"]
    own, larger = (
        [p.run for p in expand(["figure=fig01", "scale=smoke", *words, *more]).points]
        for more in ([], ["data.enlarge=2"])
    )
    assert not {run.key for run in own} & {run.key for run in larger}
    store = ended(*map(record, own[:2]), *map(record, larger))  # most runs of this name saw the larger ones
    found = collect("fig01", "smoke", words, store)
    assert set(found.frame["key"]) == {run.key for run in own[:2]}
    assert found.missing == own[2:]
    # Under another name the same images are found where they are here.
    assert not collect("fig02", "smoke", [f"data.root={tmp_path}"], ended(record(larger[0]))).frame.size
    named = [p.run for p in expand(["figure=fig02", "scale=smoke", f"data.root={tmp_path}"]).points]
    renamed = [replace(run, data={**run.data, "name": "digits"}) for run in named]
    assert collect("fig02", "smoke", [f"data.root={tmp_path}"], ended(*map(record, renamed))).missing == []


def test_a_figure_of_two_seeds_lacks_the_second_until_any_second_one_is_there():
    both = runs_of("fig12")
    first = [run for run in both if run.seed == 0]
    assert len(collect("fig12", "smoke", [], ended(*map(record, first))).missing) == len(first)
    more = [replace(run, seed=5) for run in first]
    assert collect("fig12", "smoke", [], ended(*map(record, [*first, *more]))).missing == []


def test_the_best_rate_is_over_all_seeds_with_ties_to_the_smaller():
    sweep = runs_of("fig08")
    scores = {2.0**-10: [0.6, 0.8], 2.0**-8: [0.9, 0.5], 2.0**-6: [0.7, 0.6]}
    records = [record(replace(run, seed=s), scores[run.base_lr][s]) for run in sweep for s in (0, 1)]
    find = best_rates(ended(*records), EMPTY.describe)
    assert find(["figure=fig08", "scale=smoke"], [16, 128]) == {16: 2.0**-10, 128: 2.0**-10}
    records = [r for r in records if r.run.batch_size != 16 or r.run.base_lr != 2.0**-6]
    find = best_rates(ended(*records), EMPTY.describe)
    assert find(["figure=fig08", "scale=smoke"], [128]) == {128: 2.0**-10}
    with pytest.raises(ConfigError, match=r"1 of 6 runs are missing.*train.py -m figure=fig08 scale=smoke batch_size="):
        find(["figure=fig08", "scale=smoke"], [16, 128])


def test_figure_13_is_drawn_at_the_rates_of_figure_8_and_its_right_ends_are_figure_8_s_runs():
    sweep = [record(run, 0.9 if run.base_lr == 2.0**-8 else 0.5) for run in runs_of("fig08")]
    ghost = [record(run, 0.8) for run in runs_of("fig13a")]
    found = collect("fig13a", "smoke", [], ended(*sweep, *ghost[:-1]))
    ends = found.frame[found.frame["bn_batch_size"] == found.frame["batch_size"]]
    assert set(ends["key"]) <= {r.run.key for r in sweep}
    figure = draw.draw(found)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["128", "16"]
    assert axes.get_legend().get_title().get_text() == "SGD batch m"
    assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"] == [[2, 4, 16], [2, 4, 16, 128]]


def test_a_stand_in_says_so_in_title_and_caption():
    found = collect("fig12", "smoke", [], ended(*map(record, runs_of("fig12"))))
    figure = draw.draw(found)
    assert "(stand-in, not ImageNet)" in figure._suptitle.get_text().replace("\n", " ")
    assert figure._supxlabel.get_text().startswith("Stand-in, not ImageNet: ResNet-8 on digits.")


def test_no_network_of_ones_own_is_a_stand_in():
    runs = runs_of("fig12", "smoke", "model=alexnet")
    assert collect("fig12", "smoke", ["model=alexnet"], ended(*map(record, runs))).stand_in == ""


def test_settings_are_told_apart_by_their_data_where_these_differ():
    parts = [collect(n, "smoke", [], ended(*map(record, runs_of(n)))) for n in ("fig05", "fig07", "fig08")]
    labels = [text.get_text() for text in draw.best(parts, "Title", "note").axes[0].get_legend().get_texts()]
    assert labels == ["fig05: alexnet BN, digits", "fig07: resnet32 BN", "fig08: resnet32 BN, augmented"]


def test_an_incomplete_figure_says_how_much_is_there():
    runs = runs_of("fig05")
    figure = draw.draw(collect("fig05", "smoke", [], ended(*map(record, runs[:4]))))
    assert figure._supxlabel.get_text().startswith("INCOMPLETE: 4 of 9 runs.")


def test_convergence_has_a_curve_a_batch_size_over_epochs_and_a_cross_where_one_diverged():
    kept, lost = runs_of("fig04")[:2]
    ending = record(lost, 0.4, "diverged", epochs=2)
    ending.rows[-1]["train_loss"] = float("nan")
    found = collect("fig04", "smoke", [], ended(record(kept), ending))
    train, test = draw.draw(found).axes
    for axes in (train, test):
        curves = [line for line in axes.lines if line.get_marker() == "o"]
        assert [list(line.get_xdata()) for line in curves] == [[1, 2, 3, 4]] * 2
        assert [list(line.get_ydata()) for line in curves] == [[50.0] * 4, [40.0, 10.0, 10.0, 10.0]]
        crosses = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "x"]
        assert crosses == [[], [2]]


def test_the_summaries_take_the_best_over_rates_and_the_reliable_ones():
    scores = {2: [0.9, 0.95, 0.3], 16: [0.8, 0.7, 0.2], 128: [0.5, 0.2, 0.1]}  # by η̃, rising
    runs = runs_of("fig05")
    lrs = sorted({run.base_lr for run in runs})
    part = collect("fig05", "smoke", [], ended(*[record(r, scores[r.batch_size][lrs.index(r.base_lr)]) for r in runs]))
    (axes,) = draw.best([part], "Title", "note").axes
    assert [list(np.round(line.get_ydata())) for line in axes.lines] == [[95, 80, 50], [80, 50]]
    assert axes.lines[1].get_markerfacecolor() == "white"  # the best at the lowest η̃
    panel = draw.rate_range([part], "Title", "note").axes[0]
    dots = [(x, y) for line in panel.lines if line.get_marker() == "o" for x, y in zip(*line.get_data(), strict=True)]
    assert dots == [(2, lrs[1]), (16, lrs[0])]  # reliable from chance + ½ (0.95 − 0.1) on: m = 128 never is


def test_a_rate_that_fails_between_two_that_train_is_a_hole_in_the_range():
    runs = [run for run in runs_of("fig05") if run.batch_size == 16]
    part = collect("fig05", "smoke", [], ended(*map(record, runs, [0.9, 0.12, 0.9])))
    panel = draw.rate_range([part], "Title", "note").axes[0]
    bars = [tuple(line.get_ydata()) for line in panel.lines if line.get_linewidth() == 7]
    (_, end), (start, _) = sorted(bars)
    assert end < runs[1].base_lr < start


def test_where_nothing_is_learnt_no_range_is_drawn():
    scores = [0.1 + 0.005 * (i % 3) for i in range(9)]
    part = collect("fig05", "smoke", [], ended(*map(record, runs_of("fig05"), scores)))
    panel = draw.rate_range([part], "Title", "note").axes[0]
    assert [line for line in panel.lines if line.get_linewidth() == 7] == []


def test_what_a_figure_cannot_show_is_refused():
    some = collect("fig05", "smoke", [], ended(*map(record, runs_of("fig05"))))
    with pytest.raises(ConfigError, match="one η̃ for each SGD batch; choose one with base_lr=…, of 2\\^-11, 2\\^-9"):
        draw.bn_batch(some.frame, "Figure 13a", "note")


def test_the_sketch_is_sgd_of_one_example_a_step_and_of_all_in_one():
    random = np.random.default_rng(0)
    examples, targets, base_lr = random.normal(size=(5, 2)), random.normal(size=5), 0.15
    small, large = draw.descend(examples, targets, base_lr)
    theta = small[0]
    gradients = [(x @ theta - y) * x for x, y in zip(examples, targets, strict=True)]
    np.testing.assert_allclose(large, [theta, theta - base_lr * np.sum(gradients, axis=0)], rtol=1e-12)
    for before, after, x, y in zip(small[:-1], small[1:], examples, targets, strict=True):
        np.testing.assert_allclose(after, before - base_lr * (x @ before - y) * x, rtol=1e-12)
    assert len(small) == len(examples) + 1
