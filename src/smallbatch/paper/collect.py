"""The runs of a figure: what its config names, and what of that the store has, over all seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from smallbatch.config import Draw, Figure, Run
from smallbatch.grid import Compose, expand, figure_config
from smallbatch.lookup import Ended, best_rates
from smallbatch.store import Record
from smallbatch.table import table


@dataclass(frozen=True)
class FigureRuns:
    """The runs of one figure at one scale, over all seeds that are there.

    `frame`: rows of `smallbatch.table.table`; `missing`: points without a run; `stand_in`: what stands in for what, or
    ""; `of`: the figures that a summary shows; `curves`, for figures of curves only: a row an epoch, with key,
    batch_size, seed and the columns of epochs.csv.
    """

    name: str
    scale: str
    frame: pd.DataFrame
    missing: Sequence[Run] = ()
    title: str = ""
    draw: str = "sweep"
    stand_in: str = ""
    of: Sequence[str] = ()
    curves: pd.DataFrame | None = None


def collect(name: str, scale: str, words: list[str], compose: Compose, ended: Ended) -> FigureRuns:
    """A figure's runs at a scale, `words` changing its config; a summary has none of its own.

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
    return FigureRuns(
        name,
        scale,
        frame=table(records),
        missing=missing,
        title=title(figure),
        draw=figure.draw.name,
        stand_in=stand_in,
        of=figure.of,
        curves=_curves(records) if figure.draw is Draw.convergence else None,
    )


def _curves(records: list[Record]) -> pd.DataFrame:
    who = [({"key": r.run.key, "batch_size": r.run.batch_size, "seed": r.run.seed}, r.rows) for r in records]
    return pd.DataFrame([run | row for run, rows in who for row in rows])


def title(figure: Figure) -> str:
    """`Figure 8: …`, or the title alone where the paper has no number for it."""
    number = figure.name.removeprefix("fig").lstrip("0")
    return f"Figure {number}: {figure.title}" if figure.name.startswith("fig") else figure.title
