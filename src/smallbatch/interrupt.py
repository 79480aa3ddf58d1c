"""Ctrl-C that is not lost."""

import os
import signal
import sys
import threading

AGAIN = 0.1  # seconds until a lost interrupt comes again: out of the callback that lost it by then


def keep_interrupts() -> None:
    """Send a KeyboardInterrupt again that Python dropped, so that Ctrl-C always ends what runs.

    Python only reports an exception that is raised within a weak reference's callback or a `__del__`
    (`sys.unraisablehook`), and goes on. Ctrl-C there, as in joblib's bookkeeping, would end nothing.
    """
    report = sys.unraisablehook

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            threading.Timer(AGAIN, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            report(lost)

    sys.unraisablehook = hook
