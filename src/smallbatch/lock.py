"""Who trains a run: one process at a time, by a lock that the operating system keeps.

The lock of `<store>/<key>` is the file `<store>/.locks/<key>.lock`. The system frees it when its process ends, however
it ends. The file stays: if it went, one process could hold the old file and another a new one. While the lock is held
`<key>.txt` beside it says by whom, for people only: nothing decides by it.
"""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from smallbatch.errors import SmallBatchError
from smallbatch.files import disk_error, read_text, refuse_nowhere

PATIENCE = 0.2  # seconds to try for a lock, since one who only looks whether it is free holds it for a moment


class Busy(SmallBatchError):
    """Another living process holds the lock."""


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock of a run folder. Raises Busy, or ConfigError if the store cannot be written or cannot lock."""
    lock, note = _lock_and_note(path)
    refuse_nowhere(path.parent)
    try:
        lock.acquire(timeout=PATIENCE, poll_interval=PATIENCE / 10)
    except Timeout:
        raise Busy(f"{path}: {_holder(note)} is training it") from None
    except (OSError, NotImplementedError) as error:
        raise disk_error(error, path) from None
    try:
        with suppress(OSError):
            since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
            note.unlink(missing_ok=True)  # never through a link
            note.write_text(f"process {os.getpid()} on {platform.node()} since {since}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            note.unlink()
        lock.release()


def holder(path: Path) -> str | None:
    """Who holds the lock of a run folder, in words; None if nobody does."""
    lock, note = _lock_and_note(path)
    if not Path(lock.lock_file).exists():
        return None
    try:
        with lock.acquire(blocking=False):
            return None
    except Timeout:
        return _holder(note)
    except (OSError, NotImplementedError):  # not ours to write, so not ours to train: `hold` says so
        return None


def _lock_and_note(path: Path) -> tuple[FileLock, Path]:
    beside = path.parent / ".locks" / path.name
    return FileLock(f"{beside}.lock", fallback_to_soft=False), Path(f"{beside}.txt")


def _holder(note: Path) -> str:
    with suppress(OSError, ValueError):
        return " ".join(read_text(note).split()) or "another process"
    return "another process"
