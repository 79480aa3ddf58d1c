"""The runs of a figure: what its config names, and what of that the store has, over all seeds."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from smallbatch import store
from smallbatch.compose import CONF, parse_settings, parse_words
from smallbatch.config import Draw, Figure
from smallbatch.ended import Ended
from smallbatch.errors import ConfigError
from smallbatch.grids.best_rates import best_rates
from smallbatch.grids.expand import expand, figure_config, figure_names
from smallbatch.run import Run
from smallbatch.store import Record
from smallbatch.table import keep, select, table


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


@dataclass(frozen=True)
class Asked:
    """What a command's words ask for: figures, scales, and `rest`, which changes the figures' runs."""

    figures: list[str]
    scales: list[str]
    rest: list[str]
    by_name: bool

    @classmethod
    def of(cls, words: list[str]) -> "Asked":
        """All figures and all scales where the words name none. Raises ConfigError."""
        given, _ = parse_words(words)
        scales = given.get("scale") or sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))
        rest = [word for word in words if not word.startswith(("figure=", "scale="))]
        return cls(figure_names(given.get("figure", ["all"])), scales, rest, "figure" in given)

    @property
    def changes(self) -> list[str]:
        """The words that make other runs of a figure's."""
        return [word for word in self.rest if not word.startswith("data.root=")]


def names_figures(words: list[str]) -> bool:
    """Whether words are of figures; else they are settings that runs have."""
    return any(word.startswith(("figure=", "scale=")) for word in words)


def chosen(folders: Path, words: list[str], where: str | None, statuses: Container[str] = store.ENDED) -> list[Record]:
    """The sound ended runs that words and `where` describe: of the figures named, or with these settings.

    Raises ConfigError, also if there is none.
    """
    records = keep(store.ended(folders, statuses), where)
    keys = _keys(words, records) if records else []
    if not keys:
        raise ConfigError(f"no ended runs in {folders} that match")
    return [records[key] for key in keys]


def _keys(words: list[str], records: dict[str, Record]) -> Iterable[str]:
    if not names_figures(words):
        return select(table(records.values()), parse_settings(words))["key"].tolist()
    asked, ended = Asked.of(words), Ended(records)
    keys: dict[str, None] = {}
    for gathered, problems in (gather(asked, scale, ended) for scale in asked.scales):
        if problems and len(asked.scales) == 1:
            raise problems[0]
        keys |= dict.fromkeys(key for runs in gathered.values() if len(runs.frame) for key in runs.frame["key"])
    return keys


def gather(asked: Asked, scale: str, ended: Ended) -> tuple[dict[str, FigureRuns], list[ConfigError]]:
    """The figures asked for, and those that they summarise, at one scale; and why some cannot be told."""
    gathered: dict[str, FigureRuns] = {}
    problems: list[ConfigError] = []
    parts = [part for name in asked.figures for part in figure_config(name).of]
    for name in dict.fromkeys([*asked.figures, *parts]):
        try:
            gathered[name] = collect(name, scale, asked.rest, ended)
        except ConfigError as problem:
            problems.append(problem)
    return gathered, problems


def collect(name: str, scale: str, words: list[str], ended: Ended) -> FigureRuns:
    """A figure's runs at a scale, `words` changing its config; a summary has none of its own.

    Raises ConfigError, also where the best η̃ that the figure needs are not known yet.
    """
    figure = figure_config(name)
    records: list[Record] = []
    missing: list[Run] = []
    if figure.scales:
        rates = best_rates(ended, ended.describe)
        grid = expand([f"figure={name}", f"scale={scale}", *words], ended.describe, rates, ended.look)
        any_seed = not any(word.startswith(("seed=", "seeds=")) for word in words)
        records, missing = ended.of((point.run for point in grid.points), any_seed)
        # A sweep has all η̃ that are there of its batch sizes; what is missing is what its grid or search lacks.
        chosen = figure.draw is not Draw.sweep or any(word.startswith("base_lr=") for word in words)
        more = ended.of_kinds([point.run for point in grid.kinds or ([] if chosen else grid.points)], any_seed)
        records = list({record.run.key: record for record in [*records, *more]}.values())
    own = any(word.startswith(("model=", "data=")) for word in words)  # and so no stand-in for the paper's
    stand_in = f"stand-in, {figure.stand_in[scale]}" if scale in figure.stand_in and not own else ""
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
