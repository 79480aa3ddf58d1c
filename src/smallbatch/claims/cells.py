"""From runs to cells: the points (m, η̃, BN batch) of a figure, each with one run a seed, and which train reliably."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from smallbatch.figures.collect import FigureRuns
from smallbatch.table import least_reliable

Array = np.ndarray[Any, np.dtype[Any]]
CELL = ["base_lr", "batch_size", "bn_batch_size"]


class Untried(NamedTuple):
    """A cell that a figure lacks, where the answer may lie."""

    figure: str
    m: int
    rate: float


@dataclass(frozen=True)
class Edge:
    """Where a grid ends before the answer: the reason in words, and the cells to try next."""

    text: str
    beyond: tuple[Untried, ...] = ()


class Undecided(Exception):
    """A test has nothing to compare: seeds are too few (`need` of them), or the grid ends too early."""

    def __init__(self, text: str, need: int = 0, beyond: Iterable[Untried] = ()) -> None:
        super().__init__(text)
        self.need, self.beyond = need, tuple(beyond)


@dataclass(frozen=True, eq=False)
class Cells:
    """One figure's cells in order of η̃, m, BN batch: arrays of shape (cells,), or (cells, seeds) for what a run has.

    `score`, `train` and `chance` in points; `updates`: what a run that does not diverge makes; `reliable`: at the share
    asked for; `converged`: at ½; `curves`: training accuracy in points of each run (row, by key) and epoch (column).
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
    scale: str = "paper"
    curves: pd.DataFrame | None = None

    @property
    def sizes(self) -> list[int]:
        """Batch sizes in the grid, ascending."""
        return [int(m) for m in np.unique(self.m)]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all runs."""
        return tuple(sorted(str(key) for key in self.key.flat))

    def within(self, low: int, high: int | None = None) -> list[int]:
        """Batch sizes from `low` to `high`."""
        return [m for m in self.sizes if m >= low and (high is None or m <= high)]

    def at(self, sizes: Iterable[int]) -> Array:
        """Mask of the cells with these batch sizes."""
        return np.isin(self.m, list(sizes))

    def row(self, m: int, rate: float) -> int | None:
        """Where the cell of m and η̃ is, None if it was not tried."""
        rows = np.flatnonzero((self.m == m) & (self.rate == rate))
        return int(rows[0]) if rows.size else None

    def rows(self, sizes: Iterable[int], rates: Iterable[float]) -> Array | None:
        """Rows (seeds,) of the cells with each seed's m and η̃; None if one was not tried."""
        rows = [self.row(int(m), float(rate)) for m, rate in zip(sizes, rates, strict=True)]
        return None if None in rows else np.array(rows)

    def untried(self, sizes: Iterable[int], rates: Iterable[float]) -> tuple[Untried, ...]:
        """Of these m, each with all these η̃, the cells that were not tried."""
        rates = sorted({float(rate) for rate in rates})
        return tuple(Untried(self.name, m, rate) for m in sizes for rate in rates if self.row(m, rate) is None)

    def octave(self, m: int, factor: float) -> tuple[Untried, ...]:
        """The cell beyond the η̃ tried at m, an octave below (`factor` ½) or above (2); none where η̃ is given."""
        tried = self.rate[self.m == m]
        return () if self.rates_given else self.untried([m], [factor * (tried.max() if factor > 1 else tried.min())])

    def octaves(self, *sizes: int) -> tuple[Untried, ...]:
        """Those below and above, of each m."""
        return tuple(cell for m in sizes for factor in (0.5, 2) for cell in self.octave(m, factor))


def read(*figures: FigureRuns, seeds: int = 2, share: float = 0.5) -> list[Cells]:
    """The figures' cells, over the seeds that every cell of them has. All runs of the figures' grids must be there.

    Raises Undecided where these seeds are fewer than `seeds`, or where nothing trains: then the η̃ tried were wrong.
    """
    common = common_seeds(*figures)
    if len(common) < seeds:
        where = " and ".join(figure.name for figure in figures)
        raise Undecided(f"{count(len(common), 'seed')} in all cells of {where}; at least {seeds} needed", seeds)
    found = [_cells(figure, common, share) for figure in figures]
    for cells in found:
        if not cells.converged.any():
            raise Undecided(f"{cells.name} trains at no m and η̃ tried", beyond=cells.octaves(*cells.sizes))
    return found


def common_seeds(*figures: FigureRuns) -> list[int]:
    """The seeds that every cell of all figures has."""
    return sorted(set.intersection(*(_complete_seeds(figure.frame) for figure in figures)))


def count(number: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _complete_seeds(frame: pd.DataFrame) -> set[int]:
    cells = len(frame[CELL].drop_duplicates())
    rows = frame["seed"].value_counts()
    return {int(seed) for seed in rows.index[rows == cells]}


def _cells(figure: FigureRuns, seeds: Sequence[int], share: float) -> Cells:
    frame = figure.frame
    rows = frame[frame["seed"].isin(seeds)].sort_values([*CELL, "seed"])
    first = rows.iloc[:: len(seeds)]
    chance, test_images = 100 * float(rows["chance"].iloc[0]), int(rows["test_images"].iloc[0])
    lost = (rows["status"] == "diverged") | rows["train_accuracy"].isna()
    trained = (100 * rows["train_accuracy"]).mask(lost, chance)  # as the score does
    score, train, key = (v.to_numpy().reshape(-1, len(seeds)) for v in (100 * rows["score"], trained, rows["key"]))
    return Cells(
        name=figure.name,
        seeds=tuple(seeds),
        m=first["batch_size"].to_numpy(),
        rate=first["base_lr"].to_numpy(),
        bn=first["bn_batch_size"].to_numpy(),
        updates=(first["epochs"] * (first["train_images"] // first["batch_size"])).to_numpy(),
        score=score,
        train=train,
        key=key,
        chance=chance,
        test_images=test_images,
        converged=reliable(score, chance, test_images, 0.5),
        reliable=reliable(score, chance, test_images, share),
        rates_given=figure.draw == "bn_batch",
        scale=figure.scale,
        curves=None if figure.curves is None else _curves(figure.curves, int(frame["epochs"].max()), chance),
    )


def _curves(rows: pd.DataFrame, epochs: int, chance: float) -> pd.DataFrame:
    """An epoch that a diverged run never reached counts as chance."""
    wide = rows.pivot(index="key", columns="epoch", values="train_accuracy").reindex(columns=range(1, epochs + 1))
    return (100 * wide).fillna(chance)


def reliable(score: Array, chance: float, test_images: int, share: float) -> Array:
    """Which cells (cells,) every seed of `score` (cells, seeds) trains; none where the best run is at chance."""
    return np.asarray((score >= least_reliable(float(score.max()), chance, test_images, share)).all(axis=1))
