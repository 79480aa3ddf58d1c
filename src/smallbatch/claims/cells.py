"""The cells of a figure, (m, η̃, BN batch) with one run a seed, and which of them train reliably."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from smallbatch.figures.collect import FigureRuns
from smallbatch.table import least_reliable

Array = np.ndarray[Any, np.dtype[Any]]
CELL = ["base_lr", "batch_size", "bn_batch_size"]


class Undecided(Exception):
    """Runs or seeds do not suffice for any part of a test. Its text says which."""


@dataclass(frozen=True, eq=False)
class Cells:
    """One figure's cells in order of η̃, m, BN batch: arrays of shape (cells,), or (cells, seeds) for what a run has.

    `score`, `train` and `chance` in points; `updates`: what a run that does not diverge makes; `reliable`: at the share
    asked for.
    """

    name: str
    seeds: tuple[int, ...]
    m: Array
    rate: Array
    bn: Array
    updates: Array
    score: Array
    train: Array
    key: Array
    chance: float
    test_images: int
    converged: Array
    reliable: Array
    rates_given: bool = False  # figures 13, 14: one η̃ for each m, chosen elsewhere

    @property
    def sizes(self) -> list[int]:
        """Batch sizes in the grid, ascending."""
        return [int(m) for m in np.unique(self.m)]

    def within(self, low: int, high: int | None = None) -> list[int]:
        """Those of them from `low` to `high`."""
        return [m for m in self.sizes if m >= low and (high is None or m <= high)]

    def at(self, sizes: Iterable[int]) -> Array:
        """Mask of the cells with these batch sizes."""
        return np.isin(self.m, list(sizes))

    def row(self, m: int, rate: float) -> int | None:
        """Where the cell of m and η̃ is, None if it was not tried."""
        rows = np.flatnonzero((self.m == m) & (self.rate == rate))
        return int(rows[0]) if rows.size else None


@dataclass(frozen=True)
class Evidence:
    """All figures at one scale, and the share at which reliability is judged."""

    runs: dict[str, FigureRuns]
    share: float = 0.5

    def figure(self, name: str) -> FigureRuns:
        """A figure with all its cells. Raises Undecided."""
        runs = self.runs.get(name)
        if runs is None or runs.frame.empty:
            raise Undecided(f"{name} has no runs")
        if runs.missing:
            raise Undecided(f"{name} lacks the runs of {count(len(runs.missing), 'cell')}")
        return runs

    def cells(self, *names: str, seeds: int = 2) -> list[Cells]:
        """The figures' cells, over the seeds common to all.

        Raises Undecided, also where seeds are too few, or where nothing trains: then the η̃ tried were wrong.
        """
        figures = [self.figure(name) for name in names]
        common = set.intersection(*(_complete_seeds(figure.frame) for figure in figures))
        check_seeds(len(common), seeds, " and ".join(names))
        found = [_cells(figure, sorted(common), self.share) for figure in figures]
        for cells in found:
            if not cells.converged.any():
                raise Undecided(f"{cells.name} trains at no m and η̃ tried")
        return found


def check_seeds(have: int, need: int, where: str) -> None:
    """Raise Undecided where seeds are too few."""
    if have < need:
        raise Undecided(f"{count(have, 'seed')} in all cells of {where}; at least {need} needed, e.g. seed=0,1,2")


def count(number: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _complete_seeds(frame: pd.DataFrame) -> set[int]:
    cells = len(frame[CELL].drop_duplicates())
    rows = frame["seed"].value_counts()
    return {int(seed) for seed in rows.index[rows == cells]}


def _cells(figure: FigureRuns, seeds: list[int], share: float) -> Cells:
    frame = figure.frame
    rows = frame[frame["seed"].isin(seeds)].sort_values([*CELL, "seed"])
    first = rows.iloc[:: len(seeds)]
    chance, test_images = 100 * float(rows["chance"].iloc[0]), int(rows["test_images"].iloc[0])
    lost = (rows["status"] == "diverged") | rows["train_accuracy"].isna()
    columns = {
        "score": 100 * rows["score"],
        "train": (100 * rows["train_accuracy"]).mask(lost, chance),  # as the score does
        "key": rows["key"],
    }
    runs = {column: values.to_numpy().reshape(-1, len(seeds)) for column, values in columns.items()}
    return Cells(
        name=figure.name,
        seeds=tuple(seeds),
        m=first["batch_size"].to_numpy(),
        rate=first["base_lr"].to_numpy(),
        bn=first["bn_batch_size"].to_numpy(),
        updates=(first["epochs"] * (first["train_images"] // first["batch_size"])).to_numpy(),
        chance=chance,
        test_images=test_images,
        converged=reliable(runs["score"], chance, test_images, 0.5),
        reliable=reliable(runs["score"], chance, test_images, share),
        rates_given=figure.draw == "bn_batch",
        **runs,
    )


def reliable(score: Array, chance: float, test_images: int, share: float) -> Array:
    """Which cells (cells,) every seed of `score` (cells, seeds) trains; none where the best run is at chance."""
    return np.asarray((score >= least_reliable(float(score.max()), chance, test_images, share)).all(axis=1))
