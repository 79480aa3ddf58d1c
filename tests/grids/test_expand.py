"""From a command line or a figure to runs: each point once, the undefined listed, mistakes refused."""

import json
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from smallbatch.compose import add_config_dir, compose
from smallbatch.config import Figure
from smallbatch.errors import ConfigError
from smallbatch.grids.expand import Grid, expand, figure_config, figure_names, stages
from smallbatch.run import make_run


@pytest.fixture
def grid(root):
    """Expand a command line on the session's data."""
    return lambda *arguments: expand([f"data.root={root}", *arguments])


def values(grid: Grid, *names: str) -> list[tuple]:
    return [tuple(getattr(point.run, name) for name in names) for point in grid.points]


# Command lines


def test_a_command_line_is_the_product_of_its_axes_each_point_once(grid):
    found = values(grid("batch_size=2,4,8", "base_lr=1/4096,2**-8", "seed=0,1"), "batch_size", "base_lr", "seed")
    assert len(found) == 12
    assert set(found) == set(product([2, 4, 8], [2.0**-12, 2.0**-8], [0, 1]))


def test_one_run_is_a_grid_of_one(grid, root):
    (point,) = grid("batch_size=4").points
    assert point.run == make_run(compose([f"data.root={root}", "batch_size=4"]))


def test_groups_multiply_like_values_and_bring_their_own_settings(grid):
    found = grid("model=alexnet,resnet8", "norm=none,batch", "batch_size=8,16").points
    seen = [(p.run.model["name"], p.run.norm.kind, p.run.batch_size, p.run.weight_decay) for p in found]
    decay = {"alexnet": 5e-4, "resnet8": 1e-4}
    expected = {(m, n, b, decay[m]) for m, n, b in product(decay, ["none", "batch"], [8, 16])}
    assert len(seen) == 8
    assert set(seen) == expected


def test_every_group_is_an_axis_and_so_are_new_arguments_of_one_s_own_network(grid):
    found = values(grid("stop=none,early_stopping", "loss=cross_entropy", "callbacks=[lr_monitor]"), "stop")
    assert [stop and stop["patience"] for (stop,) in found] == [None, 5]
    own = "model._target_=smallbatch.models.resnet.ResNet"
    assert [model["depth"] for (model,) in values(grid(own, "+model.depth=8,14"), "model")] == [8, 14]


def test_ranges_and_lists_as_values_are_axes(grid):
    assert values(grid("seed=range(0,3)"), "seed") == [(0,), (1,), (2,)]
    drops = [p.run.schedule.drops for p in grid("schedule.drops=[0.25,0.5,0.75],[0.9],[]").points]
    assert drops == [[0.25, 0.5, 0.75], [0.9], []]


def test_two_ways_to_write_a_point_are_one_run(grid):
    assert len(grid("base_lr=1/512,2**-9,0.001953125").points) == 1
    assert len(grid("norm=batch", "batch_size=8", "bn_batch_size=8,null").points) == 1
    assert len(grid("data.train_size=1437,null").points) == 1


def test_a_setting_that_must_be_given_may_be_given_in_a_grid(grid, write_npz):
    points = grid("data=arrays", f"data.path={write_npz()}", "batch_size=2,4").points
    assert [(p.run.data["name"], p.run.batch_size) for p in points] == [("arrays", 2), ("arrays", 4)]


def test_a_point_s_overrides_compose_to_its_run(grid):
    """Launchers hand these to other processes."""
    found = grid("model=alexnet,resnet8", "norm=batch", "batch_size=4,8", "base_lr=1/512", "schedule.drops=[0.5]")
    assert len(found.points) == 4
    for point in found.points:
        assert make_run(compose(point.overrides)) == point.run


def test_keys_are_unique_and_updates_count_whole_batches(grid):
    points = grid("batch_size=2,1000,1437", "epochs=3,5", "data.train_size=null,1001").points
    assert len({p.run.key for p in points}) == len(points) == 10
    for point in points:
        whole = point.run.data["train_size"] or 1437
        assert point.updates == point.run.epochs * (whole // point.run.batch_size)


def test_order_does_not_change_the_set(grid):
    arguments = ["batch_size=2,4", "norm=none,batch", "seed=0,1"]
    keys = [{p.run.key for p in grid(*some).points} for some in (arguments, arguments[::-1])]
    assert keys[0] == keys[1]


# Undefined points


def test_undefined_points_are_left_out_and_listed_with_their_reason(grid):
    found = grid("norm=batch", "batch_size=8", "bn_batch_size=2,3,8")
    assert values(found, "batch_size", "bn_batch_size") == [(8, 2), (8, None)]
    ((overrides, reason),) = found.undefined
    assert "bn_batch_size=3" in overrides.split()
    assert "1, 2, 4, 8" in reason


def test_every_point_of_the_product_is_either_a_run_or_undefined(grid):
    found = grid("norm=batch", "batch_size=4,6,2000", "bn_batch_size=2,3,4")
    assert set(values(found, "batch_size", "bn_batch_size")) == {(4, 2), (4, None), (6, 2), (6, 3)}
    assert len(found.points) + len(found.undefined) == 9


def test_a_grid_without_a_valid_point_is_refused_saying_every_reason_once(grid):
    with pytest.raises(ConfigError, match="no point of this grid") as caught:
        grid("norm=batch", "batch_size=8", "bn_batch_size=3,5", "seed=0,1")
    assert str(caught.value).count("bn_batch_size=3 does not divide") == 1
    assert str(caught.value).count("bn_batch_size=5 does not divide") == 1


def test_a_failing_download_is_tried_once_and_not_for_every_point(tmp_path, monkeypatch):
    attempts = []

    def fail(*args, **kwargs):
        attempts.append(args)
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    with pytest.raises(ConfigError, match=r"cifar-10-binary\.tar\.gz"):
        expand([f"data.root={tmp_path}", "data=cifar10", "batch_size=2,4", "seed=0,1"])
    assert len(attempts) == 1


# Mistakes


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("batch_sise=2,4", "did you mean batch_size?"),
        ("modle=alexnet", "did you mean model?"),
        ("data.train_siz=64", "did you mean data.train_size?"),
        ("optimizer.momentm=0.9,0", "did you mean optimizer.momentum?"),
        ("zzzz=1", "--help"),
    ],
)
def test_an_unknown_key_is_refused_with_a_hint(grid, argument, hint):
    with pytest.raises(ConfigError, match=f"there is no setting {argument.partition('=')[0]}") as caught:
        grid("batch_size=2", argument)
    assert hint in str(caught.value)


@pytest.mark.parametrize("argument", ["batch_size=2,abc", "seed=0,1.5", "data.augment=perhaps", "norm.kind=layer"])
def test_a_wrong_type_is_refused_naming_the_argument(grid, argument):
    with pytest.raises(ConfigError, match=argument.partition("=")[0]) as caught:
        grid(argument)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["model=alexnet,vgg", "data=mnist", "figure=fig99", "scale=reducedd"])
def test_an_unknown_choice_is_refused(grid, argument):
    with pytest.raises(ConfigError, match=r"vgg|mnist|fig99|reducedd"):
        grid("figure=fig01", argument)


def test_a_scale_without_a_figure_is_refused(grid):
    with pytest.raises(ConfigError, match="scale=smoke"):
        grid("scale=smoke", "batch_size=2,4")


def test_a_glob_is_refused(grid):
    with pytest.raises(ConfigError, match="neither globs nor intervals; list the values"):
        grid("model=glob(*)")


# Figure 1


def table(batch_sizes: range, rates: range) -> set[tuple[int, float]]:
    """Every pair of exponents, as the paper lists them: m = 2^i, η̃ = 2^−j."""
    return {(1 << i, 1 / (1 << j)) for i in batch_sizes for j in rates}


FIG01 = {
    # scale: pairs, how many, data, train and test size, epochs
    "paper": (table(range(1, 12), range(0, 13)), 11 * 13, "cifar10", None, None, 82),
    "smoke": (table(range(1, 10, 2), range(6, 13)), 5 * 7, "digits", 1024, None, 10),
}


@pytest.mark.parametrize("scale", FIG01)
def test_figure_1_names_exactly_the_points_of_its_table(grid, scale):
    expected, count, data, train_size, test_size, epochs = FIG01[scale]
    found = grid("figure=fig01", f"scale={scale}")
    runs = values(found, "batch_size", "base_lr", "seed")
    assert len(runs) == len(expected) == count
    assert set(runs) == {(*pair, 0) for pair in expected}
    assert not found.undefined
    assert [figure.name for figure in found.figures] == ["fig01"]
    for point in found.points:
        run = point.run
        assert (run.model["name"], run.norm.kind, run.bn_batch_size) == ("alexnet", "none", None)
        assert (run.optimizer["name"], run.optimizer["momentum"], run.weight_decay) == ("sgd", 0, 5e-4)
        assert (run.schedule.kind, run.schedule.drops, run.schedule.warmup) == ("steps", [0.5, 0.75], 0)
        assert (run.data["name"], run.data["augment"], run.epochs) == (data, False, epochs)
        assert run.data["train_size"] == train_size
        assert run.data["test_size"] in (None, test_size)


def test_reduced_figure_1_is_of_10240_training_and_5000_test_images(grid):
    point = grid("figure=fig01", "scale=reduced", "batch_size=2", "base_lr=1/512").points[0]
    # The session's stand-in for CIFAR-10 has as many images.
    assert (point.images.train_size, point.images.test_size) == (10_240, 5_000)
    assert {"data.train_size=10240", "data.test_size=5000"} <= set(point.overrides)


def test_a_reduced_figure_searches_with_the_seeds_of_the_first_look(grid):
    found = grid("figure=fig01", "scale=reduced")
    assert set(values(replace(found, points=found.kinds), "batch_size", "seed")) == set(
        product([2, 8, 32, 128, 512], [1, 2, 3])
    )
    assert {m for m, _ in values(found, "batch_size", "seed")} == {2}  # where the search starts


def test_the_command_line_replaces_a_figure_s_axes_and_adds_others(grid):
    found = grid("figure=fig01", "scale=smoke", "batch_size=4", "base_lr=1/2,1/4", "seed=0,1")
    assert set(values(found, "batch_size", "base_lr", "seed")) == set(product([4], [0.5, 0.25], [0, 1]))
    assert {p.run.model["name"] for p in grid("figure=fig01", "scale=smoke", "model=resnet8").points} == {"resnet8"}
    assert {p.run.data["name"] for p in grid("figure=fig01", "data=digits").points} == {"digits"}


def test_figures_that_share_runs_train_them_once(grid):
    twice = grid("figure=fig01,fig01", "scale=smoke")
    assert len(twice.points) == 35
    both = grid("figure=fig01", "scale=smoke,reduced", "data.train_size=1024", "base_lr=1/512,1/1024")
    assert len(both.points) == 5 * 2 * 4


@pytest.fixture
def composed(monkeypatch):
    """Compose by another function, for figures that are in no file."""
    figure_config.cache_clear()
    yield lambda function: monkeypatch.setattr("smallbatch.grids.expand.compose", function)
    figure_config.cache_clear()


def test_a_figure_is_a_union_of_products_and_later_settings_win(root, composed):
    """common < the scale's settings (smoke: 10 epochs) < each product of the figure's scale < the command line."""
    figure = Figure(
        name="drawn",
        title="Three products that share runs",
        common={"batch_size": [2, 4], "epochs": 1, "seed": 1, "norm": "batch"},
        scales={
            "smoke": [
                {"base_lr": 0.5, "seed": [5]},
                {"base_lr": [0.5, 0.25], "batch_size": 4, "seed": 5},
                {"norm": "none", "base_lr": 1, "epochs": 2},
            ],
            "reduced": {"base_lr": 1},
        },
    )

    def with_figure(overrides: list[str]) -> DictConfig:
        cfg = compose([o for o in overrides if o != "figure=drawn"])
        cfg.figure = figure
        return cfg

    composed(with_figure)

    def found(*arguments: str) -> list[tuple]:
        grid = expand([f"data.root={root}", "figure=drawn", "scale=smoke", *arguments])
        return sorted((p.run.norm.kind, *rest) for p, rest in zip(grid.points, values(grid, *names), strict=True))

    names = ("batch_size", "base_lr", "seed", "epochs")
    none = [("none", 2, 1, 1, 2), ("none", 4, 1, 1, 2)]
    assert found() == [("batch", 2, 0.5, 5, 10), ("batch", 4, 0.25, 5, 10), ("batch", 4, 0.5, 5, 10), *none]
    assert found("seed=6", "norm=none", "epochs=4") == [
        ("none", 2, 0.5, 6, 4), ("none", 2, 1, 6, 4), ("none", 4, 0.25, 6, 4), ("none", 4, 0.5, 6, 4),
        ("none", 4, 1, 6, 4),
    ]  # fmt: skip
    assert found("batch_size=8", "epochs=3", "base_lr=0.5", "seed=5") == [
        ("batch", 8, 0.5, 5, 3),
        ("none", 8, 0.5, 5, 3),
    ]
    with pytest.raises(ConfigError, match="has no scale=paper; it has smoke, reduced"):
        expand([f"data.root={root}", "figure=drawn"])


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("title", "figure=drawn: .*title"),
        ("axes", r"figure=drawn: scales\.smoke must be axes"),
        ("scales", "figure=drawn: has no scales"),
        ("setting", r"^figure=drawn scale=smoke: epoch=3: there is no setting epoch; did you mean epochs\?"),
    ],
)
def test_a_figure_that_lacks_something_is_refused_in_one_line(missing, message, composed):
    given = {"axes": {"smoke": 3}, "scales": {}, "setting": {"smoke": {"epoch": 3}}}
    figure = OmegaConf.structured(Figure(name="drawn", title="t", scales=given.get(missing, {"smoke": {}})))
    if missing == "title":
        figure.title = "???"

    def with_figure(overrides: list[str]) -> DictConfig:
        cfg = compose([])
        cfg.figure = figure
        return cfg

    composed(with_figure)
    with pytest.raises(ConfigError, match=message) as caught:
        expand(["figure=drawn", "scale=smoke"])
    assert "\n" not in str(caught.value)


def test_all_is_every_figure_and_dependent_ones_are_trained_last():
    names = figure_names(["all"])
    assert {"fig01", "fig13a", "fig15", "resnet32_nobn", "sgd_paths"} <= set(names)
    assert "all" not in names
    first, last = stages(["figure=all", "scale=smoke", "seed=1"])
    assert last == ["figure=fig13a,fig13b,fig14", "scale=smoke", "seed=1"]
    assert first[1:] == last[1:]
    trained = first[0].removeprefix("figure=").split(",")
    assert set(trained) == set(names) - {"fig13a", "fig13b", "fig14", "fig15", "fig16", "sgd_paths"}
    assert stages(["figure=fig13a,fig08", "base_lr=2**-8"]) == [["figure=fig13a,fig08", "base_lr=2**-8"]]
    assert stages(["batch_size=2,4"]) == [["batch_size=2,4"]]
    with pytest.raises(ConfigError, match=r"trains nothing.* fig01, .*python src/figures.py figure=fig15"):
        stages(["figure=fig15"])


def test_the_best_rates_of_another_figure_become_one_point_a_batch_size(grid, root):
    asked = []

    def rates(words, sizes):
        asked.append((words, sizes))
        return {16: 0.25, 128: 0.5}

    words = [f"data.root={root}", "figure=fig13a", "scale=smoke", "seed=3", "bn_batch_size=4,16,128", "epochs=2"]
    found = expand(words, rates=rates)
    assert sorted(values(found, "batch_size", "bn_batch_size", "base_lr", "seed"), key=str) == [
        (128, 16, 0.5, 3), (128, 4, 0.5, 3), (128, None, 0.5, 3), (16, 4, 0.25, 3), (16, None, 0.25, 3)
    ]  # fmt: skip
    assert asked == [(["figure=fig08", "scale=smoke", f"data.root={root}", "epochs=2"], [16, 128])]
    explicit = expand([*words, "base_lr=1/8"])
    assert {p.run.base_lr for p in explicit.points} == {0.125}
    with pytest.raises(ConfigError, match="best η̃ of fig08's runs; give base_lr="):
        expand(words)


def test_paths_in_a_figures_yaml_are_what_they_say(write_npz, tmp_path):
    """Whatever letters they have; through no command line's grammar."""
    names = ["epoch=3.npz", "run(1).npz", "a,b.npz", 'it\'s "é日本" & more.npz', "[x] {y}.npz"]
    for number, name in enumerate(names):
        write_npz(name, classes=np.array(list("abcdefghij")[: 4 + number]))
    (tmp_path / "figure").mkdir()
    values = json.dumps([str(tmp_path / name) for name in names])
    (tmp_path / "figure" / "odd_paths.yaml").write_text(
        f"""
defaults:
  - /schema/figure@_here_
name: odd_paths
title: Odd paths
common: {{model: resnet8, data: arrays, epochs: 1, data.root: "{tmp_path}/a = (root)"}}
scales:
  paper: {{batch_size: 4, base_lr: 1/512, data.path: {values}}}
  smoke: {{batch_size: 4, base_lr: 1/512, data: arrays, data.path: {json.dumps(str(tmp_path / names[0]))}}}
""",
        encoding="utf-8",
    )
    add_config_dir(tmp_path)
    points = expand(["figure=odd_paths"]).points
    assert [point.images.path.name for point in points] == names
    assert [point.images.folder.parent for point in points] == [tmp_path / "a = (root)" / "unpacked"] * 5
    again = [make_run(compose(point.overrides)) for point in points]  # as a worker composes it
    assert again == [point.run for point in points]
    assert (
        expand(["figure=odd_paths", "scale=smoke", "data.train_size=null", "epochs=1"]).points[0].run == points[0].run
    )


def test_a_list_in_a_figures_yaml_is_an_axis_unless_the_setting_is_a_list(tmp_path, monkeypatch):
    one, axis = [0.5, 0.75], [[0.5], [0.25, 0.75], []]
    sizes = {"batch_size": [4, 8], "base_lr": "1/512"}
    scales = {"paper": [sizes | {"schedule.drops": one, "seed": 1}, sizes | {"schedule.drops": axis, "seed": 2}]}
    common = {"data": "folder", "data.path": str(tmp_path), "data.resize": [30, 40], "epochs": 1}
    figure = Figure("lists", "t", common=common, scales=scales)
    monkeypatch.setattr("smallbatch.grids.expand.figure_config", {"lists": figure}.get)
    images = {"identity": {"name": "x"}, "train_size": 100, "test_size": 10, "name": "x", "notice": ""}
    points = expand(["figure=lists"], lambda data: SimpleNamespace(**images)).points
    found = [(p.run.seed, p.run.batch_size, p.run.schedule.drops) for p in points]
    assert found == [(1, 4, one), (1, 8, one), *((2, m, drops) for m in (4, 8) for drops in axis)]
    assert {tuple(point.settings["data"]["resize"]) for point in points} == {(30, 40)}
