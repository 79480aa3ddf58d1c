"""The best η̃ of each batch size among the runs that are there (paper, figs 13, 14)."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from smallbatch.errors import NotYet
from smallbatch.grids.expand import Describe, Rates, expand
from smallbatch.store import Ended, Record


def best_rates(ended: Ended, describe: Describe) -> Rates:
    """What `base_lr: best` stands for (paper, figs 13, 14).

    The η̃ of the highest mean score over all seeds, ties to the smaller. Raises ConfigError, saying what to train,
    if a point of the sweep has no run.
    """

    def rates(words: list[str], sizes: list[int]) -> dict[int, float]:
        asked = [*words, f"batch_size={','.join(map(str, sizes))}"]
        grid = expand(asked, describe)
        found, missing = ended.of((point.run for point in grid.points), any_seed=True)
        if missing:
            raise NotYet(
                f"the best η̃ of {words[0]} is not known yet: {len(missing)} of {len(grid.points)} runs are missing; "
                f"first train: python src/train.py -m {' '.join(asked)} (or give base_lr=…)"
            )
        return {m: best_rate([r for r in found if r.run.batch_size == m]) for m in sizes}

    return rates


def best_rate(records: Iterable[Record]) -> float:
    """The η̃ of the highest mean score, ties to the smaller."""
    scores: dict[float, list[float]] = defaultdict(list)
    for record in records:
        scores[record.run.base_lr].append(record.result["score"])
    return max(sorted(scores), key=lambda rate: fmean(scores[rate]))
