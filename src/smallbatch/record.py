"""One ended run as data: what it has to be like, whoever wrote it, and how it becomes a line of an export."""

import csv
import gzip
import hashlib
import io
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from smallbatch.config import EarlyStopping
from smallbatch.errors import ConfigError, SmallBatchError, one_line
from smallbatch.files import kind, parse_json
from smallbatch.run import MOST_NAME, PROTOCOL, Run, check_run

Row = dict[str, float]

INTEGERS = ("epoch", "updates", "images")  # columns of whole numbers
ENDED = ("finished", "diverged")  # statuses that count as done; `failed` is tried again
# What the commands read of a done run. Runs of our own have all of it.
_NEEDED = ("chance", "train_images", "test_images")
_COLUMNS = (
    *("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    *("updates", "images", "train_seconds", "eval_seconds"),
)
MOST_LINE, MOST_TEXT = 1 << 24, 1 << 31  # bytes of an export, unpacked: a small file can hold any number of zeros
_GZIP = b"\x1f\x8b"
# What reading a damaged file or a stranger's may raise.
DAMAGE = (
    *(OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError),
    *(OverflowError, RecursionError, csv.Error, ConfigError),
)


class DamagedRun(SmallBatchError):
    """A run folder whose files do not fit together, or such a line of an export. Its text says which and why."""


@dataclass(frozen=True)
class Record:
    """One ended run, as read back and verified."""

    run: Run
    rows: list[Row]
    result: dict[str, Any]

    def outcome(self) -> str:
        """What training computed, as text: not how long that took, when, where and with which versions."""
        known = {name: self.result.get(name) for name in ("status", "score", *_NEEDED)}
        rows = [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in self.rows]
        return json.dumps([known, rows], sort_keys=True)


# --- what a record has to be like

_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0, le=2**53)]
_Seconds = Annotated[float, Field(ge=0, le=1e12)]
_Word = Annotated[str, Field(min_length=1, max_length=MOST_NAME)]


class _Part(BaseModel):
    """Values of the very type, numbers finite; names that we do not know are of a newer version, or a user's own."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


class _Named(_Part):
    target: _Word = Field(alias="_target_")
    name: _Word


class _Data(_Part):
    name: _Word
    fingerprint: _Word
    train_size: Annotated[int, Field(ge=1)] | None
    test_size: Annotated[int, Field(ge=1)] | None
    augment: bool


class _Config(_Part):
    """What `Run` leaves open."""

    model: _Named
    data: _Data
    optimizer: _Named
    loss: _Named | None = None
    stop: EarlyStopping | None = None


class _Result(_Part):
    status: Literal["finished", "diverged", "failed"]
    score: _Share | None
    seconds: _Seconds
    chance: _Share = 0.0
    train_images: _Count = 1
    test_images: Annotated[_Count, Field(ge=1)] = 1
    error: str = ""
    ended: str = "?"
    threads: int = 1
    versions: dict[str, str] = {}
    commit: str | None = None
    machine: dict[str, str | int | float | None] = {}
    code: dict[str, str] = {}

    @model_validator(mode="after")
    def _whole(self) -> "_Result":
        if self.score is None and self.status in ENDED:
            raise ValueError(f"a run that is {self.status} has a score")
        if self.score is None and not self.error:
            raise ValueError("a failed run says its error")
        return self


class _Line(BaseModel):
    """A line of an export. Those of older versions have no checksum."""

    model_config = ConfigDict(strict=True, extra="forbid")
    key: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    config: dict[str, Any]
    result: dict[str, Any]
    epochs: dict[_Word, list[int | float | Literal["nan", "inf", "-inf"]]]
    sha256: str | None = None
    lines: int | None = None


@cache
def _adapter(wanted: Any) -> TypeAdapter[Any]:
    return TypeAdapter(wanted)


def fits(wanted: Any, value: Any, where: str) -> None:
    """Raise ValueError unless a value from JSON has the types and lies in the ranges of a class."""
    try:
        _adapter(wanted).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, (where, *first['loc'])))}: {first['msg']}") from None


def make_record(config: Any, rows: list[Row], result: Any) -> Record:
    """A record of what was read, once it is checked. Raises ValueError, TypeError for names that no run has."""
    fits(_Result, result, "result")
    fits(Run, config, "config")
    fits(_Config, config, "config")
    if config.get("protocol", 1) not in range(1, PROTOCOL + 1):
        raise ValueError(f"config.protocol: is {config['protocol']}, and this version knows 1 to {PROTOCOL}")
    run = Run.from_dict(config)
    check_run(run)
    if run.batch_size > result.get("train_images", run.batch_size):
        raise ValueError("config.batch_size: is larger than result.train_images")
    _check_rows(rows)
    return Record(run, rows, result)


def _check_rows(rows: list[Row]) -> None:
    """Raise ValueError for epochs that no run has."""
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            if not _possible(name, value) or (name == "epoch" and value != number):
                raise ValueError(f"epochs.{name}: {value} in row {number}")


def _possible(name: str, value: float) -> bool:
    if name in INTEGERS:
        return 0 <= value <= 2**53
    if name.endswith("_seconds"):
        return 0 <= value <= 1e12
    return "accuracy" not in name or math.isnan(value) or 0 <= value <= 1


def make_row(values: dict[str, Any]) -> Row:
    """A row as it was, from text or JSON. Raises ValueError, TypeError, OverflowError."""
    return {name: _whole(value) if name in INTEGERS else float(value) for name, value in values.items()}


def _whole(value: Any) -> int:
    if isinstance(value, float):
        raise ValueError(f"{value} is no whole number")
    return int(value)


# --- exports


def export(records: list[Record]) -> str:
    """One JSON line a run, in the order of their keys: config, result, epoch rows by column, and a checksum.

    The last line says how many lines there are, so that one cut off is missed. Exports can be joined.
    """
    lines = []
    for number, record in enumerate(sorted(records, key=lambda r: r.run.key), 1):
        columns: dict[str, list[float | str]] = defaultdict(list)
        for row in record.rows:
            for name, value in row.items():
                columns[name].append(value if math.isfinite(value) else str(value))  # JSON has no nan and inf
        entry: dict[str, Any] = {"key": record.run.key}
        entry |= {"config": record.run.to_dict(), "result": record.result, "epochs": columns}
        entry |= {"lines": number} if number == len(records) else {}
        lines.append(json.dumps(entry | {"sha256": _checksum(entry)}, ensure_ascii=False, allow_nan=False))
    return "".join(line + "\n" for line in lines)


def _checksum(entry: dict[str, Any]) -> str:
    rest = {name: value for name, value in entry.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def parse_export(text: str) -> list[Record]:
    """The inverse of `export`. Raises DamagedRun, naming the line."""
    return [record for record, _ in _parse(io.BytesIO(text.encode()))]


def read_export(file: Path) -> tuple[list[Record], bool]:
    """The runs of a file, each once, and whether it has checksums; packed by gzip or not, whatever its name.

    Nothing in it is believed: a line has what `export` writes, in type, range and length, and the key of its config.
    Raises DamagedRun, naming the line.
    """
    if (there := kind(file.resolve())) != "file":  # a pipe would keep us waiting
        raise DamagedRun(f"is {f'a {there}, and ' if there else ''}no file")
    records: dict[str, Record] = {}
    sealed = False
    with file.open("rb") as raw:
        packed = raw.read(len(_GZIP)) == _GZIP
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        for number, (record, has_checksum) in enumerate(_parse(stream), 1):
            sealed = has_checksum
            before = records.setdefault(record.run.key, record)
            if before.outcome() != record.outcome():
                raise DamagedRun(f"line {number}: another result of run {record.run.key} than an earlier line has")
            if lacks := _lacks(record):
                raise DamagedRun(f"line {number}: lacks {lacks}")
            if len(record.rows) > record.run.epochs:
                raise DamagedRun(f"line {number}: has {len(record.rows)} epochs of {record.run.epochs}")
    if not records:
        raise DamagedRun("is empty")
    return list(records.values()), sealed


def _lacks(record: Record) -> str:
    """What a done run of a stranger's has not, though the commands read it; "" if nothing."""
    if record.result["status"] not in ENDED:
        return ""
    columns: Row = record.rows[-1] if record.rows else {}
    lacks = [f"result.{name}" for name in _NEEDED if name not in record.result]
    return ", ".join(lacks + [f"epochs.{name}" for name in _COLUMNS if name not in columns])


def is_export(file: Path) -> bool:
    """Whether a file begins as an export does, or is empty: it may be replaced by one."""
    with file.open("rb") as raw:
        packed = raw.read(len(_GZIP)) == _GZIP
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            return next(_parse(stream), None) is not None or not file.stat().st_size
        except DamagedRun:
            return False


def _parse(stream: BinaryIO) -> Iterator[tuple[Record, bool]]:
    """The record of each line, and whether it has a checksum. Raises DamagedRun, naming the line."""
    number, left, size, sealed = 0, 0, 0, None
    try:
        while line := stream.readline(MOST_LINE + 1):
            size += len(line)
            if len(line) > MOST_LINE or size > MOST_TEXT:
                raise ValueError(f"is longer than {MOST_LINE >> 20} MiB, or the file than {MOST_TEXT >> 30} GiB")
            entry = parse_json(line)
            record = _entry(entry)
            has = "sha256" in entry
            if sealed not in (None, has):
                raise ValueError("the checksum is missing" if sealed else "has a checksum, unlike those before")
            if entry.get("lines", left + 1) != left + 1:
                raise ValueError(f"{entry['lines']} lines should end here, and there are {left + 1}")
            number, left, sealed = number + 1, 0 if "lines" in entry else left + 1, has
            yield record, has
        if sealed and left:
            raise ValueError("is missing, since the file was cut off")
    except DAMAGE as error:
        raise DamagedRun(f"line {number + 1}: {one_line(error)}") from None


def _entry(entry: Any) -> Record:
    """The record of a line, checked."""
    fits(_Line, entry, "run")
    if "sha256" in entry and entry["sha256"] != _checksum(entry):
        raise ValueError("does not match its checksum")
    columns = entry["epochs"]
    rows = [make_row(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
    record = make_record(entry["config"], rows, entry["result"])
    if record.run.key != entry["key"]:
        raise ValueError(f"the config does not give the key {entry['key']}")
    return record
