"""Files written so that a reader, or a crash, never sees half of one, and read so that nothing else passes for one.

Also checksums at a file's end, strict JSON, and what a disk refuses, in one line.
"""

import errno
import hashlib
import json
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from smallbatch.errors import ConfigError

_UMASK = os.umask(0)  # can only be read by setting it
os.umask(_UMASK)
_SHARED = "to share a store, its owner says `chmod -R g+w` on it once, and all say `umask 002` before they train"
_NO_LOCKS = "this disk cannot lock files; put the store on one that can, with store=…"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ADVICE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), _SHARED),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file, or a link into nowhere, is where a folder should be"),
    errno.EROFS: "put the store elsewhere, with store=…",
    **dict.fromkeys(_NO_ROOM, "make room, and the same command goes on"),
    **dict.fromkeys((errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP), _NO_LOCKS),
}
MOST_BYTES = 1 << 26  # of a text file that is read whole: a run of 100,000 epochs has half of that
_CHECKSUM = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")
_CHECKSUM_BYTES = len("\nsha256 \n") + 64


def kind(path: Path) -> str | None:
    """What lies at a path, links not followed: `file`, `link`, `folder` or `pipe or device`; None if nothing does."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    tests = {"file": stat.S_ISREG, "link": stat.S_ISLNK, "folder": stat.S_ISDIR}
    return next((name for name, test in tests.items() if test(mode)), "pipe or device")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place in one step, on disk.

    Raises ConfigError where something else than a file lies there, OSError that names `path`.
    """
    try:
        with _replacing(path) as temporary:
            yield temporary
    except OSError as error:  # of the file in its place, of none, or of one that was to be copied there
        elsewhere = error.filename and Path(error.filename).parent != path.parent
        if elsewhere and error.errno not in _NO_ROOM:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    if (there := kind(path)) not in (None, "file"):
        raise ConfigError(f"{path}: is a {there}, no file, and is not replaced; name another, or move it away")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_UMASK)  # mkstemp's 0600 would shut out other users of a shared disk
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def now(folder: Path) -> int:
    """The time by the clock that stamps a folder's files, in ns; 0 if there is no such folder yet."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0
    except OSError:  # nothing will be written there
        return time.time_ns()


def timestamp() -> str:
    """Now, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_text(path: Path) -> str:
    """The text of a file. Raises ValueError for what is no UTF-8, OSError also for a folder, a device and a huge file.

    A link is followed.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # before it is opened: a pipe would keep us waiting
        raise OSError(errno.EINVAL, "is no file", str(path))
    if status.st_size > MOST_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: is no UTF-8 from byte {error.start} on") from None


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError also for a name given twice, NaN, and numbers no float can hold."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("is nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name is given twice")
    return made


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:20])


def add_checksum(path: Path) -> None:
    """Append a checksum of a binary file to it. A ZIP archive, as torch writes them, may have that behind its end."""
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.write(f"\nsha256 {digest}\n".encode())


def checksum_fits(path: Path) -> bool | None:
    """Whether a file is as it was when its checksum was added; None if it has none."""
    content = path.read_bytes()
    found = _CHECKSUM.fullmatch(content[-_CHECKSUM_BYTES:])
    return found and hashlib.sha256(memoryview(content)[:-_CHECKSUM_BYTES]).hexdigest().encode() == found[1]


def refuse_nowhere(path: Path) -> None:
    """Raise ConfigError for a path through a link into nowhere, as to a disk that is away: nothing is made there."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise ConfigError(f"{place}: is a link into nowhere; make {place.readlink()}, or bring its disk back")


def disk_error(error: OSError | NotImplementedError, path: Path) -> ConfigError:
    """What a disk refused to do at `path` or at the file that the error names, why, and what to do."""
    if isinstance(error, NotImplementedError):
        error = OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    advice = _ADVICE.get(error.errno or 0)
    return ConfigError(f"{error.filename or path}: {error.strerror or error}{f'; {advice}' if advice else ''}")
