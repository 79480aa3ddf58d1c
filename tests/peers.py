"""A small grid by this package and by what people use instead: seconds to the result table, memory, accuracy.

`python tests/benchmark.py --only peers` prints it. The grid is the paper's reduced AlexNet on augmented images, m × η̃,
with another seed in each repetition. All train the same network from the same weights, on the same images, with plain
SGD at the same rates, and test it after every epoch. What each of them is, and whom a choice favours:

- this package: its command with `hydra/launcher=local`, in an empty store. It also saves every epoch, draws the answer
  and can be resumed, which the loops do not.
- template: `peers_template.py`, with Hydra's joblib launcher where that is installed; else with `hydra/launcher=local`,
  which starts joblib's processes alike, a thread each. DataLoader workers: the best of 0, 1 and 2, tried on a part of
  the grid. It tests in batches of m, as most templates do; what that costs shows the row that tests in batches of 400.
  Hydra's own launcher, which people have without a plugin, runs one at a time, with torch's own number of threads.
- loop: `peers_loop.py`, which has images and crops ready-made from this package, no Lightning, channels-last, fused
  SGD, and keeps nothing but the last accuracy. In turn on one thread, in turn on as many threads as there are cores,
  or a run on each core.
"""

import csv
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SIZES = (2, 8, 32, 128)
RATES = (2.0**-13, 2.0**-12)  # at 2^-11 AlexNet at m = 128 diverges, and our run would end early
PERIOD = 0.5  # seconds between looks at the memory
OURS = "this package"


@dataclass
class Grid:
    """The words that describe it to this package, and the same images in a file for the template."""

    words: list[str]
    epochs: int
    images: Path
    rates: tuple[float, ...] = RATES


Runs = dict[tuple[int, float], tuple[float, float, float]]  # by (m, η̃): accuracy, when it began and ended


@dataclass
class Measured:
    """One contender's grid, in seconds and GiB."""

    wall: float
    processor: float
    memory: float
    runs: Runs

    @property
    def training(self) -> float:
        """From the begin of the first run to the end of the last, without the start and the table."""
        _, began, ended = zip(*self.runs.values(), strict=True)
        return max(ended) - min(began)

    def seconds(self, m: int) -> float:
        """Of a run."""
        return mean(ended - began for (size, _), (_, began, ended) in self.runs.items() if size == m)


Contender = Callable[[Grid, int, Path], Measured]


def peers(_: Path, rounds: int, small: bool = False) -> None:
    """Measure everybody in turns, and print tables; `small`: a grid that shows no more than that it works."""
    from smallbatch.machine import processes
    from smallbatch.powers import format_power

    with tempfile.TemporaryDirectory() as temporary:
        grid, what = _grid(HERE.parent / "data", Path(temporary), small)
        rates = ", ".join(map(format_power, RATES))
        print(f"Peers: {what}; m = {', '.join(map(str, SIZES))}, each at η̃ = {rates}", flush=True)
        part = Grid(grid.words, 1, grid.images, RATES[:1])
        tried = {workers: _template(workers)(part, 0, _new(temporary)).wall for workers in (0, 1, 2)}
        best = min(tried, key=lambda workers: tried[workers])
        found = ", ".join(f"{workers}: {seconds:.1f} s" for workers, seconds in tried.items())
        print(f"the template's DataLoader workers, on one η̃ and epoch of it: {found}; {best} from here on")
        print(f"the template's launcher: hydra/launcher={_launcher()}\n", flush=True)
        cores = processes()
        every: dict[str, Contender] = {
            OURS: _ours,
            "template": _template(best),
            "loop, one run at a time": _loop(1, 1),
            f"loop, {cores} runs at a time": _loop(cores, 1),
        }
        once: dict[str, Contender] = {
            "template, tests in batches of 400": _template(best, test_batch_size=400),
            "template, Hydra's own launcher": _template(best, launcher="basic"),
            f"loop, one run on {cores} threads": _loop(1, cores),
        }
        measured: dict[str, list[Measured]] = {}
        for seed in range(1, 1 + max(1, rounds // 5)):
            for name, contender in (every | once if seed == 1 else every).items():
                measured.setdefault(name, []).append(contender(grid, seed, _new(temporary)))
                print(f"  seed {seed}, {name}: {measured[name][-1].wall:.1f} s", file=sys.stderr, flush=True)
    _print(measured)


def _grid(root: Path, folder: Path, small: bool) -> tuple[Grid, str]:
    """CIFAR-10 if it is there, else the embedded digits; and what it is, in words."""
    from smallbatch.compose import compose
    from smallbatch.data import load_images

    real = (root / "cifar10.npz").exists()
    train, test, epochs = (128, 100, 1) if small else (2048, 400, 3) if real else (1408, 360, 5)
    data = [f"data={'cifar10' if real else 'digits'}", f"data.train_size={train}", f"data.test_size={test}"]
    words = ["model=alexnet", *data, "data.augment=true", f"data.root={root}", "schedule=constant"]
    images = load_images(compose(words))  # unpacks them, once for all
    arrays: dict[str, Any] = {"mean": images.mean, "std": images.std, "classes": images.classes}
    for name, split in (("train", images.train), ("test", images.test)):
        pixels = split.images[split.index]
        arrays[f"{name}_images"] = pixels if images.channels > 1 else pixels[..., 0]  # as PIL takes them
        arrays[f"{name}_labels"] = split.labels[split.index]
    np.savez(folder / "images.npz", allow_pickle=False, **arrays)
    name = "CIFAR-10" if real else "scikit-learn's digits (data/ has no cifar10.npz)"
    what = f"AlexNet, {name}, {train:,} training images, cropped and flipped, {test:,} test images, epochs: {epochs}"
    return Grid(words, epochs, folder / "images.npz"), what


def _axes(grid: Grid, seed: int) -> list[str]:
    rates = ",".join(map(repr, grid.rates))
    return [f"batch_size={','.join(map(str, SIZES))}", f"base_lr={rates}", f"epochs={grid.epochs}", f"seed={seed}"]


def _ours(grid: Grid, seed: int, folder: Path) -> Measured:
    from smallbatch.store import ended

    words = [*grid.words, *_axes(grid, seed), f"store={folder}/runs", "machine.accelerator=cpu", "hydra/launcher=local"]
    spent = _measure([str(HERE.parent / "src" / "train.py"), "-m", *words], folder)
    runs: Runs = {}
    for key, record in ended(folder / "runs", ("finished",)).items():
        when = (folder / "runs" / key / "result.json").stat().st_mtime
        accuracy, seconds = record.rows[-1]["test_accuracy"], record.result["seconds"]
        runs[record.run.batch_size, record.run.base_lr] = (accuracy, when - seconds, when)
    if len(runs) < len(SIZES) * len(grid.rates):
        raise RuntimeError(f"of this package's runs {len(runs)} finished; those that diverge end early: lower RATES")
    return Measured(*spent, runs)


def _template(workers: int, test_batch_size: int | str = "null", launcher: str | None = None) -> Contender:
    def run(grid: Grid, seed: int, folder: Path) -> Measured:
        words = [f"images={grid.images}", f"rows={folder}/rows.csv", f"num_workers={workers}", *_axes(grid, seed)]
        words += [f"test_batch_size={test_batch_size}", f"hydra.sweep.dir={folder}/logs"]
        script = [str(HERE / "peers_template.py"), "-m", *words, f"hydra/launcher={launcher or _launcher()}"]
        return Measured(*_measure(script, folder), _rows(folder))

    return run


def _launcher() -> str:
    return "joblib" if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") else "local"


def _loop(jobs: int, threads: int) -> Contender:
    def run(grid: Grid, seed: int, folder: Path) -> Measured:
        script = [str(HERE / "peers_loop.py"), f"{folder}/rows.csv", str(jobs), str(threads)]
        return Measured(*_measure([*script, *grid.words, *_axes(grid, seed)], folder), _rows(folder))

    return run


def _rows(folder: Path) -> Runs:
    with (folder / "rows.csv").open() as file:
        rows = [[float(cell) for cell in row] for row in csv.reader(file)]
    return {(int(m), rate): (accuracy, began, ended) for m, rate, accuracy, began, ended in rows}


def _new(temporary: str) -> Path:
    return Path(tempfile.mkdtemp(dir=temporary))


def _measure(script: list[str], folder: Path) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak memory in GiB of a script with all its processes.

    Memory is their proportional set size (PSS) together: what processes share counts once. Raises CalledProcessError.
    """
    environment = os.environ | {"PYTHONPATH": str(HERE.parent / "src")}
    over, peaks = threading.Event(), [0.0]
    with (folder / "log.txt").open("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *script], stdout=log, stderr=log, start_new_session=True, env=environment, cwd=folder
        )

        def watch() -> None:
            while not over.wait(PERIOD):
                peaks.append(_memory(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGTERM)
            raise
        finally:
            over.set()
            watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            print(log.read()[-4000:], file=sys.stderr)
            raise subprocess.CalledProcessError(process.returncode, script)
    return wall, usage.ru_utime + usage.ru_stime, max(peaks)


def _memory(session: int) -> float:
    """GiB of all processes of a session."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):  # it may have ended
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                lines = (stat.parent / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**20


def _print(measured: dict[str, list[Measured]]) -> None:
    width = max(map(len, measured)) + 2
    ours = measured[OURS]
    heads = "".join(f"{f'm = {m}':>18}" for m in SIZES)
    print(
        "Seconds, medians over n (lowest to highest): grid, from the command to the table; training, from the begin of"
    )
    print(
        "the first run to the end of the last; of a run at each m. Processor time in s and the peak of memory in GiB."
    )
    print(f"{'':<{width}}{'n':>2}{'grid':>18}{'training':>18}{heads}{'processor':>11}{'memory':>8}")
    for name, each in measured.items():
        spent = "".join(f"{_spread(list(seconds), 1):>18}" for seconds in zip(*map(_seconds, each), strict=True))
        processor, memory = median(one.processor for one in each), max(one.memory for one in each)
        print(f"{name:<{width}}{len(each):>2}{spent}{processor:>11.1f}{memory:>8.2f}")
    print("\nThe same in units of this package, each pair with the same seed")
    for name, each in measured.items():
        if name != OURS:
            pairs = [zip(_seconds(a), _seconds(b), strict=True) for a, b in zip(each, ours, strict=False)]
            ratios = zip(*([one / our for one, our in pair] for pair in pairs), strict=True)
            processor = median(a.processor / b.processor for a, b in zip(each, ours, strict=False))
            memory = max(one.memory for one in each) / max(one.memory for one in ours)
            cells = "".join(f"{_spread(list(ratio), 2):>18}" for ratio in ratios)
            print(f"{name:<{width}}{len(each):>2}{cells}{processor:>11.2f}{memory:>8.2f}")
    print("\nAccuracy %, mean over η̃ and seeds; difference from this package's, run by run, ± its standard error")
    print(f"{'':<{width}}{'n':>2}{heads}{'difference':>18}")
    for name, each in measured.items():
        of_m = [100 * mean(a for one in each for (size, _), (a, *_) in one.runs.items() if size == m) for m in SIZES]
        cells = "".join(f"{value:>18.2f}" for value in of_m)
        print(f"{name:<{width}}{len(each):>2}{cells}{_difference(each, ours):>18}")


def _seconds(one: Measured) -> list[float]:
    return [one.wall, one.training, *map(one.seconds, SIZES)]


def _spread(values: list[float], digits: int) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})" if len(values) > 1 else middle


def _difference(each: list[Measured], ours: list[Measured]) -> str:
    pairs = zip(each, ours, strict=False)
    gaps = [100 * (right - b.runs[point][0]) for a, b in pairs for point, (right, *_) in a.runs.items()]
    return f"{mean(gaps):+.2f} ± {stdev(gaps) / len(gaps) ** 0.5:.2f}" if any(gaps) else "none"
