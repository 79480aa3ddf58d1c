"""A small grid by this package and by what people use instead: seconds to the result table, memory, accuracy.

`python tests/benchmark.py --only peers` prints it. The grid is the paper's reduced AlexNet on augmented images, m × η̃,
with another seed in each repetition. All train the same network from the same weights, on the same images, with plain
SGD at the same rates, and test it after every epoch. What each of them is, and whom a choice favours:

- this package: its command with `hydra/launcher=local`, in an empty store. It also saves every epoch, draws the answer
  and can be resumed, which the loops do not.
- template: `peers_template.py`, with Hydra's joblib launcher where that is installed; else with `hydra/launcher=local`,
  which starts joblib's processes alike. DataLoader workers: the best of 0, 1 and 2, tried on half the grid. It tests in
  batches of m, as most templates do; how much of its time that is shows the row that tests in batches of 500.
- loop: `peers_loop.py`, which has images and crops ready-made from this package, no Lightning, channels-last, fused
  SGD, and keeps nothing but the last accuracy. In turn on one thread, in turn on as many threads as there are cores,
  or a run on each core.
"""

import csv
import importlib.util
import os
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
RATES = (2.0**-12, 2.0**-11)  # nothing diverges, and every m learns something
PERIOD = 0.5  # seconds between looks at the memory
OURS, TEMPLATE = "this package", "template"


@dataclass
class Grid:
    """The words that describe it to this package, and the same images in a file for the template."""

    words: list[str]
    epochs: int
    images: Path
    rates: tuple[float, ...] = RATES


@dataclass
class Measured:
    """One contender's grid. `runs`: accuracy and seconds by (m, η̃)."""

    wall: float
    processor: float
    memory: float
    runs: dict[tuple[int, float], tuple[float, float]]

    def seconds(self, m: int) -> float:
        return mean(seconds for (size, _), (_, seconds) in self.runs.items() if size == m)


Contender = Callable[[Grid, int, Path], Measured]


def peers(_: Path, rounds: int, small: bool = False) -> None:
    """Measure everybody in turns, and print tables; `small`: a grid that shows no more than that it works."""
    with tempfile.TemporaryDirectory() as temporary:
        grid, what = _grid(HERE.parent / "data", Path(temporary), small)
        print(f"Peers: {what}; {len(SIZES) * len(RATES)} runs, m × η̃ = {SIZES} × {RATES}", flush=True)
        half = Grid(grid.words, max(1, grid.epochs // 2), grid.images, RATES[:1])
        tried = {workers: _template(workers)(half, 0, _new(temporary)).wall for workers in (0, 1, 2)}
        best = min(tried, key=lambda workers: tried[workers])
        found = ", ".join(f"{workers}: {seconds:.1f} s" for workers, seconds in tried.items())
        print(f"the template's DataLoader workers on a quarter of it: {found}; {best} from here on")
        print(f"the template's launcher: hydra/launcher={_launcher()}\n", flush=True)
        cores = len(os.sched_getaffinity(0))
        every: dict[str, Contender] = {
            OURS: _ours,
            TEMPLATE: _template(best),
            "loop, one run at a time": _loop(1, 1),
            f"loop, {cores} runs at a time": _loop(cores, 1),
        }
        once: dict[str, Contender] = {
            "template, tests in batches of 500": _template(best, 500),
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
    train, test, epochs = (256, 100, 2) if small else (2560, 1000, 3) if real else (1408, 360, 5)
    data = [f"data={'cifar10' if real else 'digits'}", f"data.train_size={train}", f"data.test_size={test}"]
    words = ["model=alexnet", *data, "data.augment=true", f"data.root={root}", "schedule=constant"]
    images = load_images(compose(words))  # unpacks them, once for all
    arrays: dict[str, Any] = {"mean": images.mean, "std": images.std, "classes": images.classes}
    for name, split in (("train", images.train), ("test", images.test)):
        arrays[f"{name}_images"] = split.images[split.index].squeeze(-1) if not real else split.images[split.index]
        arrays[f"{name}_labels"] = split.labels[split.index]
    np.savez(folder / "images.npz", allow_pickle=False, **arrays)
    name = "CIFAR-10" if real else "scikit-learn's digits (data/ has no cifar10.npz)"
    what = f"AlexNet, {name}, {train:,} training images, cropped and flipped, {test:,} test images, {epochs} epochs"
    return Grid(words, epochs, folder / "images.npz"), what


def _axes(grid: Grid, seed: int) -> list[str]:
    rates = ",".join(map(repr, grid.rates))
    return [f"batch_size={','.join(map(str, SIZES))}", f"base_lr={rates}", f"epochs={grid.epochs}", f"seed={seed}"]


def _ours(grid: Grid, seed: int, folder: Path) -> Measured:
    from smallbatch.store import ended

    words = [*grid.words, *_axes(grid, seed), f"store={folder}/runs", "machine.accelerator=cpu", "hydra/launcher=local"]
    spent = _measure([str(HERE.parent / "src" / "train.py"), "-m", *words], folder)
    records = ended(folder / "runs").values()
    runs = {
        (r.run.batch_size, r.run.base_lr): (r.rows[-1]["test_accuracy"], r.result["seconds"])
        for r in records
        if r.result["status"] == "finished"
    }
    return Measured(*spent, runs)


def _template(workers: int, test_batch_size: int | None = None) -> Contender:
    def run(grid: Grid, seed: int, folder: Path) -> Measured:
        words = [f"images={grid.images}", f"rows={folder}/rows.csv", f"num_workers={workers}", *_axes(grid, seed)]
        words += [f"test_batch_size={test_batch_size or 'null'}", f"hydra.sweep.dir={folder}/logs"]
        script = [str(HERE / "peers_template.py"), "-m", *words, f"hydra/launcher={_launcher()}"]
        return Measured(*_measure(script, folder), _rows(folder))

    return run


def _launcher() -> str:
    there = importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(
        "hydra_plugins.hydra_joblib_launcher"
    )
    return "joblib" if there else "local"


def _loop(jobs: int, threads: int) -> Contender:
    def run(grid: Grid, seed: int, folder: Path) -> Measured:
        script = [str(HERE / "peers_loop.py"), f"{folder}/rows.csv", str(jobs), str(threads)]
        return Measured(*_measure([*script, *grid.words, *_axes(grid, seed)], folder), _rows(folder))

    return run


def _rows(folder: Path) -> dict[tuple[int, float], tuple[float, float]]:
    with (folder / "rows.csv").open() as file:
        return {(int(m), float(rate)): (float(right), float(s)) for m, rate, right, s in csv.reader(file)}


def _new(temporary: str) -> Path:
    return Path(tempfile.mkdtemp(dir=temporary))


def _measure(script: list[str], folder: Path) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak memory in GiB of a script with all its processes.

    Memory is their proportional set size (PSS) together: what processes share counts once. Raises CalledProcessError.
    """
    began, log = time.perf_counter(), folder / "log.txt"
    environment = os.environ | {"PYTHONPATH": str(HERE.parent / "src")}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *script],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            cwd=folder,
        )
        over, peaks = threading.Event(), [0.0]

        def watch() -> None:
            while not over.wait(PERIOD):
                peaks.append(_memory(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        over.set()
        watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        print(log.read_text()[-4000:], file=sys.stderr)
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
    heads = "".join(f"{f'm = {m}':>9}" for m in SIZES)
    print("Seconds from the command to the table (lowest to highest), and of one run at each m; medians over n")
    print(f"{'':<{width}}{'n':>2}{'grid':>8}{'':>15}{heads}{'processor s':>13}{'GiB (PSS)':>11}")
    for name, each in measured.items():
        walls = [one.wall for one in each]
        of_m = "".join(f"{median(one.seconds(m) for one in each):>9.2f}" for m in SIZES)
        spread = f"({min(walls):.1f}–{max(walls):.1f})"
        print(
            f"{name:<{width}}{len(each):>2}{median(walls):>8.1f}{spread:>15}{of_m}"
            f"{median(one.processor for one in each):>13.1f}{max(one.memory for one in each):>11.2f}"
        )
    print(
        f"\nThe same in units of this package, with the same seed (lowest to highest over seeds)\n{'':<{width}}", end=""
    )
    print(f"{'grid':>20}" + "".join(f"{f'm = {m}':>20}" for m in SIZES) + f"{'processor':>12}{'memory':>9}")
    for name, each in measured.items():
        if name != OURS:
            pairs = list(zip(each, ours, strict=False))
            cells = [_spread([a.wall / b.wall for a, b in pairs])]
            cells += [_spread([a.seconds(m) / b.seconds(m) for a, b in pairs]) for m in SIZES]
            processor = median(a.processor / b.processor for a, b in pairs)
            memory = max(a.memory for a in each) / max(b.memory for b in ours)
            print(f"{name:<{width}}" + "".join(f"{cell:>20}" for cell in cells) + f"{processor:>12.2f}{memory:>9.2f}")
    print(f"\nAccuracy %, mean over η̃ and seeds; difference from this package ± standard error\n{'':<{width}}", end="")
    print("".join(f"{f'm = {m}':>9}" for m in SIZES) + f"{'difference':>16}")
    for name, each in measured.items():
        of_m = [100 * mean(a for one in each for (size, _), (a, _) in one.runs.items() if size == m) for m in SIZES]
        print(f"{name:<{width}}" + "".join(f"{value:>9.2f}" for value in of_m) + f"{_difference(each, ours):>16}")


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def _difference(each: list[Measured], ours: list[Measured]) -> str:
    """Of all runs, pairwise."""
    pairs = zip(each, ours, strict=False)
    gaps = [100 * (right - b.runs[point][0]) for a, b in pairs for point, (right, _) in a.runs.items()]
    return "none" if not any(gaps) else f"{mean(gaps):+.2f} ± {stdev(gaps) / len(gaps) ** 0.5:.2f}"
