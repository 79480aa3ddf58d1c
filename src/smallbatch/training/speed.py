"""Seconds of an update and of a test image, measured as a run trains."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from smallbatch.config import ConfigError, one_line
from smallbatch.run import Run

Shape = tuple[int, ...]  # height, width, channels
PATIENCE = 1.0  # seconds that one calibration measures, after its warm-up
PIXELS = 256 * 32 * 32  # of a batch; a larger one costs in proportion to its images


@dataclass(frozen=True)
class Rate:
    """Seconds of an update and of the evaluation of one test image, on one process."""

    update: float
    image: float


def label(run: Run, shape: Shape) -> str:
    """What is measured, as `resnet32, batch norm of 4, 32×32, m = 8`."""
    groups = f" of {run.bn_batch_size}" if run.bn_batch_size else ""
    where = " in conv" if run.norm.layers == "conv" else ""
    norm = [] if run.norm.kind == "none" else [f"{run.norm.kind} norm{groups}{where}"]
    optimizer = [] if run.optimizer["name"] == "sgd" else [run.optimizer["name"]]
    return ", ".join([run.model["name"], *norm, *optimizer, f"{shape[0]}×{shape[1]}", f"m = {run.batch_size}"])


def measurable(run: Run, shape: Shape) -> Run:
    """The run itself, or with the largest batch that is measured; BN batches stay, or shrink with it."""
    most = max(8, 2 ** int(math.log2(PIXELS / math.prod(shape[:2]))))
    if run.batch_size <= most:
        return run
    b = run.bn_batch_size
    return replace(run, batch_size=most, bn_batch_size=b if b and b < most and most % b == 0 else None)


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
        reason = one_line(error)
        raise ConfigError(f"{label(run, shape)}: the network cannot take these images: {reason}") from None
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
