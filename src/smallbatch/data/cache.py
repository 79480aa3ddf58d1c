"""What is kept in `data.root`/unpacked: arrays as files that can be memory-mapped, and what was found in a source."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from smallbatch.data.sources import ARRAYS
from smallbatch.files import replacing, write_text

CHECKS = 1  # raised by one whenever more is looked at in a source, so that each is looked at again


def recall(root: Path, source: Path, stamp: dict[str, Any]) -> dict[str, Any] | None:
    """What was found in a source, unless it has changed, as its stamp says, or less was looked at then."""
    try:
        digest, text = _note(root, source).read_text(encoding="utf-8").split("\n")
        known: dict[str, Any] = json.loads(text) if digest == _digest(text) else {}
        return known if known.get("stamp") == stamp and known["checks"] == CHECKS else None
    except (OSError, ValueError):
        return None


def remember(root: Path, source: Path, stamp: dict[str, Any], found: dict[str, Any]) -> None:
    """Keep what was found in a source. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found | {"stamp": stamp, "checks": CHECKS})
    write_text(_note(root, source), f"{_digest(text)}\n{text}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _note(root: Path, source: Path) -> Path:
    return root / f"{source.stem}-{hashlib.sha256(bytes(source.resolve())).hexdigest()[:8]}.json"


def files(folder: Path) -> list[Path]:
    """Those of an unpacked data set."""
    return [folder / f"{name}.npy" for name in ARRAYS]


def write(folder: Path, arrays: dict[str, np.ndarray]) -> list[int]:
    """Write arrays, each in one step, so that whoever reads the folder meanwhile is not disturbed; their checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in zip(ARRAYS, files(folder), strict=True):
        with replacing(file) as temporary, temporary.open("wb") as opened:
            np.save(opened, np.ascontiguousarray(arrays[name]))  # so that the same content is the same bytes
    return checksums(folder)


def checksums(folder: Path) -> list[int]:
    """Of each file of an unpacked data set; -1 of one that cannot be read."""
    return [_checksum(file) for file in files(folder)]


def _checksum(file: Path) -> int:
    found = 0
    try:
        with file.open("rb") as opened:
            while part := opened.read(2**20):
                found = zlib.crc32(part, found)
    except OSError:
        return -1
    return found
