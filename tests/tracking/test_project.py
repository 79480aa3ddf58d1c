"""A W&B project read back: the same records as from run folders, whatever else is in it and however it answers.

The API is played by objects with what wandb's public API gives, after a way through JSON as W&B's own: whole
floats lose their point, nan is a string.
"""

import math
from pathlib import Path

import pandas as pd
import pytest

from smallbatch import store
from smallbatch.compose import compose
from smallbatch.config import Norm, Schedule
from smallbatch.errors import ConfigError, SmallBatchError
from smallbatch.run import Run
from smallbatch.store import Record
from smallbatch.table import table
from smallbatch.tracking import page, place, project

PLACE = place.Place("online", "us", "paper", None, (), None, Path())


def make(batch_size=8, status="finished", loss=0.5, momentum=0.0) -> Record:
    run = Run(
        model={"_target_": "smallbatch.models.alexnet.AlexNet", "name": "alexnet"},
        data={"name": "digits", "fingerprint": "0" * 16, "train_size": None, "test_size": None, "augment": False},
        norm=Norm(),
        optimizer={"_target_": "mine.SGD", "name": "mine", "momentum": momentum},
        schedule=Schedule(drops=[0.5], drop_factor=1.0, warmup_start=0.5),
        batch_size=batch_size,
        base_lr=1 / 256,
        bn_batch_size=None,
        epochs=3,
        weight_decay=0.0,
        seed=0,
        precision="32-true",
    )
    rows = [
        {
            "epoch": epoch,
            "train_loss": loss,
            "train_accuracy": 1.0,
            "test_loss": loss,
            "test_accuracy": 0.1 + epoch / 7,
            "learning_rate": 1 / 32,
            "updates": 10 * epoch,
            "images": 80 * epoch,
            "train_seconds": 1.25,
            "eval_seconds": 1.0,
        }
        for epoch in (1, 2, 3)
    ]
    sizes = {"chance": 0.1, "train_images": 80, "test_images": 40, "seconds": 6.75, "threads": 1}
    result = {"status": status, "score": None if status == "failed" else 1.0, **sizes, "ended": "2026-01-01T00:00:00Z"}
    machine = {"host": "a", "cores": 2}
    return Record(run, rows, result | {"versions": {"torch": "2"}, "commit": None, "machine": machine})


def through_json(value):
    """As W&B gives it back."""
    if isinstance(value, dict):
        return {k: through_json(v) for k, v in value.items()}
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else int(value) if value.is_integer() else value
    return value


class FakeRun:
    def __init__(self, record: Record, failures: int = 0) -> None:
        self.id, self.failures = record.run.key, failures
        self.config = through_json(page._config(record.run))
        self.summary_metrics = through_json(page._summary(record)) | {"_step": 3}
        self.history = [through_json(row) | {"_step": row["epoch"], "_timestamp": 1.5} for row in record.rows]

    def scan_history(self):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("once more, please")
        return iter(self.history)


class FakeRuns:
    """Pages are fetched by the iterator; the page that `fails` does so twice."""

    def __init__(self, runs, fails) -> None:
        self.runs, self.at, self.failures = runs, 0, {fails: 2}

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self):
        return self

    def __next__(self):
        if self.failures.get(self.at):
            self.failures[self.at] -= 1
            raise TimeoutError("the page did not come")
        if self.at == len(self.runs):
            raise StopIteration
        self.at += 1
        return self.runs[self.at - 1]


class FakeApi:
    def __init__(self, runs, fails=None) -> None:
        self.answer, self.asked = FakeRuns(runs, fails), []

    def runs(self, path, **options):
        self.asked.append((path, options))
        return self.answer


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(project, "PAUSES", (0.0, 0.0))


def test_what_comes_back_is_what_the_folders_hold():
    written = [make(8), make(16, "diverged", math.nan), make(32, momentum=0.9)]
    api = FakeApi([FakeRun(record) for record in written])
    back = project.records(PLACE, api)
    assert list(back) == [record.run.key for record in written]
    assert [record.run for record in back.values()] == [record.run for record in written]
    assert [record.result for record in back.values()] == [r.result | {"machine": {"cores": 2}} for r in written]
    for here, there in zip(written, back.values(), strict=True):
        assert store._rows_text(here.rows) == store._rows_text(there.rows)
    pd.testing.assert_frame_equal(table(back.values()), table(written), check_dtype=False)
    assert api.asked == [("us/paper", {"filters": {"jobType": "train"}, "per_page": 100, "lazy": False})]


def test_foreign_failed_and_running_runs_and_those_of_another_protocol_are_left_out():
    foreign, other, running, failed, ours = (FakeRun(make(m)) for m in (2, 4, 8, 16, 32))
    foreign.config = {"lr": 0.1, "run": 7}
    other.id = "0123456789abcdef"
    del running.summary_metrics["status"]
    failed.summary_metrics["status"] = "failed"
    assert list(project.records(PLACE, FakeApi([foreign, other, running, failed, ours]))) == [ours.id]


def test_an_epoch_that_w_and_b_has_twice_is_one_and_they_come_in_order():
    run = FakeRun(make())
    run.history = [run.history[2], run.history[0], run.history[1], run.history[1], {"_step": 9}]
    (record,) = project.records(PLACE, FakeApi([run])).values()
    assert [row["epoch"] for row in record.rows] == [1, 2, 3]


def test_a_page_or_a_history_that_fails_is_asked_for_again():
    runs = [FakeRun(make(m), failures=2) for m in (2, 4)]
    assert len(project.records(PLACE, FakeApi(runs, fails=1))) == 2
    with pytest.raises(SmallBatchError, match=r"^W&B: "):
        project.records(PLACE, FakeApi([FakeRun(make(), failures=9)]))


def test_a_project_that_is_not_there_is_one_line():
    class Nowhere(FakeApi):
        def runs(self, path, **options):
            raise ValueError(f"Could not find project {path}\nand more")

    with pytest.raises(ConfigError, match=r"^wandb.project=paper: Could not find project us/paper$"):
        project.records(PLACE, Nowhere([]))


def test_without_a_login_reading_is_refused(monkeypatch):
    monkeypatch.setattr(project, "login", lambda: (False, "http://here"))
    with pytest.raises(ConfigError, match="no login for http://here; say `wandb login`"):
        project.records(place.Place.of(compose([])))


class OpenRun:
    """Takes what a W&B run is given."""

    def __init__(self):
        self.logged, self.files, self.url, self.finished = {}, [], "address", 0

    def log(self, shown):
        self.logged |= shown

    def log_artifact(self, artifact):
        self.files = [Path(name).name for name in artifact.manifest.entries]

    def finish(self):
        self.finished += 1


def test_figures_are_added_as_images_tables_line_plots_a_page_and_an_artifact(tmp_path, monkeypatch):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "fig01-paper.png")
    (tmp_path / "fig01-paper.svg").write_text("<svg/>")
    page = tmp_path / "index.html"
    page.write_text("<html></html>")
    run, opened = OpenRun(), []
    monkeypatch.setattr(project, "open_run", lambda place, **given: opened.append(given) or run)
    runs = table([make(batch_size=m) for m in (8, 16)])
    claims = pd.DataFrame([{"scale": "paper", "id": "C1", "verdict": "undecided"}])
    pictures = [tmp_path / "fig01-paper.png", tmp_path / "fig01-paper.svg"]
    assert project.add_figures(PLACE, pictures, {"runs": runs, "claims": claims}, page) == "address"
    assert opened == [{"name": "figures", "job_type": "figures"}]
    assert {"fig01-paper", "table/runs", "table/claims", "page"} <= set(run.logged)
    assert run.logged["table/claims"].data == [["paper", "C1", "undecided"]]
    assert len(run.logged["table/runs"].data) == 2
    assert sum(name.startswith("sweep/") for name in run.logged) == 2
    assert sorted(run.files) == ["fig01-paper.png", "fig01-paper.svg", "index.html"]
    assert run.finished == 1
