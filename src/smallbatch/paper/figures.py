"""The paper's two-panel sweep figure from a table of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from smallbatch.config import format_power
from smallbatch.files import replacing

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "smallbatch",  # the same runs give the same file
}


def sweep(frame: pd.DataFrame, title: str, note: str, points: int | None = None) -> Figure:
    """Test accuracy against m, a curve per η̃, and against η̃, a curve per m; log2 axes.

    A point is the mean score over seeds, with a bar of one standard deviation where there are several.
    A point with a diverged run is a cross in the band below chance. `points`: how many runs the figure should have.
    """
    cells = _cells(frame)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        lanes = Lanes(100 * float(frame["chance"].iloc[0]), max(100 * float(frame["score"].max()), 20.0))
        any_lost = bool(cells["diverged"].any())
        for axes, x, curve, colours in (
            (left, "batch_size", "base_lr", "plasma"),
            (right, "base_lr", "batch_size", "viridis"),
        ):
            _panel(axes, cells, x, curve, colours, lanes)
            _finish(axes, lanes, any_lost)
        left.set(xlabel="batch size m", ylabel="test accuracy (%)", title="against batch size")
        right.set(xlabel="base learning rate η̃ = η / m", title="against base learning rate")
        right.tick_params(labelleft=False)
        if any_lost:
            note += "\nCrosses in the band below chance (dotted): diverged, scored at chance."
        if points and len(frame) < points:
            note = f"INCOMPLETE: {len(frame)} of {points} runs. {note}"
        figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
        figure.supxlabel(note, fontsize=8, color="0.35", x=0.01, ha="left")
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write PNG (200 dpi) and SVG, each in one step; returns their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        for suffix, options in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}})):
            path = stem.with_name(f"{stem.name}.{suffix}")
            with replacing(path) as temporary:
                figure.savefig(temporary, format=suffix, **options)
            paths.append(path)
    return paths


def describe(frame: pd.DataFrame) -> str:
    """What a caption must say of the runs: data and its size, epochs, norm, seeds."""
    first = frame.iloc[0]
    parts = [
        f"{first['model']}, {first['data']}: {first['train_images']:,} training, {first['test_images']:,} test images",
        f"{first['epochs']} epochs",
    ]
    if first["norm"] != "none":
        parts.append(f"{first['norm']} norm")
    if first["data.augment"]:
        parts.append("augmented")
    seeds = frame["seed"].nunique()
    return ", ".join([*parts, f"{seeds} seed{'s' if seeds > 1 else ''}"])


def _cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of the score, in percent, and whether a run diverged, per (m, η̃)."""
    frame = frame.assign(percent=100 * frame["score"], diverged=frame["status"] == "diverged")
    grouped = frame.groupby(["batch_size", "base_lr"])
    cells = grouped["percent"].agg(["mean", "std", "count"])
    return cells.assign(diverged=grouped["diverged"].any()).reset_index()


def _panel(axes: Axes, cells: pd.DataFrame, x: str, curve: str, colours: str, lanes: "Lanes") -> None:
    values = sorted(cells[curve].unique())
    palette = mpl.colormaps[colours](np.linspace(0.0, 0.88, len(values)))
    for place, (value, colour) in enumerate(zip(values, palette, strict=True)):
        line = cells[cells[curve] == value].sort_values(x)
        lost = line["diverged"]
        height = line["mean"].where(~lost, lanes.height(place, len(values)))
        axes.plot(line[x], height, color=colour, lw=0.8, alpha=0.45)
        axes.errorbar(
            line[x],
            line["mean"].where(~lost),
            line["std"].where(line["count"] > 1),
            **{"color": colour, "lw": 1.4, "marker": "o", "ms": 3.5, "capsize": 2, "label": power_text(value)},
        )
        axes.plot(line[x][lost], height[lost], "x", color=colour, ms=4, mew=1.2)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_ticks(sorted(cells[x].unique()))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_text(value)))
    handles, labels = axes.get_legend_handles_labels()
    heading = "η̃" if curve == "base_lr" else "m"
    lines = [handle.lines[0] for handle in handles[::-1]]  # type: ignore[attr-defined]  # without the bars
    axes.legend(lines, labels[::-1], title=heading, loc="center left", bbox_to_anchor=(1.0, 0.5))


@dataclass(frozen=True)
class Lanes:
    """The band below chance where diverged points stand, a lane a curve, so that none hides another."""

    chance: float
    top: float

    @property
    def bottom(self) -> float:
        return self.chance - 0.16 * self.top

    def height(self, place: int, count: int) -> float:
        """Height of curve number `place` of `count`."""
        return self.chance - 0.16 * self.top * (place + 1) / (count + 1)


def _finish(axes: Axes, lanes: Lanes, any_lost: bool) -> None:
    """The line of chance, the band of the diverged, and an accuracy axis that shows both ends."""
    axes.axhline(lanes.chance, color="0.55", lw=0.8, ls=":", zorder=0)
    if any_lost:
        axes.axhspan(lanes.bottom, lanes.chance, color="0.96", zorder=-1)
    axes.set_ylim(lanes.bottom if any_lost else max(0, lanes.chance - 5), min(101, lanes.top * 1.04))
    step = 10 if lanes.top > 40 else 5
    axes.yaxis.set_major_locator(FixedLocator([y for y in range(0, 101, step) if y >= lanes.chance]))


def _ticks(values: Sequence[float]) -> list[float]:
    """Every value, or every second one where that would be crowded."""
    return list(values if len(values) <= 13 else values[::2])


def power_text(value: float) -> str:
    """A value as an axis or legend writes it: 512, 2⁻⁹ (as math text) or a decimal."""
    if value >= 1 and float(value).is_integer():
        return f"{int(value)}"
    text = format_power(value)
    return f"$2^{{{text[2:]}}}$" if text.startswith("2^") else text
