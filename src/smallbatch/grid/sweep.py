"""Train a grid: expand, drop what is finished, launch the rest, show how it goes, sum up."""

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from smallbatch import lock, store
from smallbatch.config import ConfigError, TrainsNothing, format_power
from smallbatch.data import describe
from smallbatch.grid.best_rates import best_rates
from smallbatch.grid.expand import Grid, Point, Rates, expand, stages
from smallbatch.grid.price import Prices, words
from smallbatch.run import setting
from smallbatch.store import DamagedRun, Ended
from smallbatch.tracking.live import Place, settled

QUIET = 60.0  # seconds without news after which a log that is no terminal gets a line of how it goes

MOST_NAMED = 10  # points left out
WORTH_MEASURING = 100_000  # images of 32×32: minutes on one core

Launch = Callable[[Sequence[Sequence[str]]], Any]


def sweep(arguments: list[str], launch: Launch, cfg: DictConfig) -> None:
    """Train the missing points of a command line's grid. Exits 1 if one failed, 130 on Ctrl-C."""
    failed = False
    try:
        for stage in stages(arguments):
            failed |= _train_stage(stage, launch, cfg)
    except TrainsNothing as note:
        print(note)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(1)


def _train_stage(arguments: list[str], launch: Launch, cfg: DictConfig) -> bool:
    """Train the missing points of one stage; whether one failed. Raises ConfigError."""
    folders = Path(cfg.store)
    grid = expand(arguments, rates=lambda *asked: _best_rates(folders)(*asked))
    found = {} if cfg.overwrite else _ended(grid.points, folders)
    missing = _trainable(grid, [p for p in grid.points if p.run.key not in found])
    _say_plan(grid, len(found), missing)
    costs = _price(missing, Prices(folders.parent / "calibration.json"))
    common = for_points(cfg, grid, arguments) if missing else []
    # The longest first, so that processes in parallel end together.
    missing.sort(key=lambda point: costs[point.run.key], reverse=True)
    before = {p.run.key: _ended_at(folders, p) for p in missing}
    interrupted = False
    with Progress(missing, folders, before, len(grid.points), costs):
        try:
            _launch_all(missing, folders, before, launch, common)
        except KeyboardInterrupt:
            interrupted = True
    _sum_up(grid, found, folders, before)
    if interrupted:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    return any(_status(folders, p, before) not in (*store.ENDED, "elsewhere") for p in missing)


def _best_rates(folders: Path) -> Rates:
    return best_rates(Ended(store.ended(folders)), describe)


def _ended(points: list[Point], folders: Path) -> dict[str, float]:
    """The scores of the points that have a sound result, by key; what is damaged will be trained again."""
    found = {}
    for point in points:
        try:
            record = store.read(store.folder(folders, point.run))
        except DamagedRun as damage:
            print(f"damaged, will be trained again: {damage}", file=sys.stderr)
            continue
        if record and record.result["status"] in store.ENDED:
            found[point.run.key] = record.result["score"]
            store.tidy(store.folder(folders, point.run))
    return found


def _trainable(grid: Grid, points: list[Point]) -> list[Point]:
    """Leave out, listed, what the network refuses; one trial for all points that differ only in rates and sizes."""
    if not points:
        return []
    from smallbatch.data import load
    from smallbatch.training.module import trial

    verdicts: dict[str, str] = {}
    trainable = []
    for point in points:
        run = point.run
        smallest = min(run.bn_batch_size or run.batch_size, 2)
        kind = str((run.model, run.norm, run.data, run.optimizer, run.weight_decay > 0, smallest))
        if kind not in verdicts:
            try:
                trial(run, load(point.images))
                verdicts[kind] = ""
            except ConfigError as error:
                verdicts[kind] = str(error)
        if verdicts[kind]:
            grid.points.remove(point)
            grid.undefined.append((" ".join(point.overrides), verdicts[kind]))
        else:
            trainable.append(point)
    if not grid.points:
        raise ConfigError(f"no point of this grid can be trained: {'; '.join(sorted(set(verdicts.values())))}")
    return trainable


def _say_plan(grid: Grid, found: int, missing: list[Point]) -> None:
    for overrides, reason in grid.undefined[:MOST_NAMED]:
        print(f"left out: {overrides}: {reason}")
    if len(grid.undefined) > MOST_NAMED:
        print(f"left out: {len(grid.undefined) - MOST_NAMED} more points that cannot exist")
    updates = sum(p.updates for p in missing)
    images = sum(p.updates * p.run.batch_size for p in missing)
    left_out = f", {len(grid.undefined)} left out" if grid.undefined else ""
    print(
        f"{len(grid.points)} run{'s'[: len(grid.points) != 1]}: {found} finished before, {len(missing)} to train "
        f"({updates:,} updates, {images:,} images){left_out}",
        flush=True,
    )


def _price(missing: list[Point], prices: Prices) -> dict[str, float]:
    """What each run costs, by key: seconds on this machine if it does not diverge, and prints their sum.

    Not measured for a grid that may be over sooner; then in proportion, an update costing about as much as 5 images
    more (`src/benchmark.py`, AlexNet).
    """
    rough = {p.run.key: p.updates * (p.run.batch_size + 5.0) * math.prod(p.images.shape[:2]) / 1024 for p in missing}
    if sum(rough.values()) < WORTH_MEASURING and not all(prices.knows(p.run, p.images.shape) for p in missing):
        print("time not measured for so few images; python src/plan.py does", flush=True)
        return rough
    seconds = {
        p.run.key: prices.seconds(p.run, p.updates, p.images.test_size, p.images.shape, p.images.classes)
        for p in missing
    }
    if missing:
        total = words(sum(seconds.values()))
        print(f"at most {total} of one process on this machine, less where runs diverge", flush=True)
    return seconds


def _launch_all(missing: list[Point], folders: Path, before: dict[str, Any], launch: Launch, common: list[str]) -> None:
    """Launch, and again what is left when a worker process was killed, as long as that gets on."""
    left = missing
    while left:
        try:
            launch([[*point.overrides, *common, "progress=false", "grid_point=true"] for point in left])
            return
        except Exception as error:  # such as joblib's TerminatedWorkerError; a point itself never raises
            reason = (str(error) or type(error).__name__).splitlines()[0]
            print(f"the launcher broke off: {reason}", file=sys.stderr)
        still = [p for p in left if _status(folders, p, before) in ("missing", "elsewhere")]
        if len(still) == len(left):
            return
        left = still


def _ended_at(folders: Path, point: Point) -> int | None:
    try:
        return (store.folder(folders, point.run) / "result.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _status(folders: Path, point: Point, before: dict[str, Any]) -> str:
    """The result's status, or `elsewhere` (a live process has it) or `missing`."""
    if _ended_at(folders, point) not in (before[point.run.key], None):
        try:
            record = store.read(store.folder(folders, point.run))
            if record:
                return str(record.result["status"])
        except DamagedRun:
            return "missing"
    return "elsewhere" if lock.claimed(store.folder(folders, point.run)) else "missing"


def _share(path: Path, point: Point) -> float:
    """The share of its epochs that a run in training has behind it."""
    try:
        return max(0, (path / "epochs.csv").read_text(encoding="utf-8").count("\n") - 1) / point.run.epochs
    except OSError:
        return 0.0


class Progress:
    """While it is entered: watches the run folders, whoever trains them, and prints each run that ends."""

    def __init__(
        self, points: list[Point], folders: Path, before: dict[str, Any], total: int, costs: dict[str, float]
    ) -> None:
        self.costs = costs
        self.waiting, self.folders, self.before, self.total = list(points), folders, before, total
        self.counts: Counter[str] = Counter({"skipped": total - len(points)})
        self.price = sum(costs[point.run.key] for point in points)
        self.paid = self.begun = 0.0
        self.start = self.printed = time.monotonic()
        self.stop = threading.Event()
        self.live = sys.stdout.isatty()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        self.thread.join()
        self._look()
        if self.live:
            print("\r\033[K", end="")

    def _watch(self) -> None:
        while not self.stop.wait(1.0):
            self._look()

    def _look(self) -> None:
        running, begun = 0, 0.0
        for point in list(self.waiting):
            status = _status(self.folders, point, self.before)
            if status in (*store.ENDED, "failed"):
                self.waiting.remove(point)
                self.counts[status] += 1
                self.paid += self.costs[point.run.key]
                self._print_end(point)
            elif status == "elsewhere":
                running += 1
                begun += self.costs[point.run.key] * _share(store.folder(self.folders, point.run), point)
        self.begun = begun
        if self.live and self.waiting:
            print(f"\r\033[K{self._line(running)}", end="", flush=True)
        elif self.waiting and time.monotonic() - self.printed > QUIET:
            print(self._line(running), flush=True)
            self.printed = time.monotonic()

    def _print_end(self, point: Point) -> None:
        record = store.read(store.folder(self.folders, point.run))
        if record:
            done = self.total - len(self.waiting)
            erase = "\r\033[K" if self.live else ""
            text = store.summary(record, self.folders)
            self.printed = time.monotonic()
            print(f"{erase}{done:>{len(str(self.total))}}/{self.total} {text}{self._left()}", flush=True)

    def _line(self, running: int) -> str:
        counts = ", ".join(f"{self.counts[status]} {status}" for status in ("skipped", *store.ENDED, "failed"))
        return f"{self.total - len(self.waiting)}/{self.total} done ({counts}), {running} running{self._left()}"

    def _left(self) -> str:
        """Time left, from what the runs so far cost against their price."""
        paid = min(self.paid + self.begun, self.price)  # a run that has just ended is in both
        if not paid or not self.waiting:
            return ""
        seconds = (time.monotonic() - self.start) * (self.price - paid) / paid
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def _sum_up(grid: Grid, found: dict[str, float], folders: Path, before: dict[str, Any]) -> None:
    """The scores as a table, then every point that has none, and why; `found`: the scores from before."""
    counts: Counter[str] = Counter()
    scores: dict[tuple[float, int], list[float]] = {}
    problems = []
    for point in grid.points:
        path = store.folder(folders, point.run)
        cell = scores.setdefault((point.run.base_lr, point.run.batch_size), [])
        status = "finished before" if point.run.key in found else _status(folders, point, before)
        counts[status] += 1
        record = store.read(path) if status in (*store.ENDED, "failed") else None
        if status == "finished before":
            cell.append(found[point.run.key])
        elif record and status in store.ENDED:
            cell.append(record.result["score"])
        elif status == "failed":
            problems.append(f"failed: {point.run.label}: {record.result['error'] if record else '?'} ({path})")
        elif status == "elsewhere":
            problems.append(f"in training by another process: {point.run.label}")
        else:
            problems.append(f"not trained: {point.run.label}")
    if len({setting(point.run) for point in grid.points}) == 1:
        _print_scores(scores)
    elif grid.figures:
        print("to see them: python src/figures.py")
    print(", ".join(f"{n} {status}" for status, n in counts.items()))
    for line in problems:
        print(line, file=sys.stderr)


def _print_scores(scores: dict[tuple[float, int], list[float]]) -> None:
    scores = {cell: values for cell, values in scores.items() if values}
    if len(scores) < 2:
        return
    sizes = sorted({m for _, m in scores})
    print("\nscore (mean over other axes)")
    print(f"{'η̃':>7} " + " ".join(f"{f'm={m}':>7}" for m in sizes))
    for rate in sorted({rate for rate, _ in scores}, reverse=True):
        cells = [scores.get((rate, m)) for m in sizes]
        print(f"{format_power(rate):>6} " + " ".join(f"{sum(c) / len(c):7.4f}" if c else " " * 7 for c in cells))


GROUP_LENGTH = 128  # the longest that W&B takes
# Of a command line: what is no axis, and what tells of this machine.
_NOT_THE_GRID = ("data.path=", "data.root=", "logger=", "machine", "overwrite=", "progress=", "store=", "wandb.")


def for_points(cfg: DictConfig, grid: Grid, arguments: list[str]) -> list[str]:
    """What the points of a grid are told: the mode, found out and said once, and the grid's name as their group."""
    if cfg.logger.name == "none":
        return []
    mode = settled(Place.of(cfg), lambda line: print(line, file=sys.stderr)).mode
    if grid.figures:
        scale = next((word.partition("=")[2] for word in arguments if word.startswith("scale=")), "paper")
        name = f"{'-'.join(figure.name for figure in grid.figures)}-{scale}"
    else:
        name = " ".join(word for word in arguments if not word.startswith(_NOT_THE_GRID))[:GROUP_LENGTH]
    quoted = (cfg.wandb.group or name).replace("\\", "\\\\").replace("'", "\\'")
    return [f"wandb.mode={mode}", f"wandb.group='{quoted}'"]
