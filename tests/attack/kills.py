"""Grids that are killed, stopped and signalled at random moments, and started again until they are whole."""

import csv
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from commands import SMALL, Command

from smallbatch import store

GRID = ["train.py", "-m", "batch_size=8,16", "seed=0,1", "epochs=8", "base_lr=1/4096", *SMALL]
LOCAL = ["hydra/launcher=local", "hydra.launcher.n_jobs=2"]
ENDS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGKILL: -9}
WITHIN = 5.0  # seconds that a command and its workers have to end
Table = dict[str, list[dict[str, str]]]


def attack(folder: Path, times: int, seed: int, say: Callable[[str], None]) -> Counter[str]:
    """Attack `times` times; what went wrong, by kind."""
    whole = Command([*GRID, f"store={folder / 'whole' / 'runs'}", f"data.root={folder / 'data'}"], folder / "whole.out")
    begin = time.monotonic()
    assert whole.end() == 0, whole.said()
    seconds, table = time.monotonic() - begin, tables(folder / "whole" / "runs")
    count = Counter[str]()
    with ThreadPoolExecutor(2) as threads:
        turns = [range(times)[half::2] for half in (0, 1)]
        jobs = [
            threads.submit(_attack, folder / name, turn, random.Random(f"{seed} {name}"), seconds, table, say)
            for name, turn in zip("ab", turns, strict=True)
        ]
        for job in jobs:
            count.update(job.result())
    return count


def _attack(folder: Path, turns: range, dice: random.Random, seconds: float, table: Table, say) -> Counter[str]:
    """One grid after the other, each attacked until it is whole."""
    count, number = Counter[str](), 0
    for turn in turns:
        place = folder / f"{number}"
        words = [*GRID, *(LOCAL if dice.random() < 0.3 else []), f"store={place / 'runs'}"]
        words.append(f"data.root={folder.parent / 'data'}")
        place.mkdir(parents=True, exist_ok=True)
        before = _finished(place / "runs")
        wrong = _once(Command(words, place / f"{turn}.out"), dice, seconds, before, place / "runs")
        if len(_finished(place / "runs")) == len(table):
            wrong += _last(partial(Command, words), place, table)
            number += 1
        for what in wrong:
            say(f"attack {turn}: {what}, {place}")
        count.update(what.partition(":")[0] for what in wrong)
    return count


def _once(command: Command, dice: random.Random, seconds: float, before: dict[str, bytes], runs: Path) -> list[str]:
    """Attack a command once, at a random moment; what went wrong."""
    way = dice.choice([*ENDS, "stop", "worker", "twice"])
    status = command.end(dice.uniform(0, 1.3 * seconds))
    number = dice.choice([signal.SIGTERM, signal.SIGINT]) if way == "twice" else way
    sent = status is None
    if sent and way == "worker":
        _kill_one(command, dice)
    elif sent and way == "stop":
        command.send(signal.SIGSTOP)
        time.sleep(dice.uniform(0, 1))
        command.send(signal.SIGCONT)
    elif sent:
        sent = command.send(number)
        if way == "twice":
            time.sleep(dice.uniform(0, 0.5))
            command.send(number)
    status = command.end(WITHIN if number in ENDS else 180)
    wrong = []
    if status is None:
        command.send(signal.SIGKILL)
        wrong.append(f"orphans: the command still runs after {way}")
    elif status not in (0, ENDS.get(number, 0) if sent else 0):
        wrong.append(f"exits: {status} after {way}")
    if left := command.left_after(WITHIN):
        wrong.append(f"orphans: {left} processes after {way}")
    return [*wrong, *_read(command), *_lost(before, _finished(runs))]


def _kill_one(command: Command, dice: random.Random) -> None:
    if workers := command.others():
        with suppress(ProcessLookupError):
            os.kill(dice.choice(workers), signal.SIGKILL)


def _last(start: Callable[[Path], Command], place: Path, table: Table) -> list[str]:
    """The grid once more, in peace: whole, with the tables of one that was never disturbed, and nothing beside them."""
    command = start(place / "last.out")
    wrong = [f"exits: {status} in peace"] if (status := command.end()) else []
    found = tables(place / "runs")
    wrong += [f"wrong resumes: {key}" for key in table if found.get(key) != table[key]]
    names = {"config.json", "epochs.csv", "result.json"}
    for path in (place / "runs").iterdir():
        if store.KEY.fullmatch(path.name) and (more := {file.name for file in path.iterdir()} - names):
            wrong.append(f"leftovers: {', '.join(sorted(more))}")
    return [*wrong, *_read(command)]


def _read(command: Command) -> list[str]:
    return ["tracebacks: " + command.said()[-300:]] if "Traceback" in command.said() else []


def _lost(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    return [f"lost: {key}" for key in before if before[key] != after.get(key)]


def _finished(runs: Path) -> dict[str, bytes]:
    """What result.json says of each finished run."""
    return {file.parent.name: file.read_bytes() for file in runs.glob("[0-9a-f]*/result.json")}


def tables(runs: Path) -> Table:
    """The rows of each run's epochs.csv, without the seconds."""
    found = {}
    for path, record in store.read_all(runs):
        if isinstance(record, store.Record):
            with (path / "epochs.csv").open(newline="") as file:
                rows = [{name: row[name] for name in row if "seconds" not in name} for row in csv.DictReader(file)]
            found[path.name] = rows
    return found
