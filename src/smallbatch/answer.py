"""The answer to "which m and η̃ for mine?": of the runs of one setting a table, a picture and three lines.

Intervals are those of the claims (`claims/statistics.py`, 98 %). The accuracy of an m is that of its best η̃ as one half
of the test images chooses it and the other half sees it, the mean over both ways, so that no image both chooses and
tells.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from smallbatch.claims.best import best, candidates, fixed, highest, near
from smallbatch.claims.cells import LOOKS, PILOT, Array, Cells, cells_of, common_seeds
from smallbatch.claims.statistics import interval
from smallbatch.errors import ConfigError
from smallbatch.figures import draw, panels
from smallbatch.figures.collect import FigureRuns
from smallbatch.files import write_text
from smallbatch.powers import format_power
from smallbatch.store import Record
from smallbatch.table import differences, table
from smallbatch.training.score import score

HALVES = ("test_accuracy_a", "test_accuracy_b")


@dataclass(frozen=True)
class Answer:
    """Of one setting: `frame`, a row a batch size (and BN batch), `curves` of their best cells, and what it comes to.

    Columns of `frame`: m, bn_batch_size, base_lr, may_be_best, accuracy, low, high, loss, loss_low, loss_high (points;
    loss: against the best m), reliable (whether every seed trains at that η̃), seconds (a run), to_target (seconds of
    training until `target`, at the η̃ that is fastest), fastest_lr. Of `curves`: m, bn_batch_size, seconds, accuracy.
    """

    frame: pd.DataFrame
    curves: pd.DataFrame
    lines: list[str]
    target: float
    seeds: tuple[int, ...]
    next_look: int | None


def answer(records: Sequence[Record], margin: float = 1.0) -> Answer | str:
    """What the runs of one setting say, or why they say nothing. `margin`: points that a large m may lose.

    Raises ConfigError if that is below 0.
    """
    if margin < 0:
        raise ConfigError(f"margin={margin:g}: is how much accuracy may be lost, 0 up")
    by_key = {record.run.key: record for record in records}
    figure = FigureRuns("the grid", "", table(records))
    seeds = common_seeds(figure, first=PILOT)
    if not seeds:
        return "the best η̃ of the batch sizes have no seed in common"
    cells = cells_of(figure, seeds)
    if len(cells.m) == 1:
        return "one cell only"
    if not cells.converged.any():
        return "nothing trains at any η̃ tried"
    halves = _halves(cells, by_key)
    target = float(cells.score.mean(axis=1)[cells.converged].max()) - margin
    times = {row: _times(cells, row, by_key, target) for row in range(len(cells.m))}
    rows, curves = [], []
    for m, bn in sorted({(int(m), int(bn)) for m, bn in zip(cells.m, cells.bn, strict=True)}):
        mask = (cells.m == m) & (cells.bn == bn)
        row = highest(cells, mask)
        fastest = min(map(int, np.flatnonzero(mask)), key=lambda row: _soonest(cells, times, row))
        rows.append(
            {
                "m": m,
                "bn_batch_size": bn,
                "base_lr": cells.rate[row],
                "may_be_best": " ".join(format_power(r) for r in cells.rate[near(cells, candidates(cells, mask))]),
                **_accuracy(cells, mask, halves),
                **_loss(cells, mask),
                "reliable": bool(cells.converged[row]),
                "seconds": _seconds(cells, row, by_key),
                "to_target": times[fastest].mean(),
                "fastest_lr": cells.rate[fastest],
            }
        )
        curves.append(_curve(cells, row, by_key).assign(m=m, bn_batch_size=bn))
    frame = pd.DataFrame(rows)
    found = [_best_line(cells, frame), _largest_line(frame, margin), _first_line(cells, times, target)]
    look = None
    if any("undecided" in line for line in found):
        look = next((look for look in LOOKS if look > len(seeds)), None)
        found.append(
            f"to settle: the same with seeds={look}" if look else f"that is all that {len(seeds)} seeds can tell: a tie"
        )
    lines = [*_shown(frame), "", *_notes(cells, frame, halves), *found]
    return Answer(frame, pd.concat(curves, ignore_index=True), lines, target, cells.seeds, look)


def _halves(cells: Cells, records: dict[str, Record]) -> tuple[Array, Array] | None:
    """Scores in points on the two halves of the test images, (cells, seeds) each; None where runs lack them."""
    used = [records[key] for key in cells.key.ravel()]
    if any(half not in row for record in used for row in record.rows[-1:] for half in HALVES):
        return None

    def scores(half: str) -> Array:
        values = [
            cells.chance
            if record.result["status"] == "diverged"
            else 100 * score([row[half] for row in record.rows], len(record.rows), cells.chance / 100)
            for record in used
        ]
        return np.array(values).reshape(cells.key.shape)

    return scores(HALVES[0]), scores(HALVES[1])


def _accuracy(cells: Cells, mask: Array, halves: tuple[Array, Array] | None) -> dict[str, float]:
    """Mean over the seeds of the best cell, each half of the images chosen by the other, and its interval."""
    rows = candidates(cells, mask)
    ways = [(cells.score, cells.score)] if halves is None else [halves, halves[::-1]]
    values = [seen[rows[chooses[rows].mean(axis=1).argmax()]].mean() for chooses, seen in ways]
    value, reach = float(np.mean(values)), np.nan
    if len(cells.seeds) > 1:
        middle, low, _, _ = interval(fixed(cells, highest(cells, mask)))
        reach = middle - low
    return {"accuracy": value, "low": max(value - reach, 0.0), "high": min(value + reach, 100.0)}


def _loss(cells: Cells, mask: Array) -> dict[str, float]:
    """What it loses against the best of all, each at its best η̃."""
    quantity = best(cells, np.ones(len(mask), bool)) - best(cells, mask)
    if len(cells.seeds) > 1:
        effect, low, high, _ = interval(quantity)
    else:
        effect, low, high = sum(term.times * cells.score[term.row].mean() for term in quantity.terms), np.nan, np.nan
    return {"loss": effect, "loss_low": low, "loss_high": high}


def _seconds(cells: Cells, row: int, records: dict[str, Record]) -> float:
    return float(np.mean([records[key].result["seconds"] for key in cells.key[row]]))


def _times(cells: Cells, row: int, records: dict[str, Record], target: float) -> Array:
    """Seconds of training until each seed's test accuracy first reaches the target; infinite where one never does."""
    times = []
    for key in cells.key[row]:
        curve = records[key].rows
        clock = np.cumsum([epoch["train_seconds"] for epoch in curve])
        reached = [i for i, epoch in enumerate(curve) if 100 * epoch["test_accuracy"] >= target]
        times.append(clock[reached[0]] if reached else np.inf)
    return np.array(times)


def _soonest(cells: Cells, times: dict[int, Array], row: int) -> tuple[float, float]:
    """For sorting: the time, ties to the more accurate."""
    return float(times[row].mean()), -float(cells.score[row].mean())


def _curve(cells: Cells, row: int, records: dict[str, Record]) -> pd.DataFrame:
    """Mean over seeds of seconds of training and test accuracy, by epoch."""
    seeds = [records[key].rows for key in cells.key[row]]
    epochs = min(map(len, seeds))
    clock = [np.cumsum([epoch["train_seconds"] for epoch in rows[:epochs]]) for rows in seeds]
    accuracy = [[100 * epoch["test_accuracy"] for epoch in rows[:epochs]] for rows in seeds]
    return pd.DataFrame({"seconds": np.mean(clock, axis=0), "accuracy": np.mean(accuracy, axis=0)})


def _name(m: int, bn: int, several: bool) -> str:
    return f"m = {m}" + (f", BN batch {bn}" if several else "")


def _names(frame: pd.DataFrame) -> list[str]:
    several = bool((frame["m"] != frame["bn_batch_size"]).any())
    return [_name(m, bn, several) for m, bn in zip(frame["m"], frame["bn_batch_size"], strict=True)]


def _shown(frame: pd.DataFrame) -> list[str]:
    """The table as text."""
    text = pd.DataFrame({"": _names(frame)})
    text["best η̃"] = frame["base_lr"].map(format_power)
    text["may be best"] = frame["may_be_best"]
    text["accuracy %"] = frame["accuracy"].map("{:.2f}".format)
    if frame["low"].notna().any():
        text["98 % interval"] = [
            f"{low:.2f} … {high:.2f}" for low, high in zip(frame["low"], frame["high"], strict=True)
        ]
    text["loses"] = frame["loss"].map("{:.2f}".format)
    if frame["loss_low"].notna().any():
        text["between"] = [f"{a:.2f} … {b:.2f}" for a, b in zip(frame["loss_low"], frame["loss_high"], strict=True)]
    text["s a run"] = frame["seconds"].map("{:.1f}".format)
    text["s to target"] = [f"{s:.1f}" if np.isfinite(s) else "never" for s in frame["to_target"]]
    return text.to_string(index=False).splitlines()


def _notes(cells: Cells, frame: pd.DataFrame, halves: tuple[Array, Array] | None) -> list[str]:
    if halves is None:
        return ["η̃ chosen and accuracy seen on the same test images: these runs lack the halves"]
    tops = [cells.score[highest(cells, cells.m == m)].mean() for m in np.unique(cells.m)]
    more = float(np.mean(tops) - np.mean([frame.loc[frame["m"] == m, "accuracy"].max() for m in np.unique(cells.m)]))
    return [f"η̃ chosen on one half of the test images, accuracy seen on the other; on all at once {more:+.2f} points"]


def _best_line(cells: Cells, frame: pd.DataFrame) -> str:
    names = _names(frame)
    top = int(frame["loss"].argmin())
    told = f"{names[top]} at η̃ = {format_power(frame['base_lr'][top])}"
    if len(cells.seeds) < 2:
        return f"best: undecided with one seed; the highest is {told}"
    rivals = [name for name, may in zip(names, frame["reliable"] & (frame["loss_low"] <= 0), strict=True) if may]
    if len(rivals) > 1:
        return f"best: undecided between {_listed(rivals)}; the highest is {told}"
    return f"best: {told}"


def _largest_line(frame: pd.DataFrame, margin: float) -> str:
    names, points = _names(frame), f"{margin:g} point{'' if margin == 1 else 's'}"
    sure = frame["loss_high"] <= margin
    least = frame["loss_low"].fillna(frame["loss"])
    last = int(np.flatnonzero(frame["reliable"] & (least <= margin))[-1])
    if sure[last]:
        return f"largest m that loses at most {points}: {names[last]} (loses {frame['loss'][last]:.2f})"
    does = f"{names[int(np.flatnonzero(sure)[-1])]} does; " if sure.any() else ""
    return f"largest m that loses at most {points}: undecided; {does}{names[last]} loses {frame['loss'][last]:.2f}" + (
        f" ({frame['loss_low'][last]:.2f} … {frame['loss_high'][last]:.2f})"
        if np.isfinite(frame["loss_low"][last])
        else ""
    )


def _first_line(cells: Cells, times: dict[int, Array], target: float) -> str:
    start = f"first to {target:.2f} %:"
    ranked = sorted(
        (row for row in times if np.isfinite(times[row]).all()), key=lambda row: _soonest(cells, times, row)
    )
    if not ranked:
        return f"{start} no m with every seed"
    first = ranked[0]
    told = f"{_cell(cells, first)} in {times[first].mean():.1f} s"
    others = [row for row in ranked if cells.m[row] != cells.m[first]]
    if len(cells.seeds) > 1 and (not others or times[first].max() < times[others[0]].min()):
        return f"{start} {told}" + (
            f", then {_cell(cells, others[0])} in {times[others[0]].mean():.1f} s" if others else ""
        )
    if not others:
        return f"{start} {told}"
    return f"{start} undecided between {told} and {_cell(cells, others[0])} in {times[others[0]].mean():.1f} s"


def _cell(cells: Cells, row: int) -> str:
    name = _name(int(cells.m[row]), int(cells.bn[row]), bool((cells.m != cells.bn).any()))
    return f"{name} at η̃ = {format_power(float(cells.rate[row]))}"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def tell_all(records: Iterable[Record], folder: Path, margin: float) -> list[str]:
    """Each setting's answer as lines, and its table (CSV) and pictures in a folder."""
    settings = by_setting(list(records))
    whole = table(record for some in settings for record in some)
    lines: list[str] = []
    for some in settings:
        frame = table(some)
        first = frame.iloc[0]
        if len(settings) > 1:
            lines += ["", _what_differs(whole, first)]
        name = f"{first['model']}-{first['data']}-{first['setting']}"
        if not frame.duplicated(["batch_size", "base_lr", "seed"]).any():
            note = f"{panels.describe(frame)}."
            lines.append(f"picture: {panels.save(draw.sweep(frame, 'Sweep', note), folder / f'grid-{name}')[0]}")
        lines += tell(some, folder / f"answer-{name}", margin)[0]
    return lines


def tell(records: Sequence[Record], stem: Path, margin: float) -> tuple[list[str], list[Path]]:
    """The answer of one setting as lines, and the paths of its picture (PNG, SVG) and table (CSV), which it writes."""
    found = answer(records, margin)
    if isinstance(found, str):
        return [f"no answer: {found}"], []
    frame = table(record for record in records if record.run.seed in found.seeds)
    what = "Which m and η̃"
    picture = draw.answer(found.frame, found.curves, found.target, what, f"{panels.describe(frame)}.")
    paths = [*panels.save(picture, stem), stem.with_name(f"{stem.name}.csv")]
    write_text(paths[-1], found.frame.to_csv(index=False))
    return [*found.lines, f"table and picture: {paths[-1]}, {paths[0].name}"], paths


def by_setting(records: list[Record]) -> list[list[Record]]:
    """The records of each setting."""
    by_key = {record.run.key: record for record in records}
    return [[by_key[key] for key in some["key"]] for _, some in table(records).groupby("setting", sort=False)]


def _what_differs(frame: pd.DataFrame, row: pd.Series) -> str:
    """What tells a run's setting from the others in a table: `optimizer=momentum`."""
    names = [word.partition("=")[0] for word in differences(frame).split()]
    return " ".join(f"{name}={row[name]}" for name in names if name in frame)
