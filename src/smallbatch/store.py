"""Run folders: what a run left behind, checked when read.

A folder `<store>/<key>/` holds config.json (the run), epochs.csv (a row per epoch), result.json (when the run ended)
and, until then, checkpoint.ckpt.
"""

import csv
import hashlib
import io
import json
import math
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from smallbatch import lock
from smallbatch.code import changed
from smallbatch.errors import ConfigError, SmallBatchError
from smallbatch.files import write_text
from smallbatch.run import Run

CHECKPOINT = "checkpoint.ckpt"
WEIGHTS = "weights.ckpt"  # of the trained network, where they were asked for: a checkpoint of Lightning's
LIGHTNING = "lightning"  # the folder for what callbacks and loggers write
BEFORE = ".before"  # the folder for an ended run while it is trained again, in case that fails
ENDED = ("finished", "diverged")  # statuses that count as done; `failed` is tried again

Row = dict[str, float]


class DamagedRun(SmallBatchError):
    """A run folder whose files do not fit together. Its text says which and why."""


@dataclass(frozen=True)
class Record:
    """One ended run, as read back and verified."""

    run: Run
    rows: list[Row]
    result: dict[str, Any]


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
        text = (path / "result.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        result = json.loads(text)
        seal = result.pop("sha256")
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        run = Run.from_dict(config)
        text = (path / "epochs.csv").read_text(encoding="utf-8")
        rows = [_row(row) for row in csv.DictReader(io.StringIO(text))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedRun(f"{path}: unreadable ({type(error).__name__}: {error})") from None
    if seal != _seal(config, text, result):
        raise DamagedRun(f"{path}: the files do not match the checksum in result.json")
    if run.key != path.name:
        raise DamagedRun(f"{path}: holds the config of run {run.key}")
    return Record(run, rows, result)


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
        say(f"damaged, training it again: {damage}")
        return None
    return record if record and record.result["status"] in ENDED else None


def kept(path: Path, cfg: DictConfig, say: Callable[[str], None]) -> Record | None:
    """The record of a run that is done and is not to be trained again; `say` hears of damage and of changed code.

    Of a point whose grid has several processes also what one of them has just trained, be it failed or overwritten.
    """
    if cfg.overwrite not in (False, True, "changed"):
        raise ConfigError(f"overwrite={cfg.overwrite}: choose false, true or changed")
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


def watched(cfg: DictConfig) -> bool:
    """Whether the config has callbacks or a logger of Lightning's, which see nothing of a run that is there."""
    return bool(cfg.callbacks) or "_target_" in cfg.logger


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


def export(records: list[Record]) -> str:
    """One JSON line a run, in the order of their keys: config, result and epoch rows by column."""
    lines = []
    for record in sorted(records, key=lambda r: r.run.key):
        columns: dict[str, list[float | str]] = defaultdict(list)
        for row in record.rows:
            for name, value in row.items():
                columns[name].append(value if math.isfinite(value) else str(value))  # JSON has no nan and inf
        entry = {"key": record.run.key, "config": record.run.to_dict(), "result": record.result, "epochs": columns}
        lines.append(json.dumps(entry, ensure_ascii=False, allow_nan=False))
    return "".join(line + "\n" for line in lines)


def parse_export(text: str) -> list[Record]:
    """The inverse of `export`. Raises DamagedRun, naming the line."""
    records = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        try:
            entry = json.loads(line)
            run = Run.from_dict(entry["config"])
            columns = entry["epochs"]
            rows = [_row(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
            record = Record(run, rows, entry["result"])
            if run.key != entry["key"] or record.result["status"] not in (*ENDED, "failed"):
                raise ValueError(f"the config does not give the key {entry['key']}, or the status is unknown")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedRun(f"line {number}: {error}") from None
        records.append(record)
    return records


def add(store: Path, record: Record) -> bool:
    """Add an ended run to a store, all at once; False if the store has a result for it already, or trains it."""
    path = folder(store, record.run)
    try:
        with lock.hold(path):
            if done(path):
                return False
            write_result(path, record.run, record.rows, record.result)
            (path / CHECKPOINT).unlink(missing_ok=True)
    except lock.Busy:
        return False
    return True


def begin(path: Path, run: Run, afresh: bool) -> None:
    """Make the folder of a run whose lock we hold ready to train in.

    What training goes on from stays (checkpoint, rows, the note on W&B), unless `afresh` or if the folder is damaged.
    An ended run is put aside until `conclude`.
    """
    try:
        record = read(path)
    except DamagedRun:
        record, afresh = None, True
    if record and record.result["status"] in ENDED:
        _put_aside(path)
    (path / "result.json").unlink(missing_ok=True)  # first: without it the other files may be missing
    for file in path.glob("*"):
        if file.name != BEFORE and (afresh or file.name.startswith(".") or file.name == "traceback.txt"):
            _remove(file)
    write_config(path, run)


def conclude(path: Path, failed: bool) -> bool:
    """Tidy up after a run's result was written; whether it failed, and the ended run that was there before is back."""
    if not failed:
        _remove(path / BEFORE)
        _remove(path / CHECKPOINT)
    elif (path / BEFORE / "result.json").exists():
        for file in path.glob("*"):
            if file.name not in (BEFORE, "result.json", "traceback.txt"):
                _remove(file)
        for file in sorted((path / BEFORE).iterdir(), key=lambda file: file.name == "result.json"):
            file.replace(path / file.name)
        _remove(path / BEFORE)
        return True
    return False


def _put_aside(path: Path) -> None:
    """All but the note on W&B, which has the new run from now on."""
    _remove(path / BEFORE)
    (path / BEFORE).mkdir()
    for file in sorted(path.glob("*"), key=lambda file: file.name != "result.json"):
        if file.name not in (BEFORE, "wandb.json"):
            file.replace(path / BEFORE / file.name)


def _remove(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def tidy(path: Path) -> None:
    """Remove what a process killed between its result and its end left in a finished run's folder."""
    if not (path / CHECKPOINT).exists():
        return
    with suppress(SmallBatchError, OSError), lock.hold(path):  # a holder will tidy up itself; or no right to
        for file in (path / CHECKPOINT, *path.glob(".*")):
            _remove(file)


def timestamp() -> str:
    """Now, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def seal(record: Record) -> str:
    """The checksum that result.json carries: it changes when a run is trained again."""
    return _seal(record.run.to_dict(), _rows_text(record.rows), record.result)


def _seal(config: dict[str, Any], rows: str, result: dict[str, Any]) -> str:
    text = json.dumps([config, rows, result], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


INTEGERS = ("epoch", "updates", "images")


def _rows_text(rows: list[Row]) -> str:
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return buffer.getvalue()


def _row(values: dict[str, Any]) -> Row:
    """A row as it was, from text or JSON."""
    return {name: int(value) if name in INTEGERS else float(value) for name, value in values.items()}


def summary(record: Record, store: Path, skipped: bool = False) -> str:
    """One plain line: what it was, status, score, seconds, folder."""
    result = record.result
    points = f"score {result['score']:.4f}" if result["score"] is not None else result["error"]
    how = f"{result['status']} before" if skipped else result["status"]
    path = folder(store, record.run) / ("traceback.txt" if result["status"] == "failed" else "")
    return f"{record.run.label}: {how}, {points}, {result['seconds']:.1f} s, {path}"


def trial_summary(record: Record) -> str:
    """One plain line of a trial."""
    result, last = record.result, record.rows[-1:]
    points = result.get("error") or ", ".join(f"{name} {last[0][name]:.4f}" for name in ("train_loss", "test_accuracy"))
    return f"{record.run.label}: a trial, {result['status']}, {points}; nothing of it is kept"
