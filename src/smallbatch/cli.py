"""What all commands share: one grammar of words, and one guard against errors and signals.

A word `key=value` means the same everywhere: a setting, as `python src/train.py --help` lists them. Settings of
`BESIDE` say where runs are and go. All others describe runs: those of a grid, or those in the store that have them.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from smallbatch import signals
from smallbatch.compose import add_config_dir, compose
from smallbatch.errors import ConfigError, SmallBatchError
from smallbatch.quoting import whole_paths
from smallbatch.surroundings import lost_output

WORDS = "settings; store=FOLDER says where the runs are"
# Settings that are no part of a run: how it is trained, kept and followed.
BESIDE = (
    *("store", "overwrite", "save_weights", "wait", "settle", "hours", "margin", "progress", "grid_since"),
    *("trainer", "callbacks", "logger", "wandb", "machine", "search", "hydra"),
)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a command."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_words(made: argparse.ArgumentParser, count: str = "*", shown: str = "key=value") -> None:
    """Let a command take words key=value."""
    made.add_argument("words", nargs=count, metavar=shown, help=WORDS)
    made.add_argument("--config-dir", "-cd", metavar="FOLDER", help="YAML files of your own, as for train.py")


def add_where(made: argparse.ArgumentParser) -> None:
    """Let a command choose runs by what is no setting."""
    made.add_argument("--where", metavar="QUERY", help='only runs of which this is true, as "score > 0.5" (pandas)')


def sort(words: list[str], config_dir: str | None) -> tuple[list[str], DictConfig]:
    """The words that describe runs, and the config of the others. Raises ConfigError."""
    if config_dir:
        add_config_dir(config_dir)
    for word in words:
        if word.startswith("hydra.searchpath="):
            raise ConfigError(f"{word}: is of train.py; here say --config-dir FOLDER")
    words = whole_paths(words)
    beside = [word for word in words if is_beside(word)]
    cfg = compose([word for word in beside if not word.startswith("hydra")])  # how to launch, of train.py
    return [word for word in words if word not in beside], cfg


def is_beside(word: str) -> bool:
    """Whether a word is no part of a run.

    >>> is_beside("machine.threads=2"), is_beside("++store=x"), is_beside("batch_size=2")
    (True, True, False)
    """
    return word.lstrip("+~").partition("=")[0].partition(".")[0].partition("/")[0] in BESIDE


@contextmanager
def one_line_errors(printed: bool = True) -> Iterator[None]:
    """End with one line and exit status 1 where the user can mend it, that of the signal on Ctrl-C; no traceback.

    `printed`: what it prints is what it is for, so that output that is lost, as on a full disk, is such an error.
    """
    try:
        with signals.in_order():
            _here()
            yield
        if printed and (lost := lost_output()):
            raise SmallBatchError(f"what was printed is lost: {lost.strerror}")
    except SmallBatchError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted; what is done is kept", file=sys.stderr)
        sys.exit(signals.status())


def _here() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(f"the working directory: {error.strerror}; go to one that is there") from None
