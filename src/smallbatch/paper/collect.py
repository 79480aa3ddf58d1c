"""The runs of a figure: what its config names, and what of that the store has, over all seeds."""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from smallbatch.config import Figure, Run
from smallbatch.grid import Compose, expand, figure_config
from smallbatch.lookup import Ended, best_rates
from smallbatch.store import Record
from smallbatch.table import table


@dataclass(frozen=True)
class FigureRuns:
    """The runs of one figure at one scale; `missing`: points without one; `stand_in`: what they do not show, or ""."""

    name: str
    scale: str
    title: str
    draw: str
    stand_in: str
    of: list[str]
    records: list[Record]
    missing: list[Run]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row a run, see `smallbatch.table`."""
        return table(self.records)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row an epoch: key, batch_size, seed and the columns of epochs.csv."""
        rows = [
            {"key": r.run.key, "batch_size": r.run.batch_size, "seed": r.run.seed, **row}
            for r in self.records
            for row in r.rows
        ]
        return pd.DataFrame(rows)


def collect(name: str, scale: str, words: list[str], compose: Compose, ended: Ended) -> FigureRuns:
    """A figure's runs at a scale, `words` changing its config; of a summary without figures of its own, none.

    Raises ConfigError, also where the best η̃ that the figure needs are not known yet.
    """
    figure = figure_config(name, compose)
    records: list[Record] = []
    missing: list[Run] = []
    if figure.scales:
        rates = best_rates(ended, compose, ended.describe)
        grid = expand([f"figure={name}", f"scale={scale}", *words], compose, ended.describe, rates)
        records, missing = ended.of(grid.points, not any(word.startswith("seed=") for word in words))
    stand_in = f"stand-in, not ImageNet: {figure.stand_in[scale]}" if scale in figure.stand_in else ""
    return FigureRuns(name, scale, title(figure), figure.draw.name, stand_in, figure.of, records, missing)


def title(figure: Figure) -> str:
    """`Figure 8: …`, or the title alone where the paper has no number for it."""
    number = figure.name.removeprefix("fig").lstrip("0")
    return f"Figure {number}: {figure.title}" if figure.name.startswith("fig") else figure.title
