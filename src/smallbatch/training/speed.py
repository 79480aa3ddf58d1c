"""Seconds of an update and of a test image, measured as a run trains."""

import math
from dataclasses import dataclass, replace
from typing import Any

from smallbatch.run import Run

Shape = tuple[int, ...]  # height, width, channels
PATIENCE = 1.0  # seconds of updates that one calibration takes, after a few that warm up
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
    """Train a run on random images for some seconds, one thread. Reading image files is not in it.

    Raises ConfigError if the network cannot take the images.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        updates, tests = 2, classes
        for _ in range(2):  # first a few, which say how many take the time
            rate = _rate(run, shape, classes, updates, tests)
            updates, tests = (max(1, min(1024, round(PATIENCE / each))) for each in (rate.update, 3 * rate.image))
        return rate
    finally:
        torch.set_num_threads(threads)


def _rate(run: Run, shape: Shape, classes: int, updates: int, tests: int) -> Rate:
    """The rate of so many updates and test images."""
    import numpy as np

    from smallbatch.data import Images, Split
    from smallbatch.training.fit import fit
    from smallbatch.training.module import SmallBatch
    from smallbatch.training.trial import trial

    random, m = np.random.RandomState(0), run.batch_size
    pixels = random.randint(0, 256, (max(updates * m, tests), *shape), dtype=np.uint8)
    labels = random.randint(0, classes, len(pixels))
    train, test = (Split(pixels, labels, np.arange(size)) for size in (updates * m, tests))
    images = Images(train, test, classes, np.full(shape[2], 127.0), np.full(shape[2], 64.0))
    # The first of many epochs, at a rate at which nothing diverges: every update does its whole work.
    run = replace(run, base_lr=2.0**-40, epochs=100, data=run.data | {"augment": True})
    trial(run, images)
    module = SmallBatch(run, *images.sizes)
    silent: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    fit(module, images, max_epochs=1, **silent)
    (row,) = module.rows
    return Rate(row["train_seconds"] / updates, row["eval_seconds"] / tests)
