"""The score of a run."""

from collections.abc import Sequence
from statistics import median


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
