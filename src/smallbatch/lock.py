"""Who trains a run: one process at a time."""

import fcntl
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from smallbatch.config import SmallBatchError

HEARTBEAT = 10.0  # seconds between signs of life of a claim
CLAIM = "claim"
STALE = 120.0  # seconds without one after which its run may be taken over


class Busy(SmallBatchError):
    """Another live process holds the run's claim."""


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
