"""Train a grid: expand, drop what is finished, launch the rest until every point has a result, sum up."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from smallbatch import lock, signals, store
from smallbatch.compose import watched
from smallbatch.data import describe
from smallbatch.ended import Ended
from smallbatch.errors import ConfigError, TrainsNothing, one_line, tell_once
from smallbatch.files import now
from smallbatch.grids.best_rates import best_rates
from smallbatch.grids.expand import Grid, Point, Rates, expand, none_left, stages
from smallbatch.grids.price import Prices, price_of, rest_of_search, words
from smallbatch.grids.progress import Progress, Results, Workers, few, runs, sizes
from smallbatch.grids.summary import Tell, sum_up
from smallbatch.quoting import as_text
from smallbatch.run import Run
from smallbatch.tracking.place import Place, settled

ATTEMPTS = 2  # launches in a row without a result, after which the rest is given up
WORTH_MEASURING = 100_000  # images of 32×32: minutes on one core

# Trains points, each given as words; returns at once where workers go on by themselves.
Launch = Callable[[Sequence[Sequence[str]]], Workers | None]


def sweep(arguments: list[str], launch: Launch, cfg: DictConfig, tell: Tell | None = None) -> None:
    """Train the missing points of a command line's grid, and have a grid of no figure told about.

    Exits 1 if a point failed or has no result, 130 on Ctrl-C, and so with other signals.
    """
    with ended_well():
        if not train_grid(launch, cfg, arguments, tell):
            sys.exit(1)


def train_grid(launch: Launch, cfg: DictConfig, arguments: list[str], tell: Tell | None, helps: bool = False) -> bool:
    """Train the missing points of a command line, stage by stage; whether every point is finished or diverged.

    `helps`: another process has told the price, and sees to the end: this one leaves when nothing more will be free.
    Raises ConfigError, KeyboardInterrupt on Ctrl-C.
    """
    if cfg.grid_since is None:
        cfg.grid_since = now(Path(cfg.store))
    *first, last = stages(arguments)
    complete = [_train_stage(stage, launch, cfg, tell, price=not helps) for stage in first]
    return all([*complete, _train_stage(last, launch, cfg, tell, price=not helps, leave=helps)])


@contextmanager
def ended_well() -> Iterator[None]:
    """A grid's errors in one line with exit status 1, and that of the signal on Ctrl-C; its notices once."""
    tell_once.cache_clear()
    try:
        yield
    except TrainsNothing as note:
        print(note)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(signals.status())


def _train_stage(
    arguments: list[str], launch: Launch, cfg: DictConfig, tell: Tell | None, price: bool, leave: bool = False
) -> bool:
    """Train the missing points of one stage; whether every point is finished or diverged.

    A search has several rounds: what has ended in one decides what the next one trains. `price`: measure and tell it.
    `leave`: do not wait in the last round. Raises ConfigError, KeyboardInterrupt on Ctrl-C.
    """
    folders = Path(cfg.store)
    results = Results(folders, [])
    before: set[str] = set()
    rounds, interrupted, more = 0, False, True
    while more and not interrupted:
        look = partial(_look, folders, cfg, results.ended)
        grid = expand(arguments, rates=lambda *asked: _best_rates(folders)(*asked), look=look)
        results = Results(folders, grid.points, results.done())
        before |= results.take_ended(cfg)
        _check_store(results)
        grid = _without_refused(grid, results, cfg.trainer.devices)
        prices = Prices(folders.parent / "calibration.json")
        if rounds:
            _say_round(grid, results.missing)
        else:
            _say_plan(grid, len(before), results.missing, cfg)
        if rounds or not price:
            costs = _costs(results.missing, prices) or _rough(results.missing)
        else:
            costs = _price(grid, results.missing, prices)
        rounds += 1
        more = bool(grid.open and results.missing)
        wait = cfg.wait and not (leave and not grid.open)
        interrupted = _train_missing(grid, results, costs, launch, cfg, arguments, wait)
        more &= all(results.status(point) in store.ENDED for point in grid.points)
    sum_up(grid, results, before, _without(arguments, _HOW), tell)
    if interrupted:
        raise KeyboardInterrupt
    return all(results.status(point) in store.ENDED for point in grid.points)


def _train_missing(
    grid: Grid,
    results: Results,
    costs: dict[str, float],
    launch: Launch,
    cfg: DictConfig,
    arguments: list[str],
    wait: bool,
) -> bool:
    """Train what is missing; whether Ctrl-C ended it."""
    wandb = for_points(cfg, grid, arguments) if results.missing else {}
    common = {"store": as_text(cfg.store), "grid_since": cfg.grid_since, "progress": False, "wandb": wandb}
    # The longest first, so that processes in parallel end together.
    results.missing.sort(key=lambda point: costs[point.run.key], reverse=True)
    with Progress(results, costs) as progress:
        try:
            _train_all(progress, launch, common, wait)
        except KeyboardInterrupt:
            return True
    return False


def _look(folders: Path, cfg: DictConfig, ended: dict[str, Any], run: Run) -> dict[str, Any] | None:
    """What a search knows of a run: what has ended since it began, or what is kept from before."""
    if run.key not in ended:
        record = store.kept(store.folder(folders, run), cfg, lambda line: None)
        return record.result if record else None
    result: dict[str, Any] = ended[run.key]
    return result if result["status"] in store.ENDED else None


def _best_rates(folders: Path) -> Rates:
    return best_rates(Ended(store.ended(folders)), describe)


def _without_refused(grid: Grid, results: Results, devices: int) -> Grid:
    """The grid without what the network refuses; one trial for all points that differ only in rates and sizes.

    Several devices ask of the sizes that they divide them.
    """
    if not results.missing:
        return grid
    from smallbatch.data import load
    from smallbatch.training.trial import trial

    verdicts: dict[str, str] = {}
    refused = {}
    for point in results.missing:
        run = point.run
        sizes = min(run.bn_batch_size or run.batch_size, 2) if devices == 1 else (run.batch_size, run.bn_batch_size)
        kind = str((run.model, run.norm, run.data, run.loss, run.schedule, run.optimizer, run.weight_decay > 0, sizes))
        if kind not in verdicts:
            try:
                trial(run, load(point.images), results.folders, devices)
                verdicts[kind] = ""
            except ConfigError as error:
                verdicts[kind] = str(error)
        if verdicts[kind]:
            refused[run.key] = (" ".join(point.overrides), verdicts[kind])
    results.missing = [point for point in results.missing if point.run.key not in refused]
    points = [point for point in grid.points if point.run.key not in refused]
    if not points:
        raise none_left(verdicts.values())
    return replace(grid, points=points, undefined=[*grid.undefined, *refused.values()])


def _say_plan(grid: Grid, found: int, missing: list[Point], cfg: DictConfig) -> None:
    for line in few([f"left out: {point}: {why}" for point, why in grid.undefined], "left out: "):
        print(line)
    for notice in dict.fromkeys(point.images.notice for point in grid.points if point.images.notice):
        tell_once(notice)
    updates = sum(p.updates for p in missing)
    images = sum(p.updates * p.run.batch_size for p in missing)
    left_out = f", {len(grid.undefined)} left out" if grid.undefined else ""
    print(
        f"{runs(len(grid.points))}: {found} finished before, {len(missing)} to train "
        f"({updates:,} updates, {images:,} images){left_out}"
        + (f"; more of the search of {sizes(grid.sizes_open)} then" if grid.open else ""),
        flush=True,
    )
    if found and watched(cfg):
        print(f"callbacks and logger see only what is trained now; overwrite=true trains {runs(found)} again")


def _check_store(results: Results) -> None:
    """Raises ConfigError if the store cannot be written or cannot lock: better once now than by every point."""
    if results.missing:
        with suppress(lock.Busy), lock.hold(results.folder(results.missing[0])):
            pass


def _say_round(grid: Grid, missing: list[Point]) -> None:
    """What a search trains next."""
    kinds = dict.fromkeys(point.run.label.partition(" s=")[0] for point in missing)
    if missing:
        print(*(f"search: {kind}" for kind in kinds), f"{sizes(grid.sizes_open)} to go", sep=", ", flush=True)


def _price(grid: Grid, missing: list[Point], prices: Prices) -> dict[str, float]:
    """What each run costs, by key: seconds on this machine if it does not diverge, and prints their sum.

    Not measured for a grid that may be over sooner.
    """
    rough = _rough(missing)
    worth = sum(rough.values()) * (grid.most or 1) >= WORTH_MEASURING
    costs = _costs(missing, prices, measure=worth)
    if costs is None:
        print("time not measured for so few images; python src/plan.py does", flush=True)
        return rough
    if missing and grid.open:
        least, most = rest_of_search(grid, prices)
        total = sum(costs.values())
        print(f"about {words(total + least)} of one process on this machine, at most {words(total + most)}", flush=True)
    elif missing:
        print(
            f"at most {words(sum(costs.values()))} of one process on this machine, less where runs diverge", flush=True
        )
    return costs


def _rough(missing: list[Point]) -> dict[str, float]:
    """In proportion: an update costs about as much as 5 images more (`tests/benchmark.py`, AlexNet)."""
    return {p.run.key: p.updates * (p.run.batch_size + 5.0) * math.prod(p.images.shape[:2]) / 1024 for p in missing}


def _costs(missing: list[Point], prices: Prices, measure: bool = False) -> dict[str, float] | None:
    """Seconds of each run, by key; None if a kind is not known and not to be measured."""
    if not measure and not all(prices.knows(point.run, point.images.shape) for point in missing):
        return None
    return {point.run.key: price_of(point, prices) for point in missing}


def _train_all(progress: Progress, launch: Launch, common: dict[str, Any], wait: bool) -> None:
    """Launch what is missing and free, until all has ended or two launches in a row brought no result.

    What is left may be what a killed worker process had (the launcher breaks off), or what other processes train: with
    `wait` that is waited for, and launched if they are gone.
    """
    results, fruitless = progress.results, 0
    while results.missing and fruitless < ATTEMPTS:
        count = len(results.missing)
        free = [point for point in results.missing if not lock.holder(results.folder(point))]
        jobs = [point.job(**common) for point in free]
        try:
            if jobs and (workers := launch(jobs)):
                progress.watch(workers)
        except SystemExit as error:  # what will not do for any point, such as a full disk
            print(error.code, file=sys.stderr)
            return
        except ConfigError:
            raise
        except Exception as error:  # such as joblib's TerminatedWorkerError; a point itself should not raise
            if not fruitless:  # else it was told
                print(f"the launcher broke off: {one_line(error)}", file=sys.stderr)
        progress.look()
        fruitless = 0 if len(results.missing) < count else fruitless + 1
        if wait and progress.wait():
            fruitless = 0


GROUP_LENGTH = 128  # the longest that W&B takes
# Words of a command line that say how to train it, and those that say where its files are.
_HOW = (
    *("callbacks", "grid_since", "logger", "machine", "margin=", "overwrite=", "progress="),
    *("save_weights=", "trainer", "wait=", "wandb."),
)
_WHERE = ("data.path=", "data.root=", "store=")


def for_points(cfg: DictConfig, grid: Grid, arguments: list[str]) -> dict[str, str]:
    """What the points of a grid are told of W&B: its mode, found out and said once, and the grid's name as group."""
    if cfg.logger.name != "wandb":
        return {}
    place = settled(Place.of(cfg), lambda line: print(line, file=sys.stderr))
    if grid.figures:
        scale = next((word.partition("=")[2] for word in arguments if word.startswith("scale=")), "paper")
        name = f"{'-'.join(figure.name for figure in grid.figures)}-{scale}"
    else:
        name = " ".join(_without(arguments, _HOW + _WHERE))[:GROUP_LENGTH]
    told = {"mode": place.mode, "project": place.project, "entity": place.entity, "group": cfg.wandb.group or name}
    return {setting: as_text(value) for setting, value in told.items() if value}


def _without(arguments: list[str], beginnings: tuple[str, ...]) -> list[str]:
    return [word for word in arguments if not word.lstrip("+~").startswith(beginnings)]
