"""Writing so that a reader, or a crash, never sees half a file; and what a disk refuses, in one line."""

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smallbatch.errors import ConfigError

_UMASK = os.umask(0)  # can only be read by setting it
os.umask(_UMASK)
_SHARED = "to share a store, its owner says `chmod -R g+w` on it once, and all say `umask 002` before they train"
_NO_LOCKS = "this disk cannot lock files; put the store on one that can, with store=…"
_ADVICE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), _SHARED),
    errno.EROFS: "put the store elsewhere, with store=…",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, and the same command goes on"),
    **dict.fromkeys((errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP), _NO_LOCKS),
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place in one step, on disk."""
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


def disk_error(error: OSError | NotImplementedError, path: Path) -> ConfigError:
    """What a disk refused to do at `path` or at the file that the error names, why, and what to do."""
    if isinstance(error, NotImplementedError):
        error = OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    advice = _ADVICE.get(error.errno or 0)
    return ConfigError(f"{error.filename or path}: {error.strerror or error}{f'; {advice}' if advice else ''}")
