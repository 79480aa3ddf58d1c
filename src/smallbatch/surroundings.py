"""What surrounds a command, and is to decide nothing: its streams, and the variables of other tools.

Light, since commands call `shut_out` before they import what reads such variables.
"""

import io
import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EPIPE
from typing import Any

_FOREIGN = ("PL_TRAINER_", "HYDRA_MAIN_MODULE", "HYDRA_DEPRECATION_WARNINGS_AS_ERRORS", "PYTHONWARNINGS")
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # that Lightning's import reads
_lost: list[OSError] = []  # what kept the output from being written, the first time


def shut_out() -> None:
    """From now on printing raises nothing, and variables of other tools change nothing. For a process that is ours."""
    _use_utf8()
    _open_streams()
    sys.stdout, sys.stderr = _unfailing(sys.stdout), _unfailing(sys.stderr)
    os.environ["MPLBACKEND"] = "agg"  # a notebook leaves it another, which has to be installed
    for name in foreign_variables():
        del os.environ[name]
    # Warnings are none of a run's results. Those that are errors are so by PYTHONWARNINGS, or -W.
    warnings.filters[:] = [found for found in warnings.filters if found[0] != "error"]  # type: ignore[index]
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that its cache has no place to stay, as without a HOME


def foreign_variables() -> list[str]:
    """The variables by which Lightning, Hydra and Python would do something else than they are told, or nothing."""
    no_ranks = [name for name in _RANKS if not os.environ.get(name, "0").isdecimal()]
    return [name for name in os.environ if name.startswith(_FOREIGN)] + no_ranks


@contextmanager
def kept_out() -> Iterator[None]:
    """The same within, for a process that is not ours, whose streams and variables are back then."""
    streams, variables = (sys.stdout, sys.stderr), {name: os.environ.pop(name) for name in foreign_variables()}
    sys.stdout, sys.stderr = map(_unfailing, streams)
    try:
        yield
    finally:
        for ours, theirs in zip((sys.stdout, sys.stderr), streams, strict=True):
            if ours is not theirs:
                ours.flush()
        sys.stdout, sys.stderr = streams
        os.environ.update(variables)


def lost_output() -> OSError | None:
    """What kept output from being written; None if all was, or nobody wanted it, as behind `| head`."""
    if sys.stdout is not None:
        sys.stdout.flush()
    return next(iter(_lost), None)


class _Unfailing(io.FileIO):
    """A descriptor that takes everything, and drops what cannot be written."""

    def write(self, data: Any) -> int:
        try:
            while (count := super().write(data)) is None:  # a pipe that others have told not to wait
                select.select((), (self,), ())
            return count
        except OSError as error:
            if error.errno != EPIPE:
                _lost.append(error)
            return len(memoryview(data).cast("B"))


def _unfailing(stream: Any) -> Any:
    """The same stream, letters that it cannot show replaced; another kind of stream, as a notebook's, as it is."""
    if type(stream) is not io.TextIOWrapper or stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    stream.flush()
    raw = io.BufferedWriter(_Unfailing(stream.fileno(), "wb", closefd=False))
    errors = "replace" if stream is sys.__stdout__ else "backslashreplace"
    return io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=True)  # in order with other processes' lines


def _open_streams() -> None:
    """Open what is closed as nothing: else files of ours would get these numbers, and take what is printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
    sys.stdin = sys.stdin or _nothing("r")
    sys.stdout = sys.stdout or _nothing("w")
    sys.stderr = sys.stderr or _nothing("w")


def _nothing(mode: str) -> Any:
    return open(os.devnull, mode, encoding="utf-8")


def _use_utf8() -> None:
    """Start again in UTF-8 where Python was told to read names in ASCII: paths, and so keys, would be others."""
    if sys.getfilesystemencoding() == "ascii" and not sys.flags.utf8_mode:
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})
