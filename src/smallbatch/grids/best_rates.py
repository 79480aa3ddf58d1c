"""The best η̃ of each batch size among the runs that are there (paper, figs 13, 14)."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from smallbatch.ended import Ended
from smallbatch.errors import NotYet
from smallbatch.grids.expand import Describe, Grid, Rates, expand
from smallbatch.store import Record


def best_rates(ended: Ended, describe: Describe) -> Rates:
    """What `base_lr: best` stands for (paper, figs 13, 14).

    The η̃ of the highest mean score over all seeds, ties to the smaller. Raises NotYet, saying what to train, if a
    point of the sweep has no run, and a search has not ended either.
    """

    def rates(words: list[str], sizes: list[int]) -> dict[int, float]:
        asked = [*words, f"batch_size={','.join(map(str, sizes))}"]
        grid = expand(asked, describe)
        found, missing = ended.of((point.run for point in grid.points), any_seed=True)
        if missing:
            seeds = ",".join(map(str, _seeds(grid, ended)))
            search = expand(
                [*asked, "base_lr=search", *([f"seed={seeds}"] if seeds else [])], describe, None, ended.look
            )
            if search.open:
                raise NotYet(
                    f"the best η̃ of {words[0]} is not known yet: {len(missing)} of {len(grid.points)} runs are "
                    f"missing; first train: python src/train.py -m {' '.join(asked)} base_lr=search (or give base_lr=…)"
                )
            found = ended.of_kinds([point.run for point in search.kinds], any_seed=True)
        return {m: best_rate([r for r in found if r.run.batch_size == m]) for m in sizes}

    return rates


def _seeds(grid: Grid, ended: Ended) -> list[int]:
    """The seeds that each of the grid's batch sizes has a run of, at whatever η̃."""
    by_size: dict[int, set[int]] = {point.run.batch_size: set() for point in grid.points}
    for record in ended.of_kinds([point.run for point in grid.points], any_seed=True):
        by_size[record.run.batch_size].add(record.run.seed)
    return sorted(set.intersection(*by_size.values()))


def best_rate(records: Iterable[Record]) -> float:
    """The η̃ of the highest mean score, ties to the smaller."""
    scores: dict[float, list[float]] = defaultdict(list)
    for record in records:
        scores[record.run.base_lr].append(record.result["score"])
    return max(sorted(scores), key=lambda rate: fmean(scores[rate]))
