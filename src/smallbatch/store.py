"""Run folders: who trains a run, what it left behind, and all of them as one table.

A folder `<store>/<key>/` holds config.json (the run), epochs.csv (a row per epoch), result.json (when
the run ended) and, until then, checkpoint.ckpt and claim.
"""

import csv
import fcntl
import hashlib
import io
import json
import math
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from smallbatch.config import Run
from smallbatch.files import write_text

ENDED = ("finished", "diverged")  # statuses that count as done; `failed` is tried again
HEARTBEAT = 10.0  # seconds between signs of life of a claim
CLAIM, CHECKPOINT = "claim", "checkpoint.ckpt"
STALE = 120.0  # seconds without one after which its run may be taken over

Row = dict[str, float]


class DamagedRun(Exception):
    """A run folder whose files do not fit together. Its text says which and why."""


class Busy(Exception):
    """Another live process holds the run's claim."""


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
    """Write config.json into a run folder."""
    write_text(path / "config.json", json.dumps(run.to_dict(), indent=1, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write epochs.csv whole; floats in the shortest form that reads back equal."""
    write_text(path / "epochs.csv", _rows_text(rows))


def write_result(path: Path, run: Run, rows: list[Row], result: dict[str, Any]) -> None:
    """Write result.json last: from then on the run counts as done (unless it failed)."""
    write_config(path, run)
    write_rows(path, rows)
    sealed = result | {"sha256": _seal(run, _rows_text(rows), result)}
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
        run = Run.from_dict(json.loads((path / "config.json").read_text(encoding="utf-8")))
        text = (path / "epochs.csv").read_text(encoding="utf-8")
        rows = _parse_rows(text)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedRun(f"{path}: unreadable ({type(error).__name__}: {error})") from None
    if seal != _seal(run, text, result):
        raise DamagedRun(f"{path}: the files do not match the checksum in result.json")
    if run.key != path.name:
        raise DamagedRun(f"{path}: holds the config of run {run.key}")
    return Record(run, rows, result)


def ended(store: Path) -> dict[str, Record]:
    """The sound runs that count as done, by key; damaged folders are named on stderr."""
    records = {}
    for _, record in read_all(store):
        if isinstance(record, DamagedRun):
            print(f"damaged, left out: {record}", file=sys.stderr)
        elif record and record.result["status"] in ENDED:
            records[record.run.key] = record
    return records


def is_done(path: Path) -> bool:
    """Whether the folder holds a sound result that counts as done."""
    try:
        record = read(path)
    except DamagedRun:
        return False
    return record is not None and record.result["status"] in ENDED


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
        names = record.rows[0] if record.rows else ()
        columns = {name: [_json_float(row[name]) for row in record.rows] for name in names}
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
            names, columns = list(entry["epochs"]), list(entry["epochs"].values())
            rows = [dict(zip(names, map(_from_json, values), strict=True)) for values in zip(*columns, strict=True)]
            record = Record(run, rows, entry["result"])
            if run.key != entry["key"] or record.result["status"] not in (*ENDED, "failed"):
                raise ValueError(f"the config does not give the key {entry['key']}, or the status is unknown")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedRun(f"line {number}: {error}") from None
        records.append(record)
    return records


def add(store: Path, record: Record) -> bool:
    """Add an ended run to a store, all at once; False if the store has a result for it already."""
    path = folder(store, record.run)
    try:
        with Claim(path):
            if is_done(path):
                return False
            write_result(path, record.run, record.rows, record.result)
            (path / CHECKPOINT).unlink(missing_ok=True)
    except Busy:
        return False
    return True


@dataclass
class Claim:
    """The exclusive right to train a run, as a context manager. Raises Busy if a live process holds it.

    The claim is a file created exclusively; its time of change is the heartbeat. Taking over a stale
    one, and giving one back, look and act under a lock of the store, since what was looked at may
    have been replaced before the act.
    """

    path: Path
    _text: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _beat: threading.Thread | None = None

    def __enter__(self) -> "Claim":
        self.path.mkdir(parents=True, exist_ok=True)
        token = os.urandom(8).hex()  # tells this claim from another one of this process
        who = {"host": host(), "pid": os.getpid(), "started": process_start(os.getpid()), "token": token}
        self._text = json.dumps(who)
        with _locked(self.path.parent):
            if claimed(self.path):
                raise Busy(f"{self.path}: {_holder(_claim_text(self._file))} is training it")
            self._file.unlink(missing_ok=True)
            try:
                with self._file.open("x", encoding="utf-8") as file:
                    file.write(self._text)
            except FileExistsError:  # where the disk has no locks
                raise Busy(f"{self.path}: another process has just claimed it") from None
        self._beat = threading.Thread(target=self._keep_alive, daemon=True)
        self._beat.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if self._beat:
            self._beat.join()
        with _locked(self.path.parent):
            if self.is_held():
                self._file.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """False once another process has taken over, thinking this one dead."""
        return _claim_text(self._file) == self._text

    @property
    def _file(self) -> Path:
        return self.path / CLAIM

    def _keep_alive(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with suppress(OSError):  # taken over, or the disk is away for a moment: is_held() tells
                os.utime(self._file)


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """Alone among all processes for the milliseconds of a look and an act; the system frees a dead one's lock."""
    with (store / ".lock").open("a") as file:
        with suppress(OSError):  # a disk without locks: then a takeover is exclusive only to the millisecond
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claimed(path: Path) -> bool:
    """Whether a live process is training the run."""
    return (path / CLAIM).exists() and not _is_stale(path / CLAIM)


@lru_cache(maxsize=1)
def host() -> str:
    """This machine since its last start: process numbers mean nothing elsewhere or before."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = ""
    return f"{socket.gethostname()}/{boot}"


def process_start(pid: int) -> str | None:
    """A process's start time where the system tells it, to know a reused process number; None for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return None


def _claim_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _holder(text: str | None) -> str:
    try:
        claim = json.loads(text or "")
        return f"process {claim['pid']} on {claim['host'].split('/')[0]}"
    except (ValueError, KeyError):
        return "another process"


def _is_stale(path: Path) -> bool:
    """Whether a claim's process is gone (same host) or its heartbeat old (by the file system's own clock)."""
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
        if claim["host"] == host():
            started = process_start(claim["pid"])
            return not _alive(claim["pid"]) or (claim["started"] is not None and started != claim["started"])
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError):
        pass  # being written just now, or torn by a crash: its age decides
    try:
        return _disk_time(path.parent.parent) - path.stat().st_mtime > STALE
    except FileNotFoundError:
        return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _disk_time(path: Path) -> float:
    """Now, by the clock that stamps files in `path` (another machine's on a shared disk)."""
    with tempfile.NamedTemporaryFile(dir=path, prefix=".time.") as file:
        return os.stat(file.name).st_mtime


def tidy(path: Path) -> None:
    """Remove what a process killed between its result and its end left in a finished run's folder."""
    if not any((path / name).exists() for name in (CHECKPOINT, CLAIM)):
        return
    with suppress(Busy), Claim(path):  # a live holder will tidy up itself
        clear(path, CHECKPOINT)
        clear(path, ".*")


def clear(path: Path, pattern: str = "*") -> None:
    """Remove the files of a run folder that we hold, all but claims."""
    for file in path.glob(pattern):
        if file.name != CLAIM:
            file.unlink(missing_ok=True)


def timestamp() -> str:
    """Now, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def seal(record: Record) -> str:
    """The checksum that result.json carries: it changes when a run is trained again."""
    return _seal(record.run, _rows_text(record.rows), record.result)


def _seal(run: Run, rows: str, result: dict[str, Any]) -> str:
    text = json.dumps([run.to_dict(), rows, result], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


INTEGERS = ("epoch", "updates", "images")


def _rows_text(rows: list[Row]) -> str:
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return buffer.getvalue()


def _parse_rows(text: str) -> list[Row]:
    rows = csv.DictReader(io.StringIO(text))
    return [{name: int(v) if name in INTEGERS else float(v) for name, v in row.items()} for row in rows]


def _json_float(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no nan and inf


def _from_json(value: float | str) -> float:
    return float(value) if isinstance(value, str) else value


def summary(record: Record, store: Path, skipped: bool = False) -> str:
    """One plain line: what it was, status, score, seconds, folder."""
    result = record.result
    points = f"score {result['score']:.4f}" if result["score"] is not None else result["error"]
    how = f"{result['status']} before" if skipped else result["status"]
    path = folder(store, record.run) / ("traceback.txt" if result["status"] == "failed" else "")
    return f"{record.run.label}: {how}, {points}, {result['seconds']:.1f} s, {path}"
