"""Run folders: what a run left behind, checked when read.

A folder `<store>/<key>/` holds config.json (the run), epochs.csv (a row per epoch), result.json (when the run ended)
and, until then, checkpoint.ckpt.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from smallbatch import lock
from smallbatch.code import changed
from smallbatch.errors import SmallBatchError, one_line
from smallbatch.files import kind, parse_json, read_text, replacing, write_text
from smallbatch.record import DAMAGE, ENDED, DamagedRun, Record, Row, make_record, make_row
from smallbatch.record import export as export
from smallbatch.record import parse_export as parse_export
from smallbatch.run import Run

CHECKPOINT = "checkpoint.ckpt"
WEIGHTS = "weights.ckpt"  # of the trained network, where they were asked for: a checkpoint of Lightning's
LIGHTNING = "lightning"  # the folder for what callbacks and loggers write
BEFORE = ".before"  # the folder for an ended run while it is trained again, in case that fails
DAMAGED = ".damaged"  # the folder of a store for damaged run folders that were trained again
TRACEBACK, NOTE = "traceback.txt", "wandb.json"
_ENDED_FILES = ("config.json", "epochs.csv", "result.json")  # the last one makes the others count
FILES, FOLDERS = (*_ENDED_FILES, CHECKPOINT, WEIGHTS, TRACEBACK, NOTE), (LIGHTNING, BEFORE)
_HALF_WRITTEN = re.compile(rf"\.({'|'.join(map(re.escape, FILES))})\.\w+\.tmp")  # by a process that was killed
KEY = re.compile("[0-9a-f]{16}")


class NotOurs(SmallBatchError):
    """A run folder is a link, or training would remove what is not ours from it."""


def folder(store: Path, run: Run) -> Path:
    """Where a run lives."""
    return store / run.key


def write_config(path: Path, run: Run) -> None:
    """Write config.json into a run folder, which is made if need be."""
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / "config.json", json.dumps(run.to_dict(), indent=1, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write epochs.csv whole; floats in the shortest form that reads back equal."""
    write_text(path / "epochs.csv", _rows_text(rows))


def write_result(path: Path, run: Run, rows: list[Row], result: dict[str, Any]) -> None:
    """Write result.json last: from then on the run counts as done (unless it failed)."""
    write_config(path, run)
    write_rows(path, rows)
    sealed = result | {"sha256": _seal(run.to_dict(), _rows_text(rows), result)}
    write_text(path / "result.json", json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read(path: Path) -> Record | None:
    """The verified record in a run folder, None if the run has not ended. Raises DamagedRun."""
    try:
        sealed = _load(path / "result.json")
    except FileNotFoundError:
        if names := {*_strangers(path)} & {*FILES, *FOLDERS}:
            raise DamagedRun(f"{path}: {', '.join(sorted(names))} is not what we wrote") from None
        return None
    except DAMAGE as error:
        if not os.path.lexists(path):  # nor can be, as below a file: who writes there hears of it
            return None
        raise _unreadable(path, error) from None
    try:
        seal = sealed["sha256"]
        result = {name: value for name, value in sealed.items() if name != "sha256"}
        config = _load(path / "config.json")
        text = read_text(path / "epochs.csv")
        rows = [make_row(row) for row in csv.DictReader(io.StringIO(text), strict=True)]
        if seal != _seal(config, text, result):
            raise DamagedRun(f"{path}: the files do not match the checksum in result.json")
        record = make_record(config, rows, result)
    except DAMAGE as error:
        raise _unreadable(path, error) from None
    if record.run.key != path.name:
        raise DamagedRun(f"{path}: holds the config of run {record.run.key}")
    return record


def _load(file: Path) -> dict[str, Any]:
    loaded = parse_json(read_text(file))
    if not isinstance(loaded, dict):
        raise ValueError(f"{file.name}: is no JSON object")
    return loaded


def _unreadable(path: Path, error: BaseException) -> DamagedRun:
    reason = f"{Path(error.filename).name}: {error.strerror}" if isinstance(error, OSError) and error.filename else ""
    return DamagedRun(f"{path}: unreadable ({reason or f'{type(error).__name__}: {one_line(error)}'})")


def ended(store: Path, statuses: Container[str] = ENDED) -> dict[str, Record]:
    """The sound runs that count as done, or have one of these statuses, by key; damaged folders are named on stderr."""
    records = {}
    for _, record in read_all(store):
        if isinstance(record, DamagedRun):
            print(f"damaged, left out: {record}", file=sys.stderr)
        elif record and record.result["status"] in statuses:
            records[record.run.key] = record
    return records


def done(path: Path, say: Callable[[str], None] = lambda line: None) -> Record | None:
    """The sound record in a run folder if it counts as done; `say` hears of damage."""
    try:
        record = read(path)
    except DamagedRun as damage:
        say(f"damaged, training it again: {damage}; what was there goes to {path.parent / DAMAGED}")
        return None
    return record if record and record.result["status"] in ENDED else None


def kept(path: Path, cfg: DictConfig, say: Callable[[str], None]) -> Record | None:
    """The record of a run that is done and is not to be trained again; `say` hears of damage and of changed code.

    Of a point whose grid has several processes also what one of them has just trained, be it failed or overwritten.
    """
    if is_of_grid(path / "result.json", cfg):
        with suppress(DamagedRun):
            return read(path)
    record = None if cfg.overwrite is True else done(path, say)
    files = changed(record.run, record.result.get("code", {})) if record else ""
    if files and cfg.overwrite == "changed":
        return None
    if record and files:
        say(f"{files} has changed since {record.run.label} ({path}) was trained; overwrite=changed trains it again")
    return record


def is_of_grid(file: Path, cfg: DictConfig) -> bool:
    """Whether a file was written since the grid began that its run is a point of."""
    try:
        return cfg.grid_since is not None and file.stat().st_mtime_ns >= cfg.grid_since
    except FileNotFoundError:
        return False


def read_all(store: Path) -> Iterator[tuple[Path, Record | DamagedRun | None]]:
    """Every run folder with its record, what is wrong with it, or None while it is not ended."""
    if not store.is_dir():
        return
    for path in sorted(store.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            try:
                yield path, read(path)
            except DamagedRun as damage:
                yield path, damage


def add(store: Path, *records: Record, source: Path | None = None) -> int:
    """Add ended runs to a store, all or none; how many, since it keeps results of its own and what is in training.

    `source` is another store that the runs are copied from, with weights and the note on W&B. Raises NotOurs,
    DamagedRun if a run changes meanwhile.
    """
    paths = [folder(store, record.run) for record in records]
    for path in paths:
        refuse(path, overwrite=False)
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".add-") as staged:  # a full disk ends it here
        written = [Path(staged, path.name) for path in paths]
        for record, there in zip(records, written, strict=True):
            there.mkdir()
            if source:
                _copy(folder(source, record.run), there)
                if (copy := read(there)) is None or copy.outcome() != record.outcome():
                    raise DamagedRun(f"{folder(source, record.run)}: has changed meanwhile; say it again")
            else:
                write_result(there, record.run, record.rows, record.result)
        return sum(_place(there, path) for there, path in zip(written, paths, strict=True))


def _copy(path: Path, there: Path) -> None:
    for name in (*_ENDED_FILES, WEIGHTS, NOTE):
        if kind(path / name) == "file":
            with replacing(there / name) as temporary:
                shutil.copyfile(path / name, temporary)


def _place(written: Path, path: Path) -> bool:
    """Move a whole run to its folder, unless that has a result or is in training."""
    with suppress(lock.Busy), lock.hold(path):
        if done(path):
            return False
        begin(path, None, afresh=False)
        for file in sorted(written.iterdir(), key=lambda file: file.name == "result.json"):
            file.replace(path / file.name)
        _remove(path / CHECKPOINT)
        return True
    return False


def refuse(path: Path, overwrite: bool) -> None:
    """Raise NotOurs for a run folder that is a link, or, if it is to be overwritten, has what we did not write."""
    if path.is_symlink():
        raise NotOurs(f"{path}: is a link, and nothing is written through it; put the folder itself there")
    if overwrite and (names := _strangers(path)):
        raise NotOurs(f"{path}: overwrite would remove {', '.join(names)}, which we did not write; move that away")


def _strangers(path: Path) -> list[str]:
    """The names in a run folder of what we did not write."""
    return sorted(file.name for file in path.glob("*") if not _is_ours(file))


def _is_ours(file: Path) -> bool:
    """Whether we wrote a file or folder, or it has gone meanwhile."""
    if file.name in FOLDERS:
        return kind(file) in ("folder", None)
    return kind(file) in ("file", None) and (file.name in FILES or _is_half_written(file))


def _is_half_written(file: Path) -> bool:
    return _HALF_WRITTEN.fullmatch(file.name) is not None


def begin(path: Path, run: Run | None, afresh: bool) -> None:
    """Make the folder of a run whose lock we hold ready to train in; without a run, to receive a result.

    What training goes on from stays (checkpoint, rows, the note on W&B), unless `afresh`. An ended run is put aside
    until `conclude`, a damaged folder for good. Raises NotOurs.
    """
    refuse(path, afresh)
    try:
        record = read(path)
    except DamagedRun:
        record = None
        _put_away(path)
    if record and record.result["status"] in ENDED:
        _put_aside(path)
    _remove(path / "result.json")  # first: without it the other files may be missing
    for file in path.glob("*"):
        if _is_half_written(file) or file.name == TRACEBACK or (afresh and file.name != BEFORE):
            _remove(file)
    if run:
        write_config(path, run)
    else:
        path.mkdir(parents=True, exist_ok=True)


def conclude(path: Path, failed: bool) -> bool:
    """Tidy up after a run's result was written; whether it failed, and the ended run that was there before is back."""
    if not failed:
        _remove(path / BEFORE)
        _remove(path / CHECKPOINT)
    elif (path / BEFORE / "result.json").exists():
        for file in path.glob("*"):
            if file.name not in (BEFORE, "result.json", TRACEBACK):
                _remove(file)
        for file in sorted((path / BEFORE).iterdir(), key=lambda file: file.name == "result.json"):
            file.replace(path / file.name)
        _remove(path / BEFORE)
        return True
    return False


def _put_aside(path: Path) -> None:
    """All of ours but the note on W&B, which has the new run from now on."""
    _remove(path / BEFORE)
    (path / BEFORE).mkdir()
    for file in sorted(path.glob("*"), key=lambda file: file.name != "result.json"):
        if _is_ours(file) and file.name not in (BEFORE, NOTE):
            file.replace(path / BEFORE / file.name)


def _put_away(path: Path) -> None:
    """Move a damaged folder, or what else lies there, out of the way; only an ended run put aside in it stays."""
    (path.parent / DAMAGED).mkdir(exist_ok=True)
    away = Path(tempfile.mkdtemp(dir=path.parent / DAMAGED, prefix=f"{path.name}-")) / path.name
    path.rename(away)
    if kind(away / BEFORE) == "folder":
        path.mkdir()
        (away / BEFORE).rename(path / BEFORE)


def _remove(file: Path) -> None:
    """Remove what we wrote; what else has its name stays."""
    if _is_ours(file) and file.name in FOLDERS and file.exists():
        shutil.rmtree(file)
    elif _is_ours(file) and file.name not in FOLDERS:
        file.unlink(missing_ok=True)


def tidy(path: Path) -> None:
    """Remove what a process killed between its result and its end left in a finished run's folder."""
    if not (path / CHECKPOINT).exists():
        return
    with suppress(SmallBatchError, OSError), lock.hold(path):  # a holder will tidy up itself; or no right to
        for file in (path / CHECKPOINT, path / BEFORE, *filter(_is_half_written, path.glob(".*"))):
            _remove(file)


def seal(record: Record) -> str:
    """The checksum that result.json carries: it changes when a run is trained again."""
    return _seal(record.run.to_dict(), _rows_text(record.rows), record.result)


def _seal(config: dict[str, Any], rows: str, result: dict[str, Any]) -> str:
    text = json.dumps([config, rows, result], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _rows_text(rows: list[Row]) -> str:
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return buffer.getvalue()


def summary(record: Record, store: Path, skipped: bool = False) -> str:
    """One plain line: what it was, status, score, seconds, folder."""
    result = record.result
    points = f"score {result['score']:.4f}" if result["score"] is not None else result["error"]
    how = f"{result['status']} before" if skipped else result["status"]
    path = folder(store, record.run) / (TRACEBACK if result["status"] == "failed" else "")
    return f"{record.run.label}: {how}, {points}, {result['seconds']:.1f} s, {path}"


def trial_summary(record: Record) -> str:
    """One plain line of a trial."""
    result, last = record.result, record.rows[-1:]
    points = result.get("error") or ", ".join(f"{name} {last[0][name]:.4f}" for name in ("train_loss", "test_accuracy"))
    return f"{record.run.label}: a trial, {result['status']}, {points}; nothing of it is kept"
