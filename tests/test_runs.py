"""`runs.py`: nothing wrong gets in, a damaged run harms itself alone, and only our own files are replaced."""

import errno
import gzip
import json
import math
import os
import random
import sys
from pathlib import Path

import pytest

import runs as runs_command
from smallbatch import files, lock, record, store
from smallbatch.errors import ConfigError
from smallbatch.record import DamagedRun, read_export
from smallbatch.store import Record, folder

REFERENCE = Path(__file__).parents[1] / "outputs" / "reference"
FILES = ("config.json", "epochs.csv", "result.json")
BYTES = 40  # flips and cuts of each file


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Four runs of ours that really were trained, without checksums of their lines."""
    text = (REFERENCE / "fig04-part" / "runs.jsonl").read_text()
    return record.parse_export("".join(text.splitlines(keepends=True)[:4]))


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch):
    """Waits for the disk are most of the time here, and no power is cut."""
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: None)


@pytest.fixture
def runs(tmp_path, records) -> Path:
    store.add(tmp_path / "runs", *records)
    return tmp_path / "runs"


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command with arguments; returns (exit status or message, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["runs.py", *map(str, arguments)])
        status: object = 0
        try:
            runs_command.main()
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


def exact(records) -> list[str]:
    return sorted(repr(one) for one in records)


def damaged(content: bytes, seed: int) -> bytes:
    """Some bytes flipped, cut out, put in, or the end cut off."""
    chance = random.Random(seed)
    made, at = bytearray(content), chance.randrange(len(content))
    if seed % 4 == 0:
        del made[at:]
    elif seed % 4 == 1:
        del made[at : at + chance.randint(1, 9)]
    elif seed % 4 == 2:
        made[at:at] = chance.randbytes(chance.randint(1, 3))
    for _ in range(chance.randint(1, 3) if seed % 4 == 3 else 0):
        made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    return bytes(made)


def reseal(path: Path, changes: dict, config: dict | None = None) -> None:
    """Change a result so that its checksum fits."""
    result = json.loads((path / "result.json").read_text()) | changes
    del result["sha256"]
    known = json.loads((path / "config.json").read_text()) | (config or {})
    seal = store._seal(known, (path / "epochs.csv").read_text(), result)
    (path / "config.json").write_text(json.dumps(known))
    (path / "result.json").write_text(json.dumps(result | {"sha256": seal}))


# --- a damaged run harms itself alone


def said(action, *problems: type[Exception]) -> str | None:
    """What an action that is refused says, a line; None if it is not."""
    try:
        action()
    except problems as problem:
        text = str(problem)
        assert text.count("\n") == 0
        return text
    return None


@pytest.mark.parametrize("name", FILES)
def test_whatever_bytes_are_damaged_the_run_is_as_it_was_or_said_to_be_damaged(runs, records, name):
    path = folder(runs, records[0].run)
    whole, noticed = (path / name).read_bytes(), 0
    for seed in range(BYTES):
        (path / name).write_bytes(damaged(whole, seed))
        if text := said(lambda: store.read(path), DamagedRun):
            assert text.startswith(f"{path}: ")
            noticed += 1
        else:
            assert repr(store.read(path)) == repr(records[0])  # as a blank more or less in JSON
    assert noticed > BYTES * 0.7


THINGS = {
    "no UTF-8": lambda file: file.write_bytes(file.read_bytes()[:-9] + b"\xff" + file.read_bytes()[-9:]),
    "a list": lambda file: file.write_text("[[1, 2], [3, 4]]"),
    "a number": lambda file: file.write_text("7"),
    "nothing": lambda file: file.write_text(""),
    "nested": lambda file: file.write_text("[" * 100_000),
    "a long number": lambda file: file.write_text('{"sha256": ' + "9" * 10_000 + "}"),
    "a quoted field": lambda file: file.write_text('epoch\n"1'),
    "a NUL": lambda file: file.write_text("epoch\0\n1"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a link to a device": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
    "a link to nothing": lambda file: (file.unlink(), file.symlink_to("/nothing")),
    "huge": lambda file: os.truncate(file, 1 << 40),
}


@pytest.mark.parametrize("thing", THINGS)
def test_a_foreign_file_in_a_run_folder_is_said_in_one_line_and_the_others_go_on(
    runs, records, command, tmp_path, thing
):
    paths = [folder(runs, one.run) for one in records[:3]]
    for path, name in zip(paths, FILES, strict=True):
        THINGS[thing](path / name)
    status, out, err = command("list", f"store={runs}")
    assert (status, len(out.splitlines())) == (0, 1 + 1)
    assert len(err.splitlines()) == 3
    assert all(f"damaged, left out: {path}: " in err for path in paths)
    status, out, err = command("check", f"store={runs}")
    assert (status, out.splitlines()[-1], err) == (1, "1 finished, 3 damaged", "")
    assert [sum(str(path) in line for line in out.splitlines()) for path in paths] == [1, 1, 1]
    assert command("export", tmp_path / "some.jsonl", f"store={runs}")[0] == 0
    assert exact(read_export(tmp_path / "some.jsonl")[0]) == exact(records[3:])
    assert command("merge", runs, f"store={tmp_path / 'other'}")[0] == 0
    assert exact(store.ended(tmp_path / "other").values()) == exact(records[3:])
    assert store.add(runs, *records) == 3  # which mends them
    assert exact(store.ended(runs).values()) == exact(records)


WRONG_RESULTS = (
    *({"status": wrong} for wrong in ("done", None, 3, [])),
    *({"score": wrong} for wrong in ("0.5", True, None, -0.1, 1.5, 1e300, 10**400, [], {})),
    *({"seconds": wrong} for wrong in (-1, "3", None, 1e300, True)),
    *({"chance": wrong} for wrong in (-1, "3", None)),
    *({"train_images": wrong} for wrong in (-1, 0.5, "3", None, 10**30)),
    *({"test_images": wrong} for wrong in (0, -1, "3", None)),
    *({"versions": wrong} for wrong in ("2", ["torch"], {"torch": 2}, None)),
    *({"machine": wrong} for wrong in ("host", {"host": []})),
    *({"code": wrong} for wrong in ("2", {"x": 3})),
    *({"ended": wrong} for wrong in (3, None)),
    {"status": "failed", "score": None},
)


def test_a_result_of_wrong_types_or_ranges_is_damaged_though_its_checksum_fits(runs, records):
    path = folder(runs, records[0].run)
    whole = (path / "result.json").read_text()
    for changes in WRONG_RESULTS:
        (path / "result.json").write_text(whole)
        reseal(path, changes)
        assert said(lambda: store.read(path), DamagedRun), changes
    (path / "result.json").write_text(whole)
    reseal(path, {})
    assert store.read(path)


def test_numbers_that_json_has_not_and_names_given_twice_are_damage(runs, records):
    path = folder(runs, records[0].run)
    whole = (path / "result.json").read_text()
    score = f'"score": {records[0].result["score"]}'
    for wrong in ('"score": NaN', '"score": Infinity', '"score": 1e999', f"{score}, {score}"):
        assert score in whole
        (path / "result.json").write_text(whole.replace(score, wrong))
        with pytest.raises(DamagedRun):
            store.read(path)


def test_a_result_of_a_newer_version_with_fields_that_we_do_not_know_is_read_exported_and_imported(
    runs, records, command
):
    path = folder(runs, records[0].run)
    reseal(path, {"energy": {"joules": [1, 2.5, None]}})
    assert store.read(path).result["energy"] == {"joules": [1, 2.5, None]}
    file, other = runs.parent / "some.jsonl.gz", runs.parent / "other"
    assert command("export", file, f"store={runs}")[0] == 0
    assert command("import", file, f"store={other}")[0] == 0
    assert exact(store.ended(other).values()) == exact(store.ended(runs).values())


def test_a_config_changed_by_hand_no_longer_fits_its_key(runs, records):
    path = folder(runs, records[0].run)
    reseal(path, {}, config={"seed": 7})
    with pytest.raises(DamagedRun, match="holds the config of run"):
        store.read(path)


def test_a_folder_that_is_no_run_is_left_alone(runs, records, command):
    (runs / "notes").mkdir()
    (runs / "notes" / "todo.txt").write_text("x")
    (runs / "readme").write_text("x")
    status, out, _ = command("check", f"store={runs}")
    assert (status, out.splitlines()) == (0, [f"{runs / 'notes'}: is no run folder; left alone", "4 finished"])
    assert command("list", f"store={runs}")[::2] == (0, "")


# --- import


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_damaged_export_is_refused_with_its_line_or_means_the_same(tmp_path, records, packed):
    text = record.export(records).encode()
    whole = gzip.compress(text, mtime=0) if packed else text
    file, refused = tmp_path / "runs.jsonl", 0
    for seed in range(2 * BYTES):
        file.write_bytes(damaged(whole, seed))
        if text := said(lambda: read_export(file), DamagedRun):
            assert text.startswith("line ") or text == "is empty"
            refused += 1
        else:
            assert exact(read_export(file)[0]) == exact(records)
    assert refused > BYTES


def test_an_export_cut_between_two_lines_misses_its_end(tmp_path, records):
    lines = record.export(records).splitlines(keepends=True)
    file = tmp_path / "runs.jsonl"
    for kept, line in ((lines[:2], 3), (lines[1:], 3), ([*lines[:1], *lines[2:]], 3), (lines[:3] + lines[:2], 6)):
        file.write_text("".join(kept))
        with pytest.raises(DamagedRun, match=f"line {line}: "):
            read_export(file)
    file.write_text("".join(lines * 2))  # two exports joined
    assert exact(read_export(file)[0]) == exact(records)


def test_old_exports_have_no_checksums_and_are_never_a_traceback(tmp_path, records):
    whole = (REFERENCE / "fig04-part" / "runs.jsonl").read_bytes()
    file = tmp_path / "runs.jsonl"
    for seed in range(BYTES):
        file.write_bytes(damaged(whole, seed))
        text = said(lambda: read_export(file), DamagedRun)
        assert text is None or text.startswith("line ")


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*/runs.jsonl*")), ids=lambda path: path.parent.name)
def test_the_reference_exports_are_imported_as_they_are(path):
    records, has_checksums = read_export(path)
    assert has_checksums == (path.parent.name == "pool")  # the others are of earlier versions
    assert len(records) == len({one.run.key for one in records}) >= 11
    assert exact(record.parse_export(record.export(records[:20]))) == exact(records[:20])


def _with(part: str, **changes):
    return lambda entry: entry[part].update(changes)


def _column(name: str, *values):
    return lambda entry: entry["epochs"].update({name: list(values) or entry["epochs"][name][:-1]})


def _cell(name: str, value):
    return lambda entry: entry["epochs"][name].__setitem__(1, value)


WRONG_LINES = {
    "another key": lambda entry: entry.update(key="0" * 16),
    "a path for a key": lambda entry: entry.update(key="../../etc/passwd"),
    "a field more": lambda entry: entry.update(path="/etc/passwd"),
    "no epochs": lambda entry: entry.pop("epochs"),
    "epochs of a run": lambda entry: entry.update(epochs={}),
    "another m": _with("config", batch_size=16),
    "text for m": _with("config", batch_size="4"),
    "true for the seed": _with("config", seed=True),
    "a setting more": _with("config", colour="red"),
    "a protocol to come": _with("config", protocol=2),
    "no protocol": _with("config", protocol=0),
    "no model": _with("config", model={}),
    "a model of a number": _with("config", model={"_target_": 5, "name": "x"}),
    "a name that moves the cursor": _with("config", model={"_target_": "a.b", "name": "\x1b[2J"}),
    "an endless name": _with("config", model={"_target_": "a.b", "name": "x" * 1000}),
    "no fingerprint": _with("config", data={"name": "digits"}),
    "no score": lambda entry: entry["result"].pop("score"),
    "no chance": lambda entry: entry["result"].pop("chance"),
    "an unknown status": _with("result", status="fine"),
    "negative seconds": _with("result", seconds=-1.0),
    "huge seconds": _with("result", seconds=1e300),
    "a score above one": _with("result", score=1.01),
    "fewer images than m": _with("result", train_images=3),
    "a lone surrogate": _with("result", commit="\ud800"),
    "a column cut": _column("test_loss"),
    "a column missing": lambda entry: entry["epochs"].pop("test_accuracy"),
    "an accuracy above one": _cell("test_accuracy", 1.5),
    "an epoch twice": _cell("epoch", 1),
    "half an update": _cell("updates", 1.5),
    "text in a column": _cell("test_loss", "low"),
    "null in a column": _cell("test_loss", None),
    "a loss of 400 digits": _cell("test_loss", 10**400),
    "negative seconds in a column": _cell("train_seconds", -1.0),
    "too many epochs": lambda entry: [column.extend(column) for column in entry["epochs"].values()],
}


def _rekeyed(entry: dict) -> dict:
    """As a stranger would, who knows how keys are made."""
    try:
        return entry | {"key": store.Run.from_dict(entry["config"]).key}
    except (TypeError, KeyError, AttributeError):
        return entry


@pytest.mark.parametrize("wrong", WRONG_LINES)
def test_a_wrong_line_is_named_and_nothing_is_imported(tmp_path, wrong):
    lines = (REFERENCE / "fig04-part" / "runs.jsonl").read_text().splitlines()[:4]
    entry = json.loads(lines[2])
    WRONG_LINES[wrong](entry)
    file = tmp_path / "runs.jsonl"
    right_if_rekeyed = ("another key", "a path for a key", "another m")
    for changed in [entry] if wrong in right_if_rekeyed else [entry, _rekeyed(entry)]:
        file.write_text("\n".join([*lines[:2], json.dumps(changed), lines[3]]))
        text = said(lambda: runs_command.add(file, tmp_path / "runs"), ConfigError)
        assert text.startswith(f"{file}: line 3: ")
        assert text.endswith("; nothing is imported")
    assert not (tmp_path / "runs").exists()


def test_two_results_under_one_key_are_refused_and_one_twice_is_one(tmp_path, records, command):
    other = Record(records[0].run, records[0].rows, records[0].result | {"score": 0.25})
    again = Record(records[0].run, records[0].rows, records[0].result | {"seconds": 1.0})
    file = tmp_path / "runs.jsonl"
    file.write_text(record.export(records[:2]) + record.export([other]))
    status, *_ = command("import", file, f"store={tmp_path / 'runs'}")
    assert "line 3: another result of run" in str(status)
    assert not (tmp_path / "runs").exists()
    file.write_text(record.export(records[:2]) + record.export([again]))
    assert command("import", file, f"store={tmp_path / 'runs'}")[:2] == (
        0,
        f"2 runs added to {tmp_path / 'runs'}, 0 were there already\n",
    )


NO_EXPORTS = {
    "empty": lambda file: file.write_text(""),
    "an empty gzip": lambda file: file.write_bytes(gzip.compress(b"")),
    "text": lambda file: file.write_text("Dear diary,\n"),
    "a photograph": lambda file: file.write_bytes(random.Random(0).randbytes(5000)),
    "half a gzip": lambda file: file.write_bytes(gzip.compress(random.Random(0).randbytes(5000))[:2000]),
    "an empty line": lambda file: file.write_text("\n\n"),
    "a folder": lambda file: file.mkdir(),
    "a pipe": lambda file: os.mkfifo(file),
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a link to nothing": lambda file: file.symlink_to("/nothing"),
    "not there": lambda file: None,
}


@pytest.mark.parametrize("what", NO_EXPORTS)
@pytest.mark.parametrize("name", ["runs.jsonl", "runs.jsonl.gz"])
def test_what_is_no_export_is_refused_in_one_line(tmp_path, command, what, name):
    NO_EXPORTS[what](tmp_path / name)
    status, *_ = command("import", tmp_path / name, f"store={tmp_path / 'runs'}")
    assert str(status).startswith(f"error: {tmp_path / name}: ")
    assert "\n" not in str(status)
    assert not (tmp_path / "runs").exists()


def test_a_small_file_that_unpacks_to_a_huge_one_is_left_at_the_limit(tmp_path, records, monkeypatch):
    zeros, file = gzip.compress(bytes(1 << 22)), tmp_path / "runs.jsonl.gz"
    file.write_bytes(b"".join([zeros] * 100))
    monkeypatch.setattr(record, "MOST_LINE", 1 << 20)
    with pytest.raises(DamagedRun, match="line 1: is longer"):
        read_export(file)
    file.write_bytes(gzip.compress(record.export(records).encode()))
    monkeypatch.setattr(record, "MOST_TEXT", 5000)
    with pytest.raises(DamagedRun, match=r"line \d: is longer"):
        read_export(file)


def test_an_import_keeps_results_that_are_there_says_so_and_leaves_a_run_in_training(runs, records, command, tmp_path):
    others = [Record(one.run, one.rows, one.result | {"score": 0.25}) for one in records[:1]]
    file = tmp_path / "runs.jsonl"
    file.write_text(record.export([*others, *records[1:]]))
    before = (folder(runs, records[0].run) / "result.json").read_bytes()
    path = folder(runs, records[1].run)
    for name in FILES:
        (path / name).unlink()
    with lock.hold(path):
        status, out, _ = command("import", file, f"store={runs}")
    assert status == 0
    assert out.splitlines() == [
        f"0 runs added to {runs}, 3 were there already",
        "1 left to the process that trains it now",
        f"{folder(runs, records[0].run)}: has another result than {file}, and keeps it",
    ]
    assert (folder(runs, records[0].run) / "result.json").read_bytes() == before


def test_on_a_full_disk_all_or_nothing_is_imported(tmp_path, records, command, monkeypatch):
    file = tmp_path / "runs.jsonl"
    file.write_text(record.export(records))
    synced = []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    status, *_ = command("import", file, f"store={tmp_path / 'runs'}")
    assert status == f"error: {tmp_path / 'runs'}: No space left on device; make room, and the same command goes on"
    assert not list((tmp_path / "runs").iterdir())


# --- export


def test_an_export_replaces_an_export_and_nothing_else(runs, records, command, tmp_path):
    goals = {
        "thesis.tex": lambda file: file.write_text("\\section{Small batches}\n"),
        "list.jsonl": lambda file: file.write_text('{"a": 1}\n'),
        "photo.gz": lambda file: file.write_bytes(gzip.compress(b"not ours")),
        "folder": lambda file: file.mkdir(),
        "link.jsonl": lambda file: file.symlink_to(tmp_path / "thesis.tex"),
        "nowhere.jsonl": lambda file: file.symlink_to(tmp_path / "nowhere"),
        "pipe.jsonl": lambda file: os.mkfifo(file),
    }
    for name, make in goals.items():
        make(tmp_path / name)

    def snapshot():
        there = {path: path.lstat() for path in tmp_path.iterdir()}
        return {path: (found.st_mode, found.st_ino, found.st_mtime_ns) for path, found in there.items()}

    before = snapshot()
    for goal in [*(tmp_path / name for name in goals), Path("/dev/null")]:
        status, *_ = command("export", goal, f"store={runs}")
        assert str(status).startswith(f"error: {goal}: is ")
    assert snapshot() == before
    assert not Path("/dev/null").is_file()
    (tmp_path / "new.jsonl").touch()  # as mktemp does
    for _ in range(2):
        assert command("export", tmp_path / "new.jsonl", f"store={runs}")[0] == 0
        assert exact(read_export(tmp_path / "new.jsonl")[0]) == exact(records)


def test_an_export_that_the_disk_does_not_take_leaves_the_one_before(runs, records, command, tmp_path, monkeypatch):
    file = tmp_path / "runs.jsonl"
    command("export", file, f"store={runs}")
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    status, *_ = command("export", file, f"store={runs}")
    assert status == f"error: {file}: No space left on device; make room, and the same command goes on"
    assert file.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


# --- merge


def test_merging_adds_what_is_done_once_with_weights_and_the_note(runs, records, command, tmp_path):
    mine, path = tmp_path / "mine", folder(runs, records[0].run)
    store.add(mine, *records[2:])
    (path / "weights.ckpt").write_bytes(b"weights")
    (path / "wandb.json").write_text("{}")
    (path / "notes.txt").write_text("x")
    (path / "checkpoint.ckpt").symlink_to("/etc/passwd")
    (runs / "0123456789abcdef").mkdir()
    assert command("merge", runs, f"store={mine}") == (
        0,
        f"2 runs added to {mine}, 2 were there already, 0 refused\n",
        "",
    )
    assert exact(store.ended(mine).values()) == exact(records)
    copy = folder(mine, records[0].run)
    assert {file.name for file in copy.iterdir()} == {*FILES, "weights.ckpt", "wandb.json"}
    assert all((copy / name).read_bytes() == (path / name).read_bytes() for name in FILES)
    assert command("merge", runs, f"store={mine}")[1].startswith("0 runs added")
    assert [path.name for path in mine.glob(".*")] == [".locks"]


def test_merging_refuses_two_results_of_one_run_names_both_and_adds_the_rest(runs, records, command, tmp_path):
    mine = tmp_path / "mine"
    run, rows, result = records[0].run, records[0].rows, records[0].result
    other = [row | {"test_loss": math.nan} for row in rows]
    store.add(
        mine, Record(run, other, result), Record(records[1].run, records[1].rows, records[1].result | {"seconds": 1.0})
    )
    before = (folder(mine, run) / "epochs.csv").read_bytes()
    status, out, err = command("merge", runs, f"store={mine}")
    assert (status, out) == (1, f"2 runs added to {mine}, 1 were there already, 1 refused\n")
    assert err == f"two results of one run: {folder(mine, run)} and {folder(runs, run)}; remove one of them\n"
    assert (folder(mine, run) / "epochs.csv").read_bytes() == before


def test_merging_wants_another_store(runs, command, tmp_path):
    assert "is this store itself" in str(command("merge", runs, f"store={runs}")[0])
    assert "is no folder" in str(command("merge", tmp_path / "nothing", f"store={runs}")[0])
    assert "needs a path first" in str(command("merge", f"store={runs}")[0])
    assert "merge takes all runs" in str(command("merge", tmp_path, "batch_size=8")[0])


@pytest.mark.parametrize("how", ["import", "merge"])
def test_nothing_is_added_through_a_link(runs, records, command, tmp_path, how):
    mine, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    elsewhere.mkdir()
    mine.mkdir()
    folder(mine, records[1].run).symlink_to(elsewhere)
    file = tmp_path / "runs.jsonl"
    file.write_text(record.export(records))
    status, *_ = command(how, file if how == "import" else runs, f"store={mine}")
    assert str(status).startswith(f"error: {folder(mine, records[1].run)}: is a link")
    assert not list(elsewhere.iterdir())
    assert len(list(mine.iterdir())) == 1
