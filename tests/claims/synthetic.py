"""Figures of made-up runs: a world in which the paper is right, and what it takes to change it."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from smallbatch.figures.collect import FigureRuns

SIZES = [2**k for k in range(1, 12)]
RATES = [2.0**k for k in range(-12, 1)]
SEEDS = (1, 2, 3)
CHANCE, NOISE = 10.0, 0.03  # points
TRAIN_IMAGES, EPOCHS = 50_000, 82


def figure_runs(name, accuracy, sizes=SIZES, rates=RATES, seeds=SEEDS, bn=lambda m: [m], noise=NOISE, **changes):
    """Runs with test accuracy(m, log2 η̃, b) in points (None: diverged), plus noise and an effect of the seed.

    `bn(m)`: the BN batches of m; `rates` may depend on m likewise. Training accuracy is 5 points above; `changes` are
    to the FigureRuns.
    """
    random = np.random.default_rng(list(name.encode()))
    rows = []
    for m in sizes:
        for rate in rates(m) if callable(rates) else rates:
            for b in bn(m):
                truth = accuracy(m, math.log2(rate), b)
                for seed in seeds:
                    score = CHANCE if truth is None else truth + noise * (random.normal() + (-1) ** seed)
                    rows.append(_row(f"{name}-{m}-{rate}-{b}-{seed}", m, rate, b, seed, score, truth is None))
    return replace(FigureRuns(name, "paper", pd.DataFrame(rows)), **changes)


def _row(key, m, rate, b, seed, score, lost):
    return {
        "key": key,
        "batch_size": m,
        "base_lr": rate,
        "bn_batch_size": b,
        "seed": seed,
        "score": score / 100,
        "chance": CHANCE / 100,
        "status": "diverged" if lost else "finished",
        "train_accuracy": np.nan if lost else min(score + 5, 100) / 100,
        "updates": 3 if lost else EPOCHS * (TRAIN_IMAGES // m),
        "train_images": TRAIN_IMAGES,
        "test_images": 10_000,
        "epochs": EPOCHS,
    }


def outside(m, low, high):
    """Octaves from m to the range."""
    return max(0.0, math.log2(low / m), math.log2(m / high))


def without_bn(top, slope, fails_from=math.inf):
    """Falls by `slope` points an octave of m, and collapses earlier the higher η̃."""

    def accuracy(m, e, b=None):
        limit = -2 - 0.7 * math.log2(m / 2)
        return None if e > limit or m >= fails_from else top - slope * math.log2(m / 2) - (-2 - e)

    return accuracy


def alexnet_bn(low, high, top=80.0):
    def accuracy(m, e, b=None):
        return None if e > -1 - 0.5 * math.log2(m / 2) else top - 0.6 * outside(m, low, high) - 1.5 * abs(e + 5)

    return accuracy


def resnet_bn(top, critical=16, peak=lambda m: -outside(m, 4, 8)):
    """The best η̃ is 2^-3 up to the critical m, then falls as 1/m."""

    def accuracy(m, e, b=None):
        beyond = max(0.0, math.log2(m / critical))
        return None if e > (-2 - beyond if beyond else -1) else top + peak(m) - 2 * abs(e + 3 + beyond)

    return accuracy


def resnet_rate(critical):
    """That best η̃, for each m."""
    return lambda m: [2.0 ** (-3 - max(0.0, math.log2(m / critical)))]


def fair(m):
    """Peak with warm-up: nearly flat to 128."""
    return 0.0 if m in (4, 8) else -0.3 if m == 2 else -0.1 - 0.1 * outside(m, 4, min(m, 128) / 2) - outside(m, 1, 128)


def imagenet(m, e, b=None):
    limit = 0 if m <= 8 else -2 if m <= 64 else -4
    return None if e > limit else 75 - (0.5 if m < 16 else 4) * outside(m, 16, 64) - 2 * abs(e + 7)


def cifar_bn_batch(m, e, b):
    return 93 - math.log2(m / 8) - 0.8 * abs(math.log2(b) - 2.5)


def imagenet_bn_batch(m, e, b):
    return 75 - math.log2(m / 16) - 0.5 * outside(b, 16, 64)


def divisors(most):
    return lambda m: [2**k for k in range(1, int(math.log2(min(m, most))) + 1)]


def curve_runs(train, seeds=SEEDS, accuracy=lambda m, e, b: 80.0, **changes):
    """Figure 4: `train(m, share of training)` is the training accuracy in points."""
    runs = figure_runs("fig04", accuracy, rates=[2.0**-8], seeds=seeds)
    random = np.random.default_rng(4)
    curves = [
        {"key": row.key, "epoch": epoch, "train_accuracy": (train(row.batch_size, epoch / EPOCHS) + noise) / 100}
        for row in runs.frame.itertuples()
        for epoch, noise in enumerate(NOISE * random.normal(size=EPOCHS), 1)
    ]
    return replace(runs, **{"curves": pd.DataFrame(curves)} | changes)


ACCURACY = {
    "fig01": without_bn(75, 0.5),
    "fig02": without_bn(75, 0.5),
    "fig03": without_bn(77, 1.0),
    "resnet32_nobn": without_bn(76, 1.0, fails_from=16),
    "fig05": alexnet_bn(8, 64),
    "fig06": alexnet_bn(4, 32),
    "fig07": resnet_bn(88),
    "fig08": resnet_bn(92),
    "fig09": resnet_bn(69, critical=8),
    "fig10": resnet_bn(93, peak=fair),
    "fig11": resnet_bn(70, critical=8, peak=lambda m: -outside(m, 4, 16)),
    "fig17": resnet_bn(90, peak=lambda m: -1.3 * outside(m, 4, 8)),
    "fig18": resnet_bn(93, peak=lambda m: -0.8 * outside(m, 4, 8)),
    "fig12": imagenet,
    "fig13a": cifar_bn_batch,
    "fig13b": cifar_bn_batch,
    "fig14": imagenet_bn_batch,
}
GRID = {
    "fig12": {"sizes": SIZES[:7]},
    "fig13a": {"sizes": SIZES[2:9], "rates": resnet_rate(16), "bn": divisors(512), "draw": "bn_batch"},
    "fig13b": {"sizes": SIZES[2:9], "rates": resnet_rate(8), "bn": divisors(512), "draw": "bn_batch"},
    "fig14": {"sizes": SIZES[3:], "rates": [2.0**-10], "bn": divisors(128), "draw": "bn_batch"},
}


def paper_curve(m, share):
    return 50 + 45 * share - 3 * max(0.0, math.log2(m / 64))


def figure(name, accuracy=None, **changes):
    """A figure as the paper has it, or with another accuracy, grid or other attributes."""
    if name == "fig04":
        return curve_runs(accuracy or paper_curve, **changes)
    return figure_runs(name, accuracy or ACCURACY[name], **GRID.get(name, {}) | changes)


NAMES = [*ACCURACY, "fig04"]
