"""What runs cost on this machine: the seconds of an update and of a test image, measured once and kept."""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smallbatch.config import ConfigError, Run
from smallbatch.files import write_text
from smallbatch.store import Record

Shape = tuple[int, ...]  # height, width, channels
PER_RUN, PER_EPOCH = 0.5, 0.05  # seconds beside the updates: a run's start in a warm process, an epoch's checkpoint
PATIENCE = 1.0  # seconds that one calibration measures, after its warm-up
PIXELS = 256 * 32 * 32  # of a batch; a larger one costs in proportion to its images


@dataclass(frozen=True)
class Rate:
    """Seconds of an update and of the evaluation of one test image, on one process."""

    update: float
    image: float


@dataclass
class Prices:
    """The rates of this machine, kept in a file. `say` hears what is being measured."""

    file: Path
    say: Callable[[str], None] = print
    known: dict[str, Rate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            stored = json.loads(self.file.read_text(encoding="utf-8"))
            self.known = {kind: Rate(**rate) for kind, rate in stored.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass  # not there yet, or damaged: measured again

    def seconds(self, run: Run, updates: int, test_size: int, shape: Shape, classes: int, share: float = 1.0) -> float:
        """Seconds of a run that ends after a `share` of its epochs."""
        work = self.work(run, updates, test_size, shape, classes)
        return PER_RUN + share * (work + run.epochs * PER_EPOCH)

    def work(self, run: Run, updates: int, test_size: int, shape: Shape, classes: int) -> float:
        """Seconds of all its updates and tests, which are what a result counts as `seconds`."""
        small = _measurable(run, shape)
        rate = self.rate(small, shape, classes)
        return updates * rate.update * run.batch_size / small.batch_size + run.epochs * test_size * rate.image

    def knows(self, run: Run, shape: Shape) -> bool:
        """Whether a run's kind is measured."""
        return _kind(_measurable(run, shape), shape) in self.known

    def rate(self, run: Run, shape: Shape, classes: int) -> Rate:
        """The rate of a run's kind, measured now if it never was here."""
        kind = _kind(run, shape)
        if kind not in self.known:
            self.say(f"measuring {_label(run, shape)} …")
            self.known[kind] = measure(run, shape, classes)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            rates = {name: vars(rate) for name, rate in sorted(self.known.items())}
            write_text(self.file, json.dumps(rates, indent=1, ensure_ascii=False) + "\n")
        return self.known[kind]


def _label(run: Run, shape: Shape) -> str:
    """What is measured, as `resnet32, batch norm of 4, 32×32, m = 8`."""
    groups = f" of {run.bn_batch_size}" if run.bn_batch_size else ""
    where = " in conv" if run.norm["layers"] == "conv" else ""
    norm = [] if run.norm["kind"] == "none" else [f"{run.norm['kind']} norm{groups}{where}"]
    optimizer = [] if run.optimizer["name"] == "sgd" else [run.optimizer["name"]]
    return ", ".join([run.model["name"], *norm, *optimizer, f"{shape[0]}×{shape[1]}", f"m = {run.batch_size}"])


def _measurable(run: Run, shape: Shape) -> Run:
    """The run itself, or with the largest batch that is measured; BN batches stay, or shrink with it."""
    most = max(8, 2 ** int(math.log2(PIXELS / math.prod(shape[:2]))))
    if run.batch_size <= most:
        return run
    b = run.bn_batch_size
    return replace(run, batch_size=most, bn_batch_size=b if b and b < most and most % b == 0 else None)


def _kind(run: Run, shape: Shape) -> str:
    """What decides the seconds of an update: the machine, the network, the sizes."""
    parts: list[Any] = [_machine(), {k: v for k, v in run.model.items() if k != "name"}, run.norm, shape]
    parts += [run.optimizer["_target_"], run.batch_size, run.bn_batch_size, run.precision]
    return json.dumps(parts, sort_keys=True, ensure_ascii=False)


def _machine() -> list[str]:
    from importlib.metadata import version

    from smallbatch.training.run import device_name

    return [device_name(), f"torch {version('torch')}"]


def measure(run: Run, shape: Shape, classes: int) -> Rate:
    """Train and evaluate on random images for some seconds, as a run does: augmented blocks, mini-batches, one thread.

    Reading image files is not in it.
    """
    import numpy as np
    import torch
    from torch.nn import functional as F

    from smallbatch.data import Images, Split
    from smallbatch.data.blocks import TestBlocks, TrainBlocks
    from smallbatch.models import build
    from smallbatch.training.module import make_optimizer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    random = np.random.RandomState(0)
    count = max(256, 2 * run.batch_size)
    pixels = random.randint(0, 256, (count, *shape), dtype=np.uint8)
    split = Split(pixels, random.randint(0, classes, count), np.arange(count))
    images = Images(split, split, classes, np.full(shape[2], 127.0), np.full(shape[2], 64.0))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.float64 if run.precision == "64-true" else torch.float32
    mixed = run.precision == "bf16-mixed"
    network = build(run, shape[2], classes).to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(run, network.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # nothing diverges, so every update does its whole work

    def train() -> Iterable[int]:
        network.train()
        for x, y in TrainBlocks(images, run.batch_size, True, 0, 0):
            x, y = x.to(device, kind), y.to(device)
            for some, labels in zip(x.split(run.batch_size), y.split(run.batch_size), strict=True):
                with torch.autocast(device, torch.bfloat16, enabled=mixed):
                    loss = F.cross_entropy(network(some), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                yield 1

    def test() -> Iterable[int]:
        network.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=mixed):
            for x, _ in TestBlocks(images):
                network(x.to(device, kind))
                yield len(x)

    try:
        return Rate(_seconds_each(train, PATIENCE), _seconds_each(test, PATIENCE / 3))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{_label(run, shape)}: the network cannot take these images: {reason}") from None
    finally:
        torch.set_num_threads(threads)


def _seconds_each(work: Callable[[], Iterable[int]], patience: float) -> float:
    """Seconds per unit of work: after two steps of warm-up, steps until `patience` is over, at least one."""
    done, began = -2, time.perf_counter()
    units = 0
    while True:
        for amount in work():
            done += 1
            if done == 0:
                began = time.perf_counter()
            elif done > 0:
                units += amount
                if time.perf_counter() - began > patience:
                    return (time.perf_counter() - began) / units


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


def processes() -> int:
    """How many runs `hydra/launcher=local` has at a time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def words(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h`, `12 days` or `5.0 years`."""
    for unit, size, least in (("years", 365 * 86400, 2), ("days", 86400, 3), ("h", 3600, 1.5), ("min", 60, 1.5)):
        if seconds >= least * size:
            amount = seconds / size
            return f"{amount:.1f} {unit}" if amount < 10 and unit != "min" else f"{amount:.0f} {unit}"
    return f"{seconds:.0f} s"
