"""What the pictures share: look, axes, the panel of curves, captions, files."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from smallbatch.files import replacing
from smallbatch.powers import format_power

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

LIGHTEST = 0.3  # luminance of a curve; white, 1, is three times as light as WCAG 2 counts it, (1 + .05) / (.3 + .05)
TILE = 4.6  # inches: the widest panel of the page, whose text is still read when it fills a phone
CROWDED = 9  # ticks of a tile
DENSITY = 2  # pixels of a tile to one of the page


def styled() -> Any:
    """The look of all pictures, as a context."""
    return mpl.rc_context(STYLE)  # type: ignore[arg-type]


def colours(name: str, count: int) -> np.ndarray:
    """So many colours of a map, its palest end left out, and those darkened that would be faint on white."""
    found = np.asarray(mpl.colormaps[name](np.linspace(0.0, 0.88, count)))
    luminance = found[:, :3] ** 2.2 @ [0.2126, 0.7152, 0.0722]
    found[:, :3] *= np.minimum(1.0, LIGHTEST / luminance[:, None]) ** (1 / 2.2)
    return found


def chance_note(cells: pd.DataFrame) -> str:
    """What the dotted line and the crosses are."""
    if not cells["diverged"].any():
        return "\nDotted: chance."
    what = "diverged, scored" if cells["count"].max() == 1 else "a run of the point diverged, and is scored"
    return f"\nCrosses in the band below chance (dotted): {what} at chance."


def caption(figure: Figure, title: str, note: str) -> None:
    """The title above and the note below."""
    width = figure.get_figwidth()
    figure.suptitle(fill(title, int(10 * width)), fontsize=11, weight="bold", x=0.01, ha="left")
    lines = [fill(line, int(16 * width)) for line in note.splitlines()]
    figure.supxlabel("\n".join(lines), fontsize=8, color="0.35", x=0.01, ha="left")


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write PNG (200 dpi) and SVG, each in one step; returns their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    with styled():
        for suffix, options in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}})):
            path = stem.with_name(f"{stem.name}.{suffix}")
            with replacing(path) as temporary:
                figure.savefig(temporary, format=suffix, **options)
            figure.set_layout_engine("none")  # laid out by the first, for both
            paths.append(path)
    return paths


@dataclass(frozen=True)
class Tile:
    """One panel alone: a WebP picture, its width on the page in pixels, and its heading."""

    webp: bytes
    width: int
    title: str


def tiles(figure: Figure) -> list[Tile]:
    """The panels of a saved figure, each alone with its own axes and legend, so that a page can stack them."""
    with styled():
        figure.set_layout_engine("constrained")
        _narrow(figure)
        shown = [axes for axes in figure.axes if axes.get_visible()]
        for axes in shown:
            axes.tick_params(labelleft=True, labelbottom=True)
            axes.set_ylabel(axes.get_ylabel() or figure.get_supylabel() or shown[0].get_ylabel())
            if len(axes.get_xticks()) > CROWDED:
                axes.xaxis.set_major_locator(FixedLocator(axes.get_xticks()[::2].tolist()))
        for remove in (figure.suptitle, figure.supxlabel, figure.supylabel):
            remove("")
        figure.set_dpi(100 * DENSITY)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # lays out
        return [_tile(axes, figure, canvas) for axes in shown]


def _narrow(figure: Figure) -> None:
    """No panel wider than a tile; a legend of long lines goes below."""
    width, height = figure.get_size_inches()
    columns = figure.axes[0].get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
    for legend in legends:
        texts = [text.get_text() for text in legend.get_texts()]
        if legend.get_bbox_to_anchor().x0 >= legend.axes.bbox.x1 and max(map(len, texts)) > 20:
            legend.set_loc("upper left")
            legend.set_bbox_to_anchor((0.0, -0.15), legend.axes.transAxes)
            height += 0.17 * len(texts)
    figure.set_size_inches(columns * min(width / columns, TILE), height)


def _tile(axes: Axes, figure: Figure, canvas: FigureCanvasAgg) -> Tile:
    renderer = canvas.get_renderer()
    figure.patch.draw(renderer)
    axes.draw(renderer)  # alone: a neighbour's title may reach into its box
    pixels = np.asarray(canvas.buffer_rgba())
    box = axes.get_tightbbox(renderer).padded(3 * DENSITY)  # type: ignore[union-attr]
    height, width = pixels.shape[:2]
    left, right = max(0, int(box.x0)), min(width, int(box.x1) + 1)
    image = Image.fromarray(pixels[max(0, int(height - box.y1)) : int(height - box.y0) + 1, left:right, :3])
    file = io.BytesIO()
    few = image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)  # keeps each curve's own colour
    white = few.convert("RGB").point(lambda value: 255 if value > 250 else value)  # the page's own
    white.save(file, "WEBP", lossless=True, quality=40, method=2)
    return Tile(file.getvalue(), (right - left) // DENSITY, axes.get_title())


def note(figure: Figure) -> str:
    """What stands below a figure, as plain text: 2^-9 for math."""
    return re.sub(r"\$2\^\{([^}]*)\}\$", r"2^\1", " ".join(figure.get_supxlabel().split()))


def describe(frame: pd.DataFrame) -> str:
    """What a caption must say of the runs: data and its size, epochs, norm, seeds."""
    first = frame.iloc[0]
    parts = [
        f"{first['model']}, {first['data']}: {first['train_images']:,} training, {first['test_images']:,} test images",
        f"{first['epochs']} epoch{'s' if first['epochs'] > 1 else ''}",
    ]
    if first["norm"] != "none":
        parts.append(f"{first['norm']} norm")
    if first["data.augment"]:
        parts.append("augmented")
    seeds = frame["seed"].nunique()
    return ", ".join([*parts, f"{seeds} seed{'s' if seeds > 1 else ''}"])


def cell_means(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean and standard deviation of the score, in percent, and whether a run diverged, per cell."""
    frame = frame.assign(percent=100 * frame["score"], diverged=frame["status"] == "diverged")
    grouped = frame.groupby(by)
    cells = grouped["percent"].agg(["mean", "std", "count"])
    return cells.assign(diverged=grouped["diverged"].any()).reset_index()


def draw_panel(axes: Axes, frame: pd.DataFrame, x: str, curve: str, heading: str) -> None:
    """A curve of mean scores over `x` for each value of `curve`, and the line of chance.

    Diverged points are crosses in a band below chance, where each curve has its lane, so that none hides another.
    """
    cells = cell_means(frame, [curve, x])
    chance, top = 100 * float(frame["chance"].iloc[0]), max(100 * float(frame["score"].max()), 20.0)
    bottom = chance - 0.16 * top
    values = sorted(cells[curve].unique())
    palette = colours("plasma" if curve == "base_lr" else "viridis", len(values))
    for place, (value, colour) in enumerate(zip(values, palette, strict=True), 1):
        line = cells[cells[curve] == value].sort_values(x)
        lost = line["diverged"]
        height = line["mean"].where(~lost, chance + (bottom - chance) * place / (len(values) + 1))
        axes.plot(line[x], height, color=colour, lw=0.8, alpha=0.45)
        axes.errorbar(
            line[x],
            line["mean"].where(~lost),
            line["std"].where(line["count"] > 1),
            **{"color": colour, "lw": 1.4, "marker": "o", "ms": 3.5, "capsize": 2, "label": power_text(value)},
        )
        axes.plot(line[x][lost], height[lost], "x", color=colour, ms=4, mew=1.2)
    power_axis(axes, sorted(cells[x].unique()))
    handles, labels = axes.get_legend_handles_labels()
    lines = [handle.lines[0] for handle in handles[::-1]]  # type: ignore[attr-defined]  # without the bars
    axes.legend(lines, labels[::-1], title=heading, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.axhline(chance, color="0.55", lw=0.8, ls=":", zorder=0)
    any_lost = cells["diverged"].any()
    if any_lost:
        axes.axhspan(bottom, chance, color="0.96", zorder=-1)
    lowest = min(chance, 100 * float(frame["score"].min()))  # a network may do worse than chance
    axes.set_ylim(min(bottom, lowest - 1) if any_lost else max(-1, lowest - 5), min(101, top * 1.04))
    axes.yaxis.set_major_locator(FixedLocator([y for y in range(0, 101, 10 if top > 40 else 5) if y >= chance]))


def power_axis(axes: Axes, values: Sequence[float], crowded: int = 13) -> None:
    """A log2 axis with a tick at every value, or every second one where that would be crowded."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(values if len(values) <= crowded else values[::2])))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_text(value)))


def power_text(value: float) -> str:
    """A value as an axis or legend writes it: 512, 2⁻⁹ (as math text) or a decimal."""
    if value >= 1 and float(value).is_integer():
        return f"{int(value)}"
    text = format_power(value)
    return f"$2^{{{text[2:]}}}$" if text.startswith("2^") else text
