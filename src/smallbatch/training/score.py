"""The score of a run."""

from collections.abc import Sequence
from statistics import median
from typing import Any


def scored_epochs(epochs: int) -> int:
    """How many epochs at the end the score is made of: min(5, max(1, epochs // 4)) (paper, section 5; 5 when long).

    >>> [scored_epochs(epochs) for epochs in (2, 8, 12, 82)]
    [1, 2, 3, 5]
    """
    return min(5, max(1, epochs // 4))


def score(test_accuracy: Sequence[float], epochs: int, chance: float) -> float:
    """Median test accuracy of the last `scored_epochs`. An epoch that a diverged run never reached counts as chance.

    >>> score([0.5, 0.6, 0.7, 0.9, 0.8], epochs=12, chance=0.1)
    0.1
    """
    padded = [*test_accuracy, *[chance] * (epochs - len(test_accuracy))]
    return float(median(padded[epochs - scored_epochs(epochs) :]))


def stopped(values: Sequence[float], stop: dict[str, Any]) -> bool:
    """Whether a run ends early: none of its last `patience` epochs was better than the best before by `min_delta`.

    >>> early = {"mode": "min", "patience": 2, "min_delta": 0.1}
    >>> [stopped(losses, early) for losses in ([1.0, 1.2, 0.5], [1.0, 0.95], [1.0, 0.95, 0.92])]
    [False, False, True]
    """
    sign = 1 if stop["mode"] == "min" else -1
    best, waited = float("inf"), 0
    for value in values:
        better = sign * value < best - stop["min_delta"]
        best, waited = (sign * value, 0) if better else (best, waited + 1)
    return waited >= int(stop["patience"])
