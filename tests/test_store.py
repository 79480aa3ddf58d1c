"""Run folders read back what was written or say that they are damaged."""

import csv
import json
import math
import os
from pathlib import Path

import pytest

from smallbatch import lock, store
from smallbatch.config import Norm, Schedule
from smallbatch.errors import ConfigError
from smallbatch.files import kind, replacing, write_text
from smallbatch.run import Run
from smallbatch.store import DamagedRun


def make(seed: int = 0) -> Run:
    return Run(
        model={"_target_": "smallbatch.models.alexnet.AlexNet", "name": "alexnet"},
        data={"name": "digits", "fingerprint": "0123", "train_size": 64, "test_size": None, "augment": False},
        norm=Norm(),
        optimizer={"_target_": "torch.optim.SGD", "name": "sgd", "momentum": 0.0, "nesterov": False},
        schedule=Schedule(drops=[0.5]),
        batch_size=8, base_lr=2**-9, bn_batch_size=None, epochs=3, weight_decay=5e-4, seed=seed, precision="32-true",
    )  # fmt: skip


def rows(*test_losses: float) -> list[store.Row]:
    return [
        {"epoch": i, "train_loss": 0.1 + 0.2 * i, "test_loss": loss, "updates": 8 * i, "images": 64 * i}
        for i, loss in enumerate(test_losses, 1)
    ]


RESULT = {"status": "finished", "score": 1 / 3, "seconds": 1.25, "versions": {"torch": "2"}}


def write(folder: Path, run: Run | None = None, *losses: float, status: str = "finished") -> Path:
    run = run or make()
    path = store.folder(folder, run)
    path.mkdir(parents=True)
    store.write_result(path, run, rows(*(losses or (2.3, 1e-17, 0.1))), RESULT | {"status": status})
    return path


def exact(record: store.Record) -> tuple[object, ...]:
    """All of a record, NaN equal to NaN, 1 unlike 1.0."""
    return record.run, repr(record.rows), repr(record.result)


# --- writing and reading


@pytest.mark.parametrize("loss", [0.1 + 0.2, 5e-324, math.nan, math.inf])
def test_what_is_written_reads_back_bit_equal(tmp_path, loss):
    path = write(tmp_path, make(), 2.5, loss)
    assert exact(store.read(path)) == (make(), repr(rows(2.5, loss)), repr(RESULT))


@pytest.mark.parametrize("status", ["finished", "diverged", "failed"])
def test_only_finished_and_diverged_count_as_done(tmp_path, status):
    assert bool(store.done(write(tmp_path, status=status))) == (status != "failed")


def test_a_folder_without_a_result_has_not_ended(tmp_path):
    store.write_config(tmp_path, make())
    assert store.read(tmp_path) is None
    assert not store.done(tmp_path)


@pytest.mark.parametrize("loss", [0.1 + 0.2, math.nan, math.inf])
def test_an_exported_run_added_to_another_store_is_the_same_and_done(tmp_path, loss):
    paths = [write(tmp_path / "here", make(seed), 2.5, loss) for seed in range(3)]
    text = store.export([store.read(path) for path in paths])
    assert text.count("\n") == 3
    for record in store.parse_export(text):
        assert store.add(tmp_path / "there", record)
        assert not store.add(tmp_path / "there", record)
    for path in paths:
        copy = tmp_path / "there" / path.name
        assert exact(store.read(copy)) == exact(store.read(path))
        assert store.done(copy)
        assert not lock.holder(copy)


def test_an_export_keeps_text_with_any_line_separator(tmp_path):
    record = store.Record(make(), [], RESULT | {"status": "failed", "score": None, "error": "η̃\u2028\x85\x1c\n"})
    assert [exact(r) for r in store.parse_export(store.export([record, record]))] == [exact(record)] * 2


def test_adding_mends_a_damaged_run_and_leaves_a_run_in_training_alone(tmp_path):
    record = store.read(write(tmp_path / "here"))
    path = write(tmp_path / "there")
    (path / "epochs.csv").unlink()
    with lock.hold(path):
        assert not store.add(tmp_path / "there", record)
    assert store.add(tmp_path / "there", record)
    assert exact(store.read(path)) == exact(record)


@pytest.mark.parametrize("damage", ["[]", "{}", '{"key": 1', '{"key": "0", "config": {}, "result": {}, "epochs": {}}'])
def test_a_damaged_export_names_its_line(tmp_path, damage):
    text = store.export([store.read(write(tmp_path))])
    with pytest.raises(DamagedRun, match="line 2"):
        store.parse_export(text + damage + "\n")


def _truncate_result(path: Path) -> None:
    os.truncate(path / "result.json", 40)


def _change_a_digit(path: Path) -> None:
    epochs = path / "epochs.csv"
    epochs.write_text(epochs.read_text().replace("2.3", "2.4"))


def _change_the_score(path: Path) -> None:
    result = json.loads((path / "result.json").read_text())
    (path / "result.json").write_text(json.dumps(result | {"score": 0.9}))


def _drop_a_row(path: Path) -> None:
    with (path / "epochs.csv").open() as file:
        kept = list(csv.reader(file))[:-1]
    (path / "epochs.csv").write_text("".join(",".join(row) + "\n" for row in kept))


def _take_another_config(path: Path) -> None:
    store.write_config(path, make(seed=1))


def _take_another_folder(path: Path) -> None:
    other = write(path.parent / "other", make(seed=1))
    for name in ("config.json", "epochs.csv", "result.json"):
        (other / name).replace(path / name)


def _lose_rows(path: Path) -> None:
    (path / "epochs.csv").unlink()


def _lose_config(path: Path) -> None:
    (path / "config.json").unlink()


def test_a_folder_sealed_before_a_setting_existed_is_sound(tmp_path):
    """A new setting at its default changes no key, and must not break the checksums of the runs that are there."""
    path = write(tmp_path)
    config = json.loads((path / "config.json").read_text())
    del config["norm"]["layers"]
    result = json.loads((path / "result.json").read_text())
    del result["sha256"]
    sealed = result | {"sha256": store._seal(config, (path / "epochs.csv").read_text(), result)}
    (path / "config.json").write_text(json.dumps(config))
    (path / "result.json").write_text(json.dumps(sealed))
    record = store.read(path)
    assert record is not None
    assert record.run == make()


@pytest.mark.parametrize(
    "damage",
    [_truncate_result, _change_a_digit, _change_the_score, _drop_a_row, _take_another_config, _take_another_folder,
     _lose_rows, _lose_config],
)  # fmt: skip
def test_a_damaged_folder_is_reported_and_never_done(tmp_path, damage):
    path = write(tmp_path)
    damage(path)
    with pytest.raises(DamagedRun, match=path.name):
        store.read(path)
    assert not store.done(path)
    assert isinstance(dict(store.read_all(tmp_path))[path], DamagedRun)


# --- atomic writing


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_succeeds_leaves_the_new_content_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", ["link", "folder", "pipe or device"])
def test_only_a_file_is_replaced(tmp_path, there):
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("x")
    {"link": lambda: path.symlink_to(other), "folder": path.mkdir, "pipe or device": lambda: os.mkfifo(path)}[there]()
    with pytest.raises(ConfigError, match=f"is a {there}, no file"):
        write_text(path, "new")
    assert kind(path) == there
    assert other.read_text() == "x"
    assert sorted(tmp_path.iterdir()) == [path, other]


# --- training again


def test_an_ended_run_that_was_put_aside_outlives_damage_to_the_one_that_was_to_replace_it(tmp_path):
    path = write(tmp_path)
    store.begin(path, make(), afresh=True)
    store.write_result(path, make(), rows(1.0), RESULT)
    os.truncate(path / "result.json", 40)
    store.begin(path, make(), afresh=False)
    store.write_result(path, make(), [], RESULT | {"status": "failed", "score": None, "error": "no"})
    assert store.conclude(path, failed=True)
    assert exact(store.read(path)) == (make(), repr(rows(2.3, 1e-17, 0.1)), repr(RESULT))


def test_what_was_half_written_goes_and_what_we_did_not_write_stays(tmp_path):
    run = make()
    path = tmp_path / run.key
    path.mkdir()
    for name in (".epochs.csv.ab1_.tmp", ".result.json.xy.tmp", "traceback.txt", ".notes.tmp", "notes", "epochs.csv"):
        (path / name).write_text("x")
    store.begin(path, run, afresh=False)
    assert {file.name for file in path.iterdir()} == {".notes.tmp", "notes", "epochs.csv", "config.json"}
