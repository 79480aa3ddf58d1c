"""The score of a run."""

from collections.abc import Sequence
from statistics import median


def score(test_accuracy: Sequence[float], epochs: int, chance: float) -> float:
    """Median test accuracy of the last min(5, max(1, epochs // 4)) epochs (paper, section 5; 5 when long).

    An epoch that a diverged run never reached counts as chance.
    """
    last = min(5, max(1, epochs // 4))
    padded = [*test_accuracy, *[chance] * (epochs - len(test_accuracy))]
    return float(median(padded[epochs - last :]))
