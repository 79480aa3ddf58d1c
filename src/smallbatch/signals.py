"""How a command ends when it is asked to, by Ctrl-C (INT), TERM or HUP, at any moment.

The first signal raises KeyboardInterrupt where the command is, so that it ends in order; a second one ends it at once.
Light, since commands call `at_once` before they import what takes seconds. A signal that was ignored when the command
began, as in `nohup` or behind a script's `&`, stays ignored.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

ASKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ONE = 0.5  # seconds within which a signal is one, though it came twice, as to a process and to its group
AGAIN = 0.1  # seconds until a lost interrupt comes again: out of the callback that lost it by then
WATCH = 1.0  # seconds between a worker's looks at whether its parent lives
_heard: int | None = None  # the signal that asked this process to end, and when
_since = 0.0


class Interrupt(KeyboardInterrupt):
    """Asks the command to end; `number`: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def at_once() -> None:
    """From now on a signal ends this process at once, in one line: nothing has begun that could be lost."""
    for number in _heeded():
        signal.signal(number, _end_at_once)


@contextmanager
def in_order() -> Iterator[None]:
    """Within, the first signal raises Interrupt.

    Python only reports an exception that is raised within a weak reference's callback or a `__del__`
    (`sys.unraisablehook`), and goes on. A signal there, as in joblib's bookkeeping, would end nothing, so it comes
    again.
    """
    global _heard
    _heard, report = None, sys.unraisablehook
    before = {number: signal.signal(number, _raise) for number in _heeded()}

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):
            threading.Timer(AGAIN, _again, (getattr(lost.exc_value, "number", signal.SIGINT),)).start()
        else:
            report(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def after(seconds: float) -> Iterator[None]:
    """Raise Interrupt in this process, the main thread of it, when this time is over; also where Ctrl-C is ignored."""
    before = signal.signal(signal.SIGALRM, _raise)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def status() -> int:
    """The exit status of a command that a signal ended: 130 for Ctrl-C, 143 for TERM, 129 for HUP."""
    return 128 + (_heard or signal.SIGINT)


def end_with(parent: int) -> None:
    """End this process soon after its parent has ended, however that was; nothing in the parent itself, or again."""
    if os.getpid() != parent and not any(thread.name == end_with.__name__ for thread in threading.enumerate()):
        threading.Thread(target=_watch, args=(parent,), name=end_with.__name__, daemon=True).start()


def _heeded() -> list[signal.Signals]:
    return [number for number in ASKS if signal.getsignal(number) is not signal.SIG_IGN]


def _raise(number: int, frame: FrameType | None) -> None:
    global _heard, _since
    if _heard is None:
        if number != signal.SIGALRM:
            _heard, _since = number, time.monotonic()
        raise Interrupt(number)
    if time.monotonic() - _since > ONE:
        _end_at_once(number, frame)


def _again(number: int) -> None:
    global _heard
    _heard = None
    os.kill(os.getpid(), number)


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(128 + number)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)
