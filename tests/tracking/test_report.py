"""A W&B report: what it filters, draws and says. It is saved on the stand-in server; how W&B shows it is not tried."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb_server
from wandb_server import login

import report
from smallbatch import store
from smallbatch.ended import Ended
from smallbatch.figures.collect import Asked, collect
from smallbatch.grids.expand import expand
from smallbatch.store import NOTE, Record
from smallbatch.tracking.place import Place
from smallbatch.tracking.project import groups

REPOSITORY = Path(__file__).parents[2]
WORDS = ["figure=fig01", "scale=smoke", "seeds=3"]
PLACE = Place("online", "us", "paper", None, (), None, Path())


def made(root, *words: str) -> dict[str, Record]:
    """Ended runs of a grid, the better the smaller m and the nearer η̃ to 2^-8, three epochs each."""
    records = {}
    for run in (point.run for point in expand([*words, f"data.root={root}"]).points):
        score = 0.8 - 0.001 * run.batch_size - 10 * abs(run.base_lr - 2**-8) - 0.001 * run.seed
        names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "train_seconds")
        rows = [
            {"epoch": e, "updates": e, "images": e, "eval_seconds": 0.5} | dict.fromkeys(names, 0.5) for e in (1, 2)
        ]
        sizes = {"chance": 0.1, "train_images": 1024, "test_images": 360, "seconds": 3.0}
        records[run.key] = Record(run, rows, {"status": "finished", "score": max(0.0, score), **sizes})
    return records


@pytest.fixture(scope="module")
def records(root):
    return made(root, *WORDS)


def passes(filters: str, group: str, key: str) -> bool:
    """Whether a run passes a filter, read as Python."""
    return bool(eval(filters, {"__builtins__": {}, "Metric": {"Group": group, "ID": key}.__getitem__}))


@pytest.mark.parametrize(
    "own",
    [
        {"a": "ours", "b": "ours", "c": ""},
        {"a": "ours", "b": "shared", "c": "shared"},
        {"a": "x's", "b": 'y "z"', "c": "shared"},
        {"a": "", "b": "", "c": ""},
        {"a": "ours", "b": "ours", "c": "ours"},
    ],
)
def test_a_filter_passes_the_figure_s_runs_and_no_others(own):
    others = {"d": "shared", "e": "", "f": "foreign"}
    filters = report.Builder(None, PLACE, "", own | others).exactly(list(own))
    assert {key for key, group in (own | others).items() if passes(filters, group, key)} == set(own)
    assert ("Group" in filters) == any(group not in ("", "shared") for group in own.values())


def test_the_best_runs_are_those_of_one_rate_an_m_all_seeds(records):
    frame = collect("fig01", "smoke", [], Ended(records)).frame
    keys = report.best_keys(frame)
    found = frame[frame["key"].isin(keys)]
    assert found.groupby("batch_size")["base_lr"].nunique().eq(1).all()
    assert set(found["batch_size"]) == set(frame["batch_size"])
    assert found.groupby("batch_size")["seed"].nunique().eq(3).all()
    means = frame.groupby(["batch_size", "base_lr"])["score"].mean()
    for m, rate in found.groupby("batch_size")["base_lr"].first().items():
        assert means[m, rate] == means[m].max()


@pytest.mark.parametrize("name", ["fig01", "fig04", "fig13a"])
def test_the_table_of_a_figure_has_what_its_charts_draw(name, root):
    words = [f"figure={name}", "scale=smoke", *(["base_lr=1/256"] if name == "fig13a" else [])]
    runs = collect(name, "smoke", words[2:], Ended(made(root, *words)))
    table = report.points(runs)
    columns = {column for _, *columns in report.CHARTS[runs.draw] for column in columns}
    assert columns <= set(table.columns)
    assert len(table) == len(table.drop_duplicates(["by m", *columns & {"by η̃", "log2 BN batch", "epoch"}]))
    if name == "fig01":
        assert table["runs"].sum() == len(runs.frame)
        (m, rate), cell = next(iter(runs.frame.groupby(["batch_size", "base_lr"])))
        row = table[(table["log2 m"] == (m).bit_length() - 1) & (2.0 ** table["log2 η̃"] == rate)]
        assert row["accuracy"].item() == pytest.approx(100 * cell["score"].mean())


def test_verdicts_are_of_the_figures_asked_for_and_their_partners(records):
    sections, claims = report.contents(Asked.of(WORDS[:2]), Ended(records))
    assert [section.runs.name for section in sections] == ["fig01"]
    assert all("fig01" in verdict.figures for row in claims["smoke"] for verdict in row.verdicts)
    assert {row.id for row in claims["smoke"]} >= {"C1", "C2", "C4"}


def test_groups_are_by_run_id_and_none_is_empty():
    runs = [SimpleNamespace(id="a", group="g"), SimpleNamespace(id="b", group=None)]
    assert groups(PLACE, SimpleNamespace(runs=lambda where, **options: runs)) == {"a": "g", "b": ""}


@pytest.fixture(scope="module")
def folder(records, root, tmp_path_factory):
    """A store of figure 1, one run of which went to W&B for another figure, and of more runs of that group."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    more = made(root, "model=resnet8", "data=digits", "data.train_size=1024", "epochs=2", "batch_size=2,4")
    for place, record in enumerate([*records.values(), *more.values()]):
        path = store.folder(folder, record.run)
        path.mkdir(parents=True)
        store.write_result(path, record.run, record.rows, record.result)
        group = "fig01 smoke" if 0 < place < len(records) else "elsewhere"
        note = {"project": "smallbatch", "entity": None, "group": group, "tags": [], "notes": None}
        (path / NOTE).write_text(json.dumps(note | {"rows": len(record.rows), "sha256": None, "offline": None}))
    return folder


@pytest.fixture(scope="session")
def library(request):
    """Where wandb-workspaces is: in an environment of before it was locked, in a folder of the tests' own."""
    found = importlib.util.find_spec("wandb_workspaces")
    if found:
        return Path(found.origin).parents[1]
    try:
        return wandb_server.install_reports(request.config.cache.mkdir("reports"))
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"wandb-workspaces cannot be installed here: {error}")


@pytest.mark.trains
def test_one_command_saves_a_report_whose_panels_have_exactly_their_runs(server, library, folder, records, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | login(server)
    path = os.pathsep.join([str(library), environment["PYTHONPATH"]])
    command = [sys.executable, REPOSITORY / "src/report.py", *WORDS[:2], f"store={folder}", "--source", "store"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment | {"HOME": str(tmp_path), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{server.address}/default/smallbatch/reports/")
    (view,) = server.views
    blocks = [block for block in view["spec"]["blocks"] if block != {"type": "paragraph", "children": [{"text": ""}]}]
    assert blocks[0]["children"][0]["text"] == "Verdicts at scale smoke"
    assert blocks[1]["content"].startswith("| claim | fig01 | counted |")

    grids = {
        grid["metadata"]["runSets"][0]["name"]: grid["metadata"] for grid in blocks if grid["type"] == "panel-grid"
    }
    known = {"names": {}, "fig01 smoke": list(records)[1:], "elsewhere": list(records)[:1]}
    frame = collect("fig01", "smoke", [], Ended(records)).frame
    assert selected(grids["fig01: all its runs"], known) == set(records)
    assert '"group"' in json.dumps(grids["fig01: all its runs"])
    assert selected(grids["fig01: at the best η̃ of each m"], known) == set(report.best_keys(frame))
    assert grids["fig01: all its runs"]["panelBankSectionConfig"]["panels"] == []  # more than W&B averages
    assert len(grids["C4 fig01"]["panelBankSectionConfig"]["panels"]) == 2

    (own,) = selected(grids["tables of this report"], known)
    assert server.opened[own][0]["jobType"] == "report"
    charts = [panel["config"] for panel in grids["tables of this report"]["panelBankSectionConfig"]["panels"]]
    assert [chart["panelDefId"] for chart in charts] == ["wandb/lineseries/v0"] * 2
    tables = [json.loads(body) for body in server.bodies if body.startswith(b'{"columns":')]
    points = next(table for table in tables if "log2 m" in table["columns"])
    assert len(points["data"]) == frame.groupby(["batch_size", "base_lr"]).ngroups
    assert all(set(chart["fieldSettings"].values()) <= set(points["columns"]) for chart in charts)
    text = next(b["content"] for b in blocks if "best over m ≤ 8 − best" in b.get("content", ""))
    keys = selected(grids["C4 fig01"], known)
    assert keys
    assert all(f"[{key}]({server.address}/default/smallbatch/runs/{key})" in text for key in keys)


def selected(grid, known):
    """The runs that a grid's filter names, a group by its runs."""
    found = set()
    for part in grid["runSets"][0]["filters"]["filters"]:
        assert (part["op"], part["disabled"]) == ("IN", False)
        by_group = part["key"] == {"section": "run", "name": "group"}
        assert by_group or part["key"] == {"section": "run", "name": "name"}
        found |= {key for name in part["value"] for key in (known[name] if by_group else [name])}
    return found


def test_a_report_of_many_runs_leaves_the_drawing_to_its_tables(records):
    wr = SimpleNamespace(**{name: (lambda *a, name=name, **given: {"is": name, **given}) for name in (
        "H1", "P", "MarkdownBlock", "Runset", "PanelGrid", "CustomChart", "LinePlot", "ScatterPlot", "Config",
        "SummaryMetric",
    )})  # fmt: skip
    runs = collect("fig01", "smoke", [], Ended(records))
    assert len(runs.frame) > report.MOST
    few = replace(runs, frame=runs.frame.iloc[: report.MOST])
    for some, natives in ((few, True), (runs, False)):
        grids = [
            b for b in report.Builder(wr, PLACE, "", {})._figure(report.Section(some, "")) if b["is"] == "PanelGrid"
        ]
        assert [panel["is"] for panel in grids[0]["panels"]] == ["CustomChart"] * 2
        assert bool(grids[-1]["panels"]) == natives
