"""The paper's figures, each in the paper's form, from the runs that are there."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from smallbatch.errors import ConfigError
from smallbatch.figures import panels
from smallbatch.figures.collect import FigureRuns
from smallbatch.powers import format_power
from smallbatch.table import least_reliable


def draw(runs: FigureRuns, parts: Sequence[FigureRuns] = ()) -> Figure:
    """One figure as its config says; `parts` are the figures whose runs a summary shows."""
    total = len(runs.frame) + len(runs.missing)
    if runs.draw == "paths":
        return sgd_paths(runs.title)
    if runs.draw in ("best", "range"):
        return (best if runs.draw == "best" else rate_range)(parts, runs.title, _scale_note(runs.scale))
    note = f"{panels.describe(runs.frame)}. {_scale_note(runs.scale)}"
    if runs.stand_in:
        note = f"{runs.stand_in[0].upper()}{runs.stand_in[1:]}. {note}"
    if runs.missing:
        note = f"INCOMPLETE: {len(runs.frame)} of {total} runs. {note}"
    title = f"{runs.title} ({runs.stand_in.partition(':')[0]})" if runs.stand_in else runs.title
    if runs.curves is not None:
        return convergence(_whole_curves(runs), title, note)
    return (bn_batch if runs.draw == "bn_batch" else sweep)(runs.frame, title, note)


def _scale_note(scale: str) -> str:
    return f"Scale: {scale}" + ("" if scale == "paper" else ", not the paper's size") + "."


def sweep(frame: pd.DataFrame, title: str, note: str) -> Figure:
    """Test accuracy against m, a curve per η̃, and against η̃, a curve per m; log2 axes.

    A point is the mean score over seeds, with a bar of one standard deviation where there are several.
    A point with a diverged run is a cross in the band below chance.
    """
    with panels.styled():
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        panels.draw_panel(left, frame, "batch_size", "base_lr", heading="η̃")
        panels.draw_panel(right, frame, "base_lr", "batch_size", heading="m")
        left.set(xlabel="batch size m", ylabel="test accuracy (%)", title="against batch size")
        right.set(xlabel="base learning rate η̃ = η / m", title="against base learning rate")
        right.tick_params(labelleft=False)
        panels.caption(figure, title, note + panels.chance_note(panels.cell_means(frame, ["batch_size", "base_lr"])))
    return figure


def answer(frame: pd.DataFrame, curves: pd.DataFrame, target: float, title: str, note: str) -> Figure:
    """Accuracy at the best η̃ against m, with its interval, and against the time of training, a curve per m.

    `frame`, `curves` and `target` of a `smallbatch.answer.Answer`.
    """
    with panels.styled():
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        several = (frame["m"] != frame["bn_batch_size"]).any()
        place = [float(x) for x in (range(len(frame)) if several else frame["m"])]
        reach = (frame["high"] - frame["accuracy"]).fillna(0.0)
        left.errorbar(place, frame["accuracy"], reach, color="#31688e", lw=1.4, marker="o", ms=4, capsize=3)
        names = [f"{m} / {b}" if several else f"{m}" for m, b in zip(frame["m"], frame["bn_batch_size"], strict=True)]
        for x, y, rate in zip(place, frame["accuracy"], frame["base_lr"], strict=True):
            left.annotate(panels.power_text(rate), (x, y), textcoords="offset points", xytext=(5, 6), fontsize=7)
        if several:
            left.set_xticks(place, names)
        else:
            panels.power_axis(left, place)
        for name, (m, b), colour in zip(
            names, frame[["m", "bn_batch_size"]].to_numpy(), panels.colours("viridis", len(frame)), strict=True
        ):
            curve = curves[(curves["m"] == m) & (curves["bn_batch_size"] == b)]
            right.plot(curve["seconds"], curve["accuracy"], color=colour, lw=1.4, marker="o", ms=2.5, label=name)
        for axes in (left, right):
            axes.axhline(target, color="0.55", lw=0.8, ls=":", zorder=0)
        right.set(xscale="log", xlabel="seconds of training", title="against time, at the best η̃")
        left.set(
            xlabel="m / BN batch" if several else "batch size m", ylabel="test accuracy (%)", title="at the best η̃"
        )
        right.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.xaxis.set_minor_formatter(NullFormatter())
        right.legend(title="m", loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
        panels.caption(figure, title, f"{note} Dotted: {target:.2f} %, the margin below the best.")
    return figure


def bn_batch(frame: pd.DataFrame, title: str, note: str) -> Figure:
    """Test accuracy against the BN batch, a curve per SGD batch, whose right end is a BN batch equal to it.

    Raises ConfigError where an SGD batch has several η̃.
    """
    if frame.groupby("batch_size")["base_lr"].nunique().max() > 1:
        tried = ", ".join(format_power(rate) for rate in sorted(frame["base_lr"].unique()))
        raise ConfigError(f"{title}: has one η̃ for each SGD batch; choose one with base_lr=…, of {tried}")
    with panels.styled():
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        axes = figure.subplots()
        panels.draw_panel(axes, frame, "bn_batch_size", "batch_size", heading="SGD batch m")
        axes.set(xlabel="BN batch size", ylabel="test accuracy (%)")
        rates = frame.groupby("batch_size")["base_lr"].first()
        chosen = ", ".join(f"{panels.power_text(rate)} at {m}" for m, rate in rates.items())
        below = panels.chance_note(panels.cell_means(frame, ["batch_size", "bn_batch_size"]))
        panels.caption(figure, title, f"{note}\nη̃ for each SGD batch: {chosen}.{below}")
    return figure


def convergence(curves: pd.DataFrame, title: str, note: str) -> Figure:
    """Training and test accuracy against epochs, a curve per m, the mean over seeds; a cross where one diverged.

    `curves` as `_whole_curves` gives them.
    """
    with panels.styled():
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        sizes = sorted(curves["batch_size"].unique())
        for axes, column, name in ((left, "train_accuracy", "training"), (right, "test_accuracy", "test")):
            for m, colour in zip(sizes, panels.colours("viridis", len(sizes)), strict=True):
                line = 100 * curves[curves["batch_size"] == m].groupby("epoch")[column].mean()
                axes.plot(line.index, line, color=colour, lw=1.4, marker="o", ms=2.5, label=f"{m}")
                lost = curves[(curves["batch_size"] == m) & curves["lost"]]
                axes.plot(lost["epoch"], line[lost["epoch"]], "x", color=colour, ms=7, mew=1.8)
            axes.set(xlabel="epoch", title=f"{name} accuracy")
            axes.set_xlim(0, curves["epoch"].max() * 1.02)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_ylabel("accuracy (%)")
        right.tick_params(labelleft=False)
        right.legend(title="m", loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
        if curves["lost"].any():
            note += "\nCrosses: a run diverged in this epoch, and counts as chance from there."
        note += " Training accuracy is measured during the epoch, with the weights as they move."
        panels.caption(figure, title, note)
    return figure


def _whole_curves(runs: FigureRuns) -> pd.DataFrame:
    """Rows for all epochs of each run, at chance from where it diverged; `lost`: it did so in this one."""
    assert runs.curves is not None
    epochs, chance = int(runs.frame["epochs"].max()), runs.frame["chance"].iloc[0]
    lost = runs.curves.assign(lost=runs.curves["train_loss"].isna())
    lost.loc[lost["lost"], ["train_accuracy", "test_accuracy"]] = chance
    every = lost[["key", "batch_size"]].drop_duplicates().merge(pd.Series(range(1, epochs + 1), name="epoch"), "cross")
    whole = every.merge(lost, "left")
    whole["lost"] = whole["lost"].eq(True)
    return whole.fillna({"train_accuracy": chance, "test_accuracy": chance})


def best(parts: Sequence[FigureRuns], title: str, note: str) -> Figure:
    """Best mean test accuracy over η̃ against m, a curve per setting; hollow where the best η̃ is at a grid's edge."""
    with panels.styled():
        figure = Figure(figsize=(8.6, 4.8), layout="constrained")
        axes = figure.subplots()
        sizes: set[int] = set()
        for place, (part, colour) in enumerate(zip(parts, panels.colours("turbo", len(parts)), strict=True)):
            tops = _tops(part.frame)
            sizes |= set(tops.index)
            marker = "os^Dv<>p*hX"[place % 11]
            axes.plot(
                tops.index, tops["mean"], color=colour, lw=1.4, marker=marker, ms=5, label=_setting_label(part, parts)
            )
            edge = tops[tops["edge"]]
            axes.plot(edge.index, edge["mean"], ls="", color=colour, marker=marker, ms=5, mfc="white")
        panels.power_axis(axes, sorted(sizes))
        axes.set(xlabel="batch size m", ylabel="best test accuracy over η̃ (%)")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        note += " η̃ is chosen on the test set, as in the paper. Hollow: the best η̃ is the lowest or highest one tried."
        panels.caption(figure, title, f"{_incomplete(parts)}{note}")
    return figure


def rate_range(parts: Sequence[FigureRuns], title: str, note: str) -> Figure:
    """The η̃ that train reliably against m, a panel per setting: a bar over each.

    Reliable: every seed reaches chance + ½ (best score of the setting − chance), as the claims have it.
    """
    with panels.styled():
        columns = min(4, len(parts))
        rows = -(-len(parts) // columns)
        figure = Figure(figsize=(2.9 * columns + 0.6, 2.4 * rows + 0.9), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, part in zip(grid, parts, strict=False):
            _range_panel(axes, part.frame)
            axes.set_title(fill(_setting_label(part, parts), 38))
        for axes in grid[len(parts) :]:
            axes.set_visible(False)
        panels.power_axis(grid[0], sorted({m for part in parts for m in part.frame["batch_size"]}), crowded=6)
        grid[0].set_yscale("log", base=2)
        grid[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: panels.power_text(value)))
        figure.supylabel("base learning rate η̃", fontsize=9)
        seeds = min(int(part.frame["seed"].nunique()) for part in parts)
        note += (
            f" Bars: η̃ at which every seed ({seeds} or more) reaches chance + ½ (best − chance);"
            " dots: the best η̃; grey: the η̃ tried. Against batch size m."
        )
        panels.caption(figure, title, f"{_incomplete(parts)}{note}")
    return figure


def _range_panel(axes: Axes, frame: pd.DataFrame) -> None:
    best, chance, images = 100 * frame["score"].max(), 100 * frame["chance"].iloc[0], int(frame["test_images"].iloc[0])
    cells = frame.groupby(["batch_size", "base_lr"])["score"].agg(["mean", "min"]).reset_index()
    cells["reliable"] = 100 * cells["min"] >= least_reliable(best, chance, images, 0.5)
    for m in sorted(cells["batch_size"].unique()):
        some = cells[cells["batch_size"] == m]
        rates = some["base_lr"].to_numpy(float)
        ends = [rates[0] / 2**0.4, *np.sqrt(rates[1:] * rates[:-1]), rates[-1] * 2**0.4]  # half-way between those tried
        axes.plot([m, m], [ends[0], ends[-1]], color="0.88", lw=9, solid_capstyle="butt")
        for low, high, trains in zip(ends[:-1], ends[1:], some["reliable"], strict=True):
            if trains:
                axes.plot([m, m], [low, high], color="#31688e", lw=7, solid_capstyle="butt")
        good = some[some["reliable"]]
        if len(good):
            axes.plot(m, good["base_lr"][good["mean"].idxmax()], "o", color="white", ms=3.5)


def sgd_paths(title: str, n: int = 16, base_lr: float = 0.15) -> Figure:
    """n small steps and one large step from one start, on a loss 1/(2n) Σ (x_iᵀθ − y_i)² (paper, eqs. 2 to 4)."""
    random = np.random.RandomState(2)
    examples = random.standard_normal((n, 2)) * [1.0, 0.7]
    targets = examples @ [1.0, -1.0] + 0.2 * random.standard_normal(n)
    small, large = descend(examples, targets, base_lr)
    minimum = np.linalg.lstsq(examples, targets, rcond=None)[0]

    def loss(theta: np.ndarray) -> np.ndarray:
        return np.asarray(((theta @ examples.T - targets) ** 2).mean(axis=-1) / 2)

    with panels.styled():
        figure = Figure(figsize=(6.2, 5.8), layout="constrained")
        axes = figure.subplots()
        both = np.concatenate([small, large, minimum[None]])
        middle, reach = (both.min(axis=0) + both.max(axis=0)) / 2, 0.65 * np.ptp(both, axis=0).max()
        x, y = (np.linspace(middle[i] - reach, middle[i] + reach, 200) for i in (0, 1))
        height = loss(np.stack(np.meshgrid(x, y), axis=-1))
        axes.contour(
            x, y, height, levels=np.geomspace(height.min() + 1e-3, height.max(), 14), colors="0.8", linewidths=0.8
        )
        axes.plot(*small.T, color="#31688e", marker="o", ms=3, lw=1.4, label=f"{n} steps of m = 1")
        axes.plot(*large.T, color="#d8576b", marker="s", ms=5, lw=1.4, label=f"1 step of m = {n}")
        axes.plot(*minimum, "*", color="black", ms=10, label="minimum")
        axes.annotate("start", small[0], textcoords="offset points", xytext=(6, 6), fontsize=8)
        axes.set(xlabel="θ₁", ylabel="θ₂", aspect="equal")
        axes.legend(loc="best")
        note = (
            f"Least squares on {n} examples, η̃ = {base_lr:g} for both; each path computes {n} gradients.\n"
            f"Loss at the start {loss(small[0]):.2f}, after the small steps {loss(small[-1]):.3f}, "
            f"after the large one {loss(large[-1]):.3f}."
        )
        panels.caption(figure, title, note)
    return figure


def _incomplete(parts: Sequence[FigureRuns]) -> str:
    lacking = [part.name for part in parts if part.missing]
    return f"INCOMPLETE: runs of {', '.join(lacking)} are missing. " if lacking else ""


def _setting_label(part: FigureRuns, parts: Sequence[FigureRuns]) -> str:
    """Network, norm and what else tells settings apart, in a few words: `fig09: resnet32 BN, augmented, cifar100`."""
    data = pd.Series([p.frame["data"].iloc[0] for p in parts])
    first = part.frame.iloc[0]
    norm = {"none": "no BN", "batch": "BN", "group": "GN"}[first["norm"]]
    if first["norm"] == "batch" and first["norm.layers"] == "conv":
        norm = "BN in conv"
    extra = [w for w, on in (("augmented", first["data.augment"]), ("warm-up", first["schedule.warmup"] > 0)) if on]
    extra += [first["data"]] if first["data"] != data.mode()[0] else []
    name = f"{part.name}: " if part.name.startswith("fig") else ""
    return ", ".join([f"{name}{first['model']} {norm}", *extra])


def _tops(frame: pd.DataFrame) -> pd.DataFrame:
    """For each m the best mean score (%) and whether its η̃ is at an edge of those tried at m."""
    cells = panels.cell_means(frame, ["batch_size", "base_lr"])
    rows = cells.loc[cells.groupby("batch_size")["mean"].idxmax()].set_index("batch_size")
    edges = cells.groupby("batch_size")["base_lr"].agg(["min", "max"])
    return rows.assign(edge=(rows["base_lr"] == edges["min"]) | (rows["base_lr"] == edges["max"]))


def descend(x: np.ndarray, y: np.ndarray, base_lr: float) -> tuple[np.ndarray, np.ndarray]:
    """Paths (steps + 1, 2) of n updates θ ← θ − η̃ ∇L_i with m = 1, and of one θ ← θ − η̃ Σ ∇L_i with m = n."""
    start = np.array([-1.0, 1.5])
    small = [start]
    for xi, yi in zip(x, y, strict=True):
        small.append(small[-1] - base_lr * (xi @ small[-1] - yi) * xi)
    return np.array(small), np.array([start, start - base_lr * (x @ start - y) @ x])
