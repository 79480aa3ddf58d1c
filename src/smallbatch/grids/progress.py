"""What of a grid has ended, whoever trained it, and how the rest goes."""

import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from smallbatch import lock, store
from smallbatch.files import read_text
from smallbatch.grids.expand import Point
from smallbatch.grids.price import words
from smallbatch.store import DamagedRun

POLL = 1.0  # seconds between looks at the run folders
QUIET = 60.0  # seconds without news after which a log gets a line of how it goes
MOST_NAMED = 10  # lines in a list


class Results:
    """Which points of a grid have ended, whoever trained them, and which are missing. Each result is read once."""

    def __init__(self, folders: Path, points: list[Point], ended: dict[str, dict[str, Any]] | None = None) -> None:
        self.folders = folders
        self.ended = dict(ended or {})  # results, by key
        self.missing = [point for point in points if point.run.key not in self.ended]
        self.seen = {point.run.key: self._stamp(point) for point in self.missing}

    def folder(self, point: Point) -> Path:
        """Where the point's run lives."""
        return store.folder(self.folders, point.run)

    def status(self, point: Point) -> str | None:
        """`finished`, `diverged`, `failed`, or None as long as there is no result."""
        result = self.ended.get(point.run.key)
        return result["status"] if result else None

    def done(self) -> dict[str, dict[str, Any]]:
        """The results that count as done, by key."""
        return {key: result for key, result in self.ended.items() if result["status"] in store.ENDED}

    def take_ended(self, cfg: DictConfig) -> None:
        """Take the sound results that are there; what failed, is damaged or to be overwritten is trained again.

        A point whose folder is not ours to write is no longer missing, and stays without a result.
        """
        said: list[str] = []
        for point in [p for p in self.missing if self.seen[p.run.key]]:
            record = store.kept(self.folder(point), cfg, said.append)
            if record:
                self._take(point, record.result)
                store.tidy(self.folder(point))
        for point in list(self.missing):
            try:
                store.refuse(self.folder(point), bool(cfg.overwrite))
            except (store.NotOurs, OSError) as error:
                said.append(f"left alone: {error}")
                self.missing.remove(point)
        print(*few(said, "and "), sep="\n", end="\n" if said else "", file=sys.stderr)

    def take_new(self) -> list[store.Record]:
        """Take the results that came since the start or the last look; their records."""
        records = []
        for point in list(self.missing):
            stamp = self._stamp(point)
            if stamp in (None, self.seen[point.run.key]):
                continue
            self.seen[point.run.key] = stamp
            with suppress(DamagedRun):
                record = store.read(self.folder(point))
                if record:
                    self._take(point, record.result)
                    records.append(record)
        return records

    def _take(self, point: Point, result: dict[str, Any]) -> None:
        self.ended[point.run.key] = result
        self.missing.remove(point)

    def _stamp(self, point: Point) -> int | None:
        try:
            return (self.folder(point) / "result.json").stat().st_mtime_ns
        except OSError:  # not there, or no run folder
            return None


class Progress:
    """While it is entered: says which runs end and, on a terminal, draws a bar over the price of all."""

    def __init__(self, results: Results, costs: dict[str, float]) -> None:
        self.results, self.costs = results, costs
        self.counts = Counter(skipped=len(results.ended))
        self.total = len(results.ended) + len(results.missing)
        self.price = sum(costs[point.run.key] for point in results.missing)
        self.paid = self.begun = 0.0
        self.start = self.spoke = time.monotonic()
        self.awaited: set[str] = set()
        self.one_at_a_time, self.stop = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(total=self.price, bar_format="{desc} |{bar}|", leave=False, disable=not terminal)
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        self.thread.join()
        self.look()
        self.bar.close()

    def wait(self) -> bool:
        """Wait until one of the runs that others train has ended or is free; False if there is none."""
        held = {}
        for point in self.results.missing:
            holder = lock.holder(self.results.folder(point))
            if holder:
                held[point.run.key] = (point, f"{point.run.label} ({holder})")
        news = [text for key, (_, text) in held.items() if key not in self.awaited]
        if news:
            self.awaited |= held.keys()
            self._say(f"waiting for {runs(len(news))} in training elsewhere: {', '.join(few(news, 'and '))}")
        while held and all(p in self.results.missing and lock.holder(self.results.folder(p)) for p, _ in held.values()):
            time.sleep(POLL)
            self.look()
        return bool(held)

    def look(self) -> None:
        """Say what has ended since the last look, and how it goes."""
        with self.one_at_a_time:
            for record in self.results.take_new():
                self.counts[record.result["status"]] += 1
                self.paid += self.costs[record.run.key]
                done = f"{sum(self.counts.values()):>{len(str(self.total))}}/{self.total}"
                self._say(f"{done} {store.summary(record, self.results.folders)}{self._left()}")
            training = [p for p in self.results.missing if lock.holder(self.results.folder(p))]
            self.begun = sum(self.costs[p.run.key] * _share(self.results.folder(p), p) for p in training)
            counts = ", ".join(f"{self.counts[status]} {status}" for status in ("skipped", *store.ENDED, "failed"))
            done = f"{sum(self.counts.values())}/{self.total} done"
            line = f"{done} ({counts}), {len(training)} running{self._left()}"
            self.bar.n = min(self.paid + self.begun, self.price)
            self.bar.set_description_str(line)
            if self.bar.disable and self.results.missing and time.monotonic() - self.spoke > QUIET:
                self._say(line)

    def _watch(self) -> None:
        while not self.stop.wait(POLL):
            self.look()

    def _say(self, line: str) -> None:
        with tqdm.external_write_mode():
            print(line, flush=True)
        self.spoke = time.monotonic()

    def _left(self) -> str:
        """Time left, from what the runs so far took against their price."""
        paid = min(self.paid + self.begun, self.price)  # a run that has just ended is in both
        if not paid or not self.results.missing:
            return ""
        return f", about {words((time.monotonic() - self.start) * (self.price - paid) / paid)} left"


def _share(path: Path, point: Point) -> float:
    """The share of its epochs that a run in training has behind it."""
    try:
        return max(0, read_text(path / "epochs.csv").count("\n") - 1) / point.run.epochs
    except (OSError, ValueError):
        return 0.0


def runs(count: int) -> str:
    """`1 run` or `7 runs`."""
    return "1 run" if count == 1 else f"{count} runs"


def sizes(count: int) -> str:
    """`1 batch size` or `7 batch sizes`."""
    return "1 batch size" if count == 1 else f"{count} batch sizes"


def few(lines: list[str], what: str) -> list[str]:
    """The first of some lines, and how many more there are."""
    more = len(lines) - MOST_NAMED
    return lines if more <= 0 else [*lines[:MOST_NAMED], f"{what}{runs(more)} more"]
