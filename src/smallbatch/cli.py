"""What all commands share: their words, and Ctrl-C that is not lost."""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from smallbatch.config import ConfigError

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


def command(doc: str | None, count: str = "*") -> argparse.ArgumentParser:
    """The parser of a command on the run folders: `--store`, and `count` words key=value."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("outputs/runs"), help="run folders (default: %(default)s)")
    parser.add_argument("words", nargs=count, metavar="key=value")
    return parser


def refuse_store(words: list[str]) -> None:
    """Of a command that is told with --store where the runs are. Raises ConfigError for `store=…`."""
    for word in words:
        if word.startswith("store="):
            raise ConfigError(f"{word}: this command wants it as --store {word.removeprefix('store=')}")
