"""Runs become a table, a choice of rows and a figure that says what is missing; runs.py moves them about."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import figures as figures_command
import plan as plan_command
import runs as runs_command
from smallbatch import compose, store
from smallbatch.errors import ConfigError
from smallbatch.figures import draw, panels
from smallbatch.grids.expand import expand
from smallbatch.table import differences, select, table

MINE = """
defaults:
  - /schema/figure@_here_
name: mine
title: Mine
common: {model: alexnet}
scales:
  smoke: {batch_size: [2], base_lr: [2**-9], seed: [0, 1]}
"""
GRID = ["figure=fig01", "scale=smoke", "batch_size=2,8,32", "base_lr=2**-9,2**-8"]


def write(folder: Path, point, score: float, status: str = "finished", epochs: int = 2) -> None:
    row = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate"), 0.5)
    rows = [{"epoch": e, "updates": e, "images": e} | row | {"train_seconds": 1.0, "eval_seconds": 0.5} for e in (1, 2)]
    result = {"status": status, "score": score, "chance": 0.1, "train_images": 1024, "test_images": 360, "seconds": 3.0}
    path = store.folder(folder, point.run)
    path.mkdir(parents=True)
    store.write_result(path, point.run, rows[:epochs], result)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return expand([*GRID, "seed=0,1", f"data.root={root}"]).points


@pytest.fixture
def folder(tmp_path, points):
    """Every point but one, the largest m diverged."""
    for i, point in enumerate(points[:-1]):
        lost = point.run.batch_size == 32
        write(tmp_path / "runs", point, 0.1 if lost else 0.5 + i / 100, "diverged" if lost else "finished")
    return tmp_path / "runs"


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command's main with arguments; returns (exit status or message, stdout)."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        status: object = 0
        try:
            module.main()
        except SystemExit as stop:
            status = stop.code or 0
        return status, capsys.readouterr().out

    return run


def test_the_table_has_a_row_a_run_in_order_with_flattened_settings(folder, points):
    frame = table(store.ended(folder).values())
    assert len(frame) == len(points) - 1
    assert frame["setting"].nunique() == 1
    assert list(frame["batch_size"]) == sorted(frame["batch_size"])
    assert set(frame["norm"]) == {"none"}
    assert set(frame["schedule.warmup"]) == {0.0}
    assert set(frame["updates"]) == {2}
    assert set(frame["bn_batch_size"]) <= {2, 8, 32}


def test_rows_are_chosen_by_values_as_typed(folder):
    frame = table(store.ended(folder).values())
    assert len(select(frame, {"base_lr": ["1/512"], "seed": ["0"]})) == 3
    assert len(select(frame, {"batch_size": ["2", "8"], "data.augment": ["false"]})) == 8
    with pytest.raises(ConfigError, match=r"^batch_size=4: no run has that; there is 2, 32, 8$"):
        select(frame, {"batch_size": ["4"]})
    with pytest.raises(ConfigError, match=r"no such setting; did you mean batch_size\?$"):
        select(frame, {"batchsize": ["4"]})
    with pytest.raises(ConfigError, match=r"^score=0\.5: is a result, no setting; choose by --where, as score > …$"):
        select(frame, {"score": ["0.5"]})
    with pytest.raises(ConfigError, match=r"they have model, .*base_lr, .*weight_decay"):
        select(frame, {"xyzzy": ["4"]})


def test_settings_that_differ_are_named(folder, points, tmp_path):
    write(tmp_path / "runs", expand([*GRID[:2], "batch_size=2", "base_lr=2**-9", "epochs=3"]).points[0], 0.4)
    frame = table(store.ended(folder).values())
    assert frame["setting"].nunique() == 2
    assert differences(frame) == "epochs=10,3"


def test_cells_are_means_and_sample_deviations_over_seeds():
    frame = pd.DataFrame(
        {
            "batch_size": [2, 2, 8],
            "base_lr": [0.5] * 3,
            "score": [0.2, 0.4, 0.1],
            "status": ["finished"] * 2 + ["diverged"],
        }
    )
    cells = panels.cell_means(frame, ["batch_size", "base_lr"]).set_index("batch_size")
    assert cells.loc[2, "mean"] == pytest.approx(30)
    assert cells.loc[2, "std"] == pytest.approx(100 * 0.02**0.5)
    assert cells.loc[2, "count"] == 2
    assert not cells.loc[2, "diverged"]
    assert cells.loc[8, "diverged"]


def test_a_figure_shows_each_curve_and_puts_diverged_points_below_chance_without_hiding_any(folder):
    figure = draw.sweep(table(store.ended(folder).values()), "Title", "note")
    left, right = figure.axes
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["$2^{-8}$", "$2^{-9}$"]
    assert [t.get_text() for t in right.get_legend().get_texts()] == ["32", "8", "2"]
    crosses = [line for line in left.lines if line.get_marker() == "x"]
    heights = [y for line in crosses for y in line.get_ydata()]
    assert len(heights) == len(set(heights)) == 2
    assert all(left.get_ylim()[0] < y < 10 for y in heights)


@pytest.mark.parametrize("statuses", [("finished",), ("finished", "diverged")])
def test_a_network_worse_than_chance_is_in_the_picture(folder, statuses):
    write(folder, expand([*GRID[:2], "batch_size=64", "base_lr=2**-9"]).points[0], 0.0)
    left, _ = draw.sweep(table(store.ended(folder, statuses).values()), "Title", "note").axes
    assert left.get_ylim()[0] < 0


def test_the_command_draws_names_what_is_missing_and_repeats_to_the_byte(folder, points, tmp_path, command):
    words = [f"store={folder}", "--out", tmp_path / "out", *GRID, "seed=0,1", "data.root=" + str(tmp_path / "data")]
    status, output = command(figures_command, *words)
    assert status == 0
    assert f"missing: {points[-1].run.label}" in output
    pictures = {path.suffix: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert pictures.keys() == {".png", ".svg", ".csv"}
    assert pictures[".png"].startswith(b"\x89PNG")
    command(figures_command, *words)
    assert {path.suffix: path.read_bytes() for path in (tmp_path / "out").iterdir()} == pictures


@pytest.mark.trains
def test_a_plain_command_tells_of_runs_that_no_figure_has(folder, tmp_path, command):
    words = [f"store={folder}", "--out", tmp_path / "out"]
    assert "no figure" not in command(figures_command, *words)[1]
    write(folder, expand(["batch_size=2", "base_lr=2**-9", "data.train_size=100"]).points[0], 0.4)
    assert "1 run belongs to no figure" in command(figures_command, *words)[1]


def test_drawing_needs_no_data_and_makes_none(folder, tmp_path, command):
    words = [f"store={folder}", "--out", tmp_path / "out", *GRID, "seed=0,1", f"data.root={tmp_path / 'nowhere'}"]
    assert command(figures_command, *words)[0] == 0
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.trains
def test_without_words_every_figure_with_runs_is_drawn(folder, tmp_path, command):
    status, output = command(figures_command, f"store={folder}", "--out", tmp_path / "out")
    assert status == 0
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == {"fig01-smoke", "fig15-smoke", "fig16-smoke", "sgd_paths"}
    assert "missing: alexnet digits m=2 η̃=2^-12 s=0" in output
    claims = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert (claims["form"], list(claims["scales"])) == (2, ["smoke"])
    assert [claim["id"] for claim in claims["scales"]["smoke"]] == [f"C{i}" for i in range(1, 14)]
    assert "C1, C2, C4 fig01 not trained (incomplete): fig01 lacks 29 runs" in output
    assert "Small batches, reproduced" in (tmp_path / "out" / "index.html").read_text()
    assert "missing: 9 more" in output


def test_a_changed_figure_has_a_file_and_a_title_of_its_own(folder, tmp_path, command):
    changed = expand(["figure=fig01", "scale=smoke", "epochs=2", "batch_size=2", "base_lr=2**-9"]).points[0]
    write(folder, changed, 0.4)
    where = [f"store={folder}", "--out", tmp_path / "out", "figure=fig01", "scale=smoke", "epochs=2"]
    assert command(figures_command, *where)[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "fig01-smoke-epochs_2.png", "fig01-smoke-epochs_2.svg"
    }  # fmt: skip
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_figure_without_runs_says_how_to_train_it(folder, tmp_path, command):
    words = [f"store={folder}", "--out", tmp_path / "out", *GRID, "epochs=77", "data.root=" + str(tmp_path / "data")]
    status, _ = command(figures_command, *words)
    assert "python src/train.py -m figure=fig01" in str(status)
    assert not (tmp_path / "out").exists()


@pytest.mark.trains
def test_a_scale_without_runs_leaves_the_page_of_another(folder, tmp_path, command):
    where = [f"store={folder}", "--out", tmp_path / "out"]
    command(figures_command, *where)
    page = (tmp_path / "out" / "index.html").read_bytes()
    assert "train.py -m figure=all scale=reduced" in str(command(figures_command, *where, "scale=reduced")[0])
    assert (tmp_path / "out" / "index.html").read_bytes() == page


def test_a_misspelt_word_is_named_whatever_the_scale(folder, tmp_path, command):
    where = [f"store={folder}", "--out", tmp_path / "out", "figure=fig01"]
    assert "no setting scal; did you mean scale?" in str(command(figures_command, *where, "scal=smoke")[0])


def test_a_figure_s_column_is_printed_and_what_has_no_runs_is_one_line(folder, tmp_path, command):
    where = [f"store={folder}", "--out", tmp_path / "out", "scale=smoke"]
    for figures, without in (("fig01", ""), ("fig01,fig02,fig04", "fig02,fig03,fig04,")):
        status, output = command(figures_command, *where, f"figure={figures}")
        assert status == 0
        assert re.findall(r"^C\d+ +·$", output, re.M) == ["C1   ·", "C2   ·", "C4   ·"]
        assert "C1, C2, C4 fig01 not trained (incomplete): fig01 lacks 29 runs\n  train: python src/train.py" in output
        (line,) = [line for line in output.splitlines() if "no runs" in line]
        names = f"{without}fig05,fig06"
        assert line.startswith(f"no runs of {names.replace(',', ', ')}; train: python src/train.py -m figure=fig01,")
    assert not (tmp_path / "out" / "claims.json").exists()


def test_chosen_runs_that_do_not_belong_together_are_refused(folder, tmp_path, command):
    write(folder, expand([*GRID[:2], "batch_size=2", "base_lr=2**-9", "epochs=3"]).points[0], 0.4)
    where = [f"store={folder}", "--out", tmp_path / "out"]
    status, _ = command(figures_command, *where, "model=alexnet")
    assert "epochs=10,3" in str(status)
    assert command(figures_command, *where, "model=alexnet", "epochs=10")[0] == 0


def test_runs_that_differ_in_their_bn_batch_are_not_averaged(tmp_path, command):
    words = ["model=alexnet", "norm=batch", "batch_size=8", "base_lr=1/256", "bn_batch_size=2,4,8"]
    for point in expand(words).points:
        write(tmp_path / "runs", point, 0.5)
    where = [f"store={tmp_path / 'runs'}", "--out", tmp_path / "out"]
    assert "choose one, as bn_batch_size=… of 2, 4, 8" in str(command(figures_command, *where, "model=alexnet")[0])
    assert command(figures_command, *where, "model=alexnet", "bn_batch_size=4")[0] == 0


def test_a_figure_of_your_own_data_is_of_these_and_no_other(tmp_path, command, write_npz):
    mine, other = write_npz("mine.npz"), write_npz("other.npz", train_labels=np.arange(20) % 3)
    words = ["figure=fig08", "scale=smoke", "data=arrays", f"data.root={tmp_path}", "batch_size=2", "base_lr=1/256"]
    words += ["data.train_size=20", "epochs=1"]  # all of them, said as a number
    for point in expand([*words, f"data.path={mine}"]).points:
        write(tmp_path / "runs", point, 0.5)
    where = [f"store={tmp_path / 'runs'}", "--out", tmp_path / "out", *words]
    assert command(figures_command, *where, f"data.path={mine}")[0] == 0
    assert "no run of" in str(command(figures_command, *where, f"data.path={other}")[0])
    assert "no such file" in str(command(figures_command, *where, "data.path=nothere.npz")[0])
    where = [f"store={tmp_path / 'runs'}", "--out", tmp_path / "out", "data=arrays"]
    assert command(figures_command, *where, f"data.path={mine}")[0] == 0  # found by what the images are
    assert "data.fingerprint=" in str(command(figures_command, *where, f"data.path={other}")[0])


def test_every_command_takes_a_folder_of_yaml_files_of_ones_own(folder, tmp_path, command, monkeypatch):
    monkeypatch.setattr(compose, "_folders", [])
    (tmp_path / "conf" / "figure").mkdir(parents=True)
    (tmp_path / "conf" / "figure" / "mine.yaml").write_text(MINE)
    own = [f"store={folder}", "figure=mine", "scale=smoke"]
    assert "there is no such figure" in str(command(figures_command, *own)[0])
    own += ["--config-dir", tmp_path / "conf"]
    assert command(figures_command, *own, "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "mine-smoke.png").exists()
    assert len(command(runs_command, "list", *own)[1].splitlines()) == 1 + 4  # at all η̃ that are there
    assert command(plan_command, *own)[1].count("mine") == 1
    status, _ = command(runs_command, "list", f"store={folder}", "--config-dir", tmp_path / "nothere")
    assert status == f"error: --config-dir {tmp_path / 'nothere'}: is no folder"
    status, _ = command(runs_command, "list", "hydra.searchpath=[file://x]")
    assert "say --config-dir FOLDER" in str(status)


def test_runs_move_to_another_store_through_one_file(folder, tmp_path, command):
    file = tmp_path / "runs.jsonl.gz"
    assert command(runs_command, "export", file, f"store={folder}", "batch_size=2,8")[1].startswith("8 runs")
    first = file.read_bytes()
    command(runs_command, "export", file, f"store={folder}", "batch_size=2,8")
    assert file.read_bytes() == first
    other = tmp_path / "other"
    assert "8 runs added" in command(runs_command, "import", file, f"store={other}")[1]
    assert "0 runs added" in command(runs_command, "import", file, f"store={other}")[1]
    assert store.ended(other) == {k: r for k, r in store.ended(folder).items() if r.run.batch_size in (2, 8)}
    file.write_bytes(first[:-20])
    status, _ = command(runs_command, "import", file, f"store={other}")
    assert str(file) in str(status)


def test_check_counts_and_fails_on_damage(folder, command):
    status, output = command(runs_command, "check", f"store={folder}")
    assert (status, output.strip()) == (0, "8 finished, 3 diverged")
    damaged = next(iter(folder.iterdir()))
    (damaged / "epochs.csv").write_text("")
    status, output = command(runs_command, "check", f"store={folder}")
    assert status == 1
    assert str(damaged) in output


def test_runs_from_wandb_give_the_same_pictures_as_those_of_the_store(folder, tmp_path, command, monkeypatch):
    words = ["figure=fig01", "scale=smoke"]
    assert command(figures_command, f"store={folder}", "--out", tmp_path / "a", *words)[0] == 0
    places = []

    def records(place):
        places.append(place)
        return store.ended(folder)

    monkeypatch.setattr(figures_command.project, "records", records)
    other = [f"store={tmp_path / 'none' / 'runs'}", "--out", tmp_path / "b", *words]
    assert command(figures_command, *other, "--source", "wandb", "wandb.project=theirs")[0] == 0
    assert [place.project for place in places] == ["theirs"]
    for name in ("fig01-smoke.png", "fig01-smoke.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_drawn_goes_to_wandb_with_tables_and_page(folder, tmp_path, command, monkeypatch):
    added = []
    monkeypatch.setattr(figures_command.project, "add_figures", lambda *given: added.append(given) or "address")
    words = [f"store={folder}", "--out", tmp_path / "out", "scale=smoke", "logger=wandb", "wandb.mode=offline"]
    status, output = command(figures_command, *words)
    assert status == 0
    assert output.splitlines()[-1] == "W&B: offline; upload with `wandb sync address`"
    (place, paths, tables, page), *_ = added
    assert place.mode == "offline"
    assert {path.name for path in paths} >= {"fig01-smoke.png", "fig01-smoke.svg", "fig16-smoke.png"}
    assert len(tables["runs"]) == len(store.ended(folder))
    assert list(tables["claims"]["claim"]) == [f"C{i}" for i in range(1, 14)]
    assert list(tables["claims"]["fig01"][:3]) == ["·", "·", ""]
    assert {"C1", "C13"} <= set(tables["verdicts"]["claim"])
    assert page == tmp_path / "out" / "index.html"


def test_wandb_s_failure_is_one_line_and_the_files_are_there(folder, tmp_path, command, monkeypatch):
    def fail(place, **given):
        raise RuntimeError("no such project\nand more")

    monkeypatch.setattr(figures_command.project, "open_run", fail)
    words = ["figure=fig01", "scale=smoke", "logger=wandb", "wandb.mode=offline"]
    status, _ = command(figures_command, f"store={folder}", "--out", tmp_path / "out", *words)
    assert status == "error: W&B: no such project"
    assert (tmp_path / "out" / "fig01-smoke.png").exists()


def test_verdicts_are_written_as_markdown_where_asked_for(folder, tmp_path, command):
    file = tmp_path / "verdicts.md"
    words = [f"store={folder}", "--out", tmp_path / "out", *GRID, f"data.root={tmp_path / 'data'}", "--markdown", file]
    assert command(figures_command, *words)[0] == 0
    text = file.read_text(encoding="utf-8")
    assert text.startswith("| claim | ")
    assert "- **C4** " in text


def test_a_figure_has_an_answer_with_a_table_and_a_picture(folder, tmp_path, command):
    words = [f"store={folder}", "--out", tmp_path / "out", *GRID, f"data.root={tmp_path / 'data'}"]
    output = command(figures_command, *words)[1]
    assert "fig01, which m and η̃" in output
    assert "table and picture: " in output
    assert {path.suffix for path in (tmp_path / "out").glob("*-answer.*")} == {".csv", ".png", ".svg"}
