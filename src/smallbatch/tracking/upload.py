"""The process that uploads the runs of another while they train: `live` starts it, and tells it of them by its stdin.

A line there is what happened and to which run folder. A line of its own stdout is for the user.
"""

import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from smallbatch import store
from smallbatch.errors import one_line
from smallbatch.files import parse_json, read_text
from smallbatch.record import make_row
from smallbatch.run import Run
from smallbatch.signals import end_with
from smallbatch.tracking.page import Page
from smallbatch.tracking.place import Place, answers, with_mode

BEGINS, AGAIN, EPOCH, ENDS = "begins", "again", "epoch", "ends"  # `again`: W&B may have a part of the run
RETRY = 60.0  # seconds until a page that could not be opened is tried again, while its run trains


def trouble(reason: str) -> str:
    """The line about it."""
    return f"W&B: {reason}; training is not affected. What is missing there: python src/publish.py"


class Uploads:
    """The run that trains and its page; a run's trouble ends with it."""

    def __init__(self, place: Place) -> None:
        self.place, self.folder = place, Path()
        self.page: Page | None = None
        self.tried = 0.0

    def take(self, what: str, path: Path) -> None:
        """Do what is to be done when something happened to a run."""
        if what in (BEGINS, AGAIN):
            self.folder, self.afresh, self.tried = path, what == BEGINS, -RETRY
            self.leave()  # one whose end was not told
        if self.page is None and time.monotonic() - self.tried >= RETRY:
            self.open()
        if self.page and what == EPOCH:
            text = read_text(path / "epochs.csv")
            self.page.add([make_row(row) for row in csv.DictReader(io.StringIO(text), strict=True)])
        if what == ENDS:
            self.leave()

    def open(self) -> None:
        """Open the page of the run, if W&B answers."""
        self.tried = time.monotonic()
        if self.place.mode == "online" and not answers():
            raise ConnectionError("the server does not answer")
        page = Page(Run.from_dict(parse_json(read_text(self.folder / "config.json"))), self.folder, self.place)
        page.open(self.afresh)
        self.page = page

    def leave(self) -> None:
        """Close the page with what its folder has."""
        page, self.page = self.page, None
        if page:
            page.close(store.read(page.path))


def run(place: Place, lines: Iterable[str]) -> bool:
    """Take line after line; whether all is well at their end. A page that is open then is that of a killed process."""
    uploads = Uploads(place if place.mode else with_mode(place, say))
    for line in lines:
        what, path = json.loads(line)
        try:
            uploads.take(what, Path(path))
        except BaseException as error:  # wandb may even raise SystemExit
            say(trouble(one_line(error)))
    return uploads.page is None and not say.cache_info().currsize


@cache
def say(line: str) -> None:
    """Tell the user, once."""
    print(line, flush=True)


def main() -> None:
    """What this process does."""
    end_with(int(sys.argv[2]))
    given = json.loads(sys.argv[1])
    place = Place(**given | {"tags": tuple(given["tags"]), "folder": Path(given["folder"])})
    if not run(place, sys.stdin):
        os._exit(0)  # wandb would wait for what it gave up, and call finished what was killed


if __name__ == "__main__":
    main()
