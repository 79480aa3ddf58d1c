"""What runs cost on this machine: the seconds of an update and of a test image, measured once and kept."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smallbatch.files import parse_json, read_text, write_text
from smallbatch.grids.expand import Grid, Point
from smallbatch.grids.search import EXPECTED
from smallbatch.record import Record, fits
from smallbatch.run import Run
from smallbatch.training.speed import Rate, Shape, label, measurable, measure

PER_RUN, PER_EPOCH = 0.5, 0.05  # seconds beside the updates: a run's start in a warm process, an epoch's checkpoint


@dataclass
class Prices:
    """The rates of this machine, kept in a file. `say` hears what is being measured."""

    file: Path
    say: Callable[[str], None] = print
    known: dict[str, Rate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            stored = parse_json(read_text(self.file))
            fits(dict[str, Rate], stored, self.file.name)
            self.known = {kind: Rate(**rate) for kind, rate in stored.items()}
        except (OSError, ValueError, TypeError):
            pass  # not there yet, or damaged: measured again

    def seconds(self, run: Run, updates: int, test_size: int, shape: Shape, classes: int, share: float = 1.0) -> float:
        """Seconds of a run that ends after a `share` of its epochs."""
        work = self.work(run, updates, test_size, shape, classes)
        return PER_RUN + share * (work + run.epochs * PER_EPOCH)

    def work(self, run: Run, updates: int, test_size: int, shape: Shape, classes: int) -> float:
        """Seconds of all its updates and tests, which are what a result counts as `seconds`."""
        small = measurable(run, shape)
        rate = self.rate(small, shape, classes)
        return updates * rate.update * run.batch_size / small.batch_size + run.epochs * test_size * rate.image

    def knows(self, run: Run, shape: Shape) -> bool:
        """Whether a run's kind is measured."""
        return _kind(measurable(run, shape), shape) in self.known

    def rate(self, run: Run, shape: Shape, classes: int) -> Rate:
        """The rate of a run's kind, measured now if it never was here."""
        kind = _kind(run, shape)
        if kind not in self.known:
            self.say(f"measuring {label(run, shape)} …")
            self.known[kind] = measure(run, shape, classes)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            rates = {name: vars(rate) for name, rate in sorted(self.known.items())}
            write_text(self.file, json.dumps(rates, indent=1, ensure_ascii=False) + "\n")
        return self.known[kind]


def _kind(run: Run, shape: Shape) -> str:
    """What decides the seconds of an update: the machine, the network, the sizes."""
    parts: list[Any] = [_machine(), {k: v for k, v in run.model.items() if k != "name"}, vars(run.norm), shape]
    parts += [run.optimizer["_target_"], run.batch_size, run.bn_batch_size, run.precision]
    return json.dumps(parts, sort_keys=True, ensure_ascii=False)


def _machine() -> list[str]:
    from importlib.metadata import version

    from smallbatch.machine import device_name

    return [device_name(), f"torch {version('torch')}"]


def price_of(point: Point, prices: Prices, share: float = 1.0) -> float:
    """Seconds of a point, measured now if its kind never was."""
    images = (point.images.test_size, point.images.shape, point.images.classes)
    return prices.seconds(point.run, point.updates, *images, share)


def rest_of_search(grid: Grid, prices: Prices) -> tuple[float, float]:
    """Seconds of what a search has not asked for yet: as expected, and at most."""
    asked = Counter(replace(point.run, base_lr=1.0).key for point in grid.points)
    expected = most = 0.0
    for point in grid.open:
        tried = asked[replace(point.run, base_lr=1.0).key]
        cost = price_of(point, prices)
        expected += cost * max(0, EXPECTED - tried)
        most += cost * max(0, grid.most - tried)
    return expected, most


def expected_share(run: Run, alike: Iterable[Record]) -> float:
    """The share of its updates that a run is expected to make, from the ended runs of its setting.

    A run of the same batch sizes that diverged at this η̃, or at the nearest smaller one, tells; 1 where there is none.
    """
    sizes = (run.batch_size, run.bn_batch_size)
    lost = [
        (record.run.base_lr, record.rows[-1]["updates"] / total_updates(record))
        for record in alike
        if record.result["status"] == "diverged" and (record.run.batch_size, record.run.bn_batch_size) == sizes
    ]
    return max((entry for entry in lost if entry[0] <= run.base_lr), default=(0.0, 1.0))[1]


def total_updates(record: Record) -> int:
    """The updates that a run has if it does not diverge."""
    return int(record.run.epochs * (record.result["train_images"] // record.run.batch_size))


def words(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h`, `12 days` or `5.0 years`."""
    for unit, size, least in (("years", 365 * 86400, 2), ("days", 86400, 3), ("h", 3600, 1.5), ("min", 60, 1.5)):
        if seconds >= least * size:
            amount = seconds / size
            return f"{amount:.1f} {unit}" if amount < 10 and unit != "min" else f"{amount:.0f} {unit}"
    return f"{seconds:.0f} s"
