"""What the claims' intervals cover and how soon they decide, on made-up runs: `make simulate`, or one part by name.

    python tests/claims/simulate.py looks best chosen power   [--worlds 400]

looks: how often a true zero is called decided if one looks at several numbers of seeds. best: intervals of "best of a
group less best of another". chosen: those of C3 and C13, at an η̃ that other runs chose. power: the share of worlds in
which each verdict at scale=reduced is decided, each m at the η̃ that the search asks for.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import synthetic

from smallbatch.claims.best import best, fixed, highest, tuned
from smallbatch.claims.cells import LOOKS, Cells
from smallbatch.claims.judge import judge
from smallbatch.claims.noise import TAIL
from smallbatch.claims.statistics import UNDECIDED, interval
from smallbatch.figures.collect import FigureRuns
from smallbatch.grids.search import Bounds, climb

RUN, SEED = 0.6, 0.4  # standard deviations in points, of a run and of what all runs of a seed have in common


def looks(worlds: int) -> Iterator[str]:
    """False decisions in t-tests of a true zero."""
    x = np.random.default_rng(0).standard_normal((500 * worlds, 12))
    yield "seeds looked at           level   called decided"
    for at, tail in (([3], 0.025), (range(3, 9), 0.025), (range(3, 13), 0.025), (LOOKS, 0.025), (LOOKS, TAIL)):
        decided = np.zeros(len(x), bool)
        for n in at:
            mean, error = x[:, :n].mean(1), x[:, :n].std(1, ddof=1) / n**0.5
            decided |= np.abs(mean) > stdtrit(n - 1, 1 - tail) * error
        yield f"{', '.join(map(str, at)):<25} {100 - 200 * tail:3.0f} %   {decided.mean():.3f}"


def cells_of(truth: np.ndarray, m: np.ndarray, rate: np.ndarray, n: int, random: np.random.Generator) -> Cells:
    """Cells of these true accuracies with n seeds, all of them trained."""
    score = truth[:, None] + RUN * random.normal(size=(truth.size, n)) + SEED * random.normal(size=n)
    key = np.arange(score.size).reshape(score.shape).astype(str)
    yes = np.ones(m.size, bool)
    return Cells(
        "made", tuple(range(n)), m, rate, m, 1000 // m, score, score, key, 10.0, 5000, yes, yes, True, "reduced"
    )


def _group(curvature: float, *shifts: float) -> list[float]:
    """Accuracies of 5 η̃ for each m, whose optimum lies `shift` from the middle."""
    return [-curvature * (e - shift) ** 2 for shift in shifts for e in range(-2, 3)]


GROUPS = {
    "both flat (2 and 3 m)": (_group(0.1, 0, 0.4), _group(0.1, 0, 0.4, -0.4)),
    "both curved": (_group(0.3, 0, 0.4), _group(0.3, 0, 0.4, -0.4)),
    "5 tied against a peak": ([0.0] * 5, _group(3.0, 0)),
    "a peak against 5 tied": (_group(3.0, 0), [0.0] * 5),
    "20 tied against a peak": ([0.0] * 20, _group(3.0, 0)),
    "a peak against 20 tied": (_group(3.0, 0), [0.0] * 20),
}


def best_of_groups(worlds: int) -> Iterator[str]:
    """Coverage at no lead, width, and the share above 0 at a lead of one point."""
    yield f"{'best of a group less best of another':<37} n  covers  width  above 0 at +1"
    random = np.random.default_rng(1)
    for name, (ours, theirs) in GROUPS.items():
        # Ten cells far below, as a figure has, for the variance.
        m = np.repeat([2, 8, 32], [len(ours), len(theirs), 10])
        rate = 2.0 ** -np.arange(m.size)
        for n in LOOKS:
            covers, width, above = 0, 0.0, 0
            for lead in (0.0, 1.0):
                truth = np.array([*ours, *(a - lead for a in theirs), *[-20.0] * 10]) + 80
                for _ in range(worlds):
                    cells = cells_of(truth, m, rate, n, random)
                    _, low, high, _ = interval(best(cells, m == 2) - best(cells, m == 8))
                    covers += (low <= lead <= high) / 2
                    width += (high - low) / 2
                    above += lead > 0 and low > 0
            yield f"{name:<37} {n}  {covers / worlds:6.3f}  {width / worlds:5.2f}  {above / worlds:.2f}"


def chosen(worlds: int) -> Iterator[str]:
    """Coverage and width of what m = 8, 32 and 128 lose at the best η̃ of all (C3), and m ≤ 32 at that of 128 (C13)."""
    yield "curvature n  " + "  ".join(f"{f'm = {m}: covers, width':>21}" for m in (8, 32, 128)) + "  C13: covers, width"
    sizes, exponents = np.array([2, 8, 32, 128]), np.arange(-4.0, 4)
    m, e = (a.ravel() for a in np.meshgrid(sizes, exponents))
    order = np.lexsort((m, e))
    m, e = m[order], e[order]
    random = np.random.default_rng(2)
    for curvature in (0.1, 0.3, 1.0):
        top, at = dict(zip(sizes, (0, -0.3, -1, -6), strict=True)), dict(zip(sizes, (0, 0, -1, -2), strict=True))
        truth = np.array([80 + top[i] - curvature * (x - at[i]) ** 2 for i, x in zip(m, e, strict=True)])
        for n in LOOKS:
            found: dict[int, list[tuple[bool, float]]] = defaultdict(list)
            for _ in range(worlds):
                cells = cells_of(truth, m, 2.0**e, n, random)
                star = highest(cells, np.ones(m.size, bool))
                for size in sizes[1:]:
                    row = cells.row(int(size), float(cells.rate[star]))
                    loss = tuned(cells, int(size)) - fixed(cells, row)
                    if size != m[star]:
                        found[size].append(_hit(loss, truth[m == size].max() - truth[row]))
                ours, theirs = tuned(cells, 2, 8, 32), highest(cells, m == 128)
                row = cells.row(int(m[ours.terms[0].row]), float(cells.rate[theirs]))
                loss = ours - fixed(cells, row, ours.terms[0].ties)
                found[0].append(_hit(loss, truth[m <= 32].max() - truth[row]))
            shown = [np.mean(found[size], axis=0) for size in (8, 32, 128, 0)]
            yield f"{curvature:9.1f} {n}  " + "  ".join(f"{covers:14.3f} {width:6.2f}" for covers, width in shown)


def _hit(quantity: object, truth: float) -> tuple[bool, float]:
    _, low, high, _ = interval(quantity)
    return bool(low <= truth + 1e-9 and truth - 1e-9 <= high), high - low


# By figure at scale=reduced, for each m the best accuracy and log2 of its η̃: at m = 2 and 8 as seed 0 had them (at all
# m in figure 1), at larger m as the paper's claims would have them. Figures 9 and 11: 100 classes.
PEAKS = {
    "fig01": {2: (64.5, -9), 8: (62.8, -9.2), 32: (60.4, -10.2), 128: (50.5, -12), 512: (38.8, -15)},
    "fig02": {2: (57.5, -6), 8: (54.8, -7), 32: (51, -8.5), 128: (45, -10.5), 512: (36, -12.5)},
    "fig03": {2: (42.5, -11), 8: (41.8, -12), 32: (37, -13), 128: (29, -14)},
    "resnet32_nobn": {2: (36.8, -13), 8: (32.9, -14), 32: (10, -15), 128: (10, -15)},
    "fig05": {2: (17, -9), 8: (70.7, -6), 32: (70.5, -7), 128: (66, -8), 512: (55, -9)},
    "fig06": {2: (66.7, -8), 8: (70.1, -7), 32: (69.5, -7.5), 128: (65, -8), 512: (54, -9)},
    "fig07": {2: (52.1, -7), 8: (54.9, -8.5), 32: (53.5, -8.5), 128: (46, -9.5)},
    "fig08": {2: (44.2, -8), 8: (52.2, -8), 32: (50.8, -8), 128: (42, -9.5)},
    "fig09": {2: (9.8, -7), 8: (18.7, -7), 32: (17.2, -8), 128: (11, -10)},
    "fig10": {2: (46.5, -6), 8: (53.2, -7), 32: (52.5, -7.5), 128: (46, -8.5)},
    "fig11": {2: (14, -4), 8: (20.5, -6), 32: (18.5, -7), 128: (14.5, -9)},
    "fig17": {2: (39.3, -8), 8: (46.6, -8), 32: (43.5, -8.5), 128: (31, -10)},
    "fig18": {2: (56.6, -5), 8: (64.2, -6), 32: (62.8, -7), 128: (57, -8.5)},
    "fig12": {
        2: (50.9, -5), 4: (57, -5), 8: (62.1, -5), 16: (64, -5), 32: (64.5, -5.5), 64: (63, -6.5), 128: (60, -7.5)
    },
}  # fmt: skip
CURVATURE, ABOVE = 1.2, 2  # points an octave squared; octaves above the optimum that still train


def _accuracy(name: str, m: int, e: int) -> float | None:
    top, optimum = PEAKS[name][m]
    return None if e > optimum + ABOVE else top - CURVATURE * (e - optimum) ** 2 * (1.2 if e > optimum else 1)


class Made:
    """A figure's runs at the η̃ that a search asks for, and at those that a verdict asks for beyond."""

    def __init__(self, name: str, n: int, random: np.random.Generator) -> None:
        self.name, self.chance = name, 1.0 if name in ("fig09", "fig11") else 10.0
        self.images = 5000 if name in ("fig01", "fig02", "fig05", "fig06", "fig12") else 2500
        noise, common = RUN * (5000 / self.images) ** 0.5, SEED * random.normal(size=n)
        self.scores = {}
        for m, e in product(PEAKS[name], range(-24, 5)):
            truth = _accuracy(name, m, e)
            made = self.chance if truth is None else truth + noise * random.normal(size=n) + common
            self.scores[m, e] = np.maximum(np.broadcast_to(made, n), self.chance)
        self.asked = self._search()

    def _search(self) -> list[tuple[int, int]]:
        asked, start, top = [], -10, 0.0
        known = {"chance": self.chance / 100, "test_images": self.images, "status": "finished"}
        for m in PEAKS[self.name]:
            path = climb(
                lambda e, m=m: [known | {"score": x / 100} for x in self.scores[m, e]], start, Bounds(), top / 100
            )
            if path.best is not None:
                start, top = path.best, max(top, self.scores[m, path.best].mean())
            asked += [(m, e) for e in path.asked]
        return asked

    def runs(self) -> FigureRuns:
        """Those asked for."""
        rows = []
        for m, e in dict.fromkeys(self.asked):
            for seed, score in enumerate(self.scores[m, e], 1):
                row = synthetic._row(f"{self.name}-{m}-{e}-{seed}", m, 2.0**e, m, seed, score, score <= self.chance)
                rows.append(row | {"chance": self.chance / 100, "test_images": self.images})
        return FigureRuns(self.name, "reduced", pd.DataFrame(rows))


def _bn_batches(name: str, n: int, random: np.random.Generator, sizes: list[int], top: float, low: int) -> FigureRuns:
    """Figures 13 and 14: an SGD batch costs a point an octave, a BN batch 0.8 an octave outside `low` … 2 `low`."""
    common, rows = SEED * random.normal(size=n), []
    for m in sizes:
        for b in (b for b in (2, 4, 8, 16, 32, 64, 128) if b <= m and (b in sizes or b in (2, 4, 8))):
            truth = top - np.log2(m / 8) - 0.8 * synthetic.outside(b, low, 2 * low)
            for seed, score in enumerate(truth + RUN * random.normal(size=n) + common, 1):
                rows.append(synthetic._row(f"{name}-{m}-{b}-{seed}", m, 2.0**-8, b, seed, score, False))
    return FigureRuns(name, "reduced", pd.DataFrame(rows), draw="bn_batch")


def _curves(n: int, random: np.random.Generator) -> FigureRuns:
    """Figure 4: m = 8 and 16 train alike, others a point an octave worse."""
    sizes = [2, 4, 8, 16, 32, 64, 128, 256]
    runs = synthetic.figure_runs("fig04", lambda m, e, b: 50.0, sizes, [2.0**-8], range(1, n + 1), scale="reduced")
    common, rows = SEED * random.normal(size=n), []
    for row in runs.frame.itertuples():
        luck = RUN * random.normal() + common[row.seed - 1]
        behind = synthetic.outside(row.batch_size, 8, 16) * (2 if row.batch_size > 64 else 1)
        rows += [
            {"key": row.key, "epoch": k, "train_accuracy": (30 + 4 * k - behind + luck) / 100} for k in range(1, 9)
        ]
    return replace(runs, frame=runs.frame.assign(epochs=8), curves=pd.DataFrame(rows))


def power(worlds: int) -> Iterator[str]:
    """Shares of worlds by verdict."""
    worlds = max(1, worlds // 10)
    synthetic.TRAIN_IMAGES, synthetic.EPOCHS = 10240, 12
    states: dict[tuple[str, str], dict[int, Counter[str]]] = defaultdict(lambda: {n: Counter() for n in LOOKS})
    why: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    tried = []
    for n in LOOKS:
        random = np.random.default_rng(n)
        for _ in range(worlds):
            made = {name: Made(name, n, random) for name in PEAKS}
            tried.append(np.mean([len(one.asked) / len(PEAKS[one.name]) for one in made.values()]))
            figures = {name: one.runs() for name, one in made.items()}
            figures["fig13a"] = _bn_batches("fig13a", n, random, [8, 32, 128], 52, 4)
            figures["fig13b"] = _bn_batches("fig13b", n, random, [8, 32, 128], 30, 4)
            figures["fig14"] = _bn_batches("fig14", n, random, [16, 32, 64, 128], 64, 16)
            figures["fig04"] = _curves(n, random)
            for cell in {cell for row in judge(figures) for v in row.verdicts for p in v.parts for cell in p.beyond}:
                made[cell.figure].asked.append((cell.m, round(np.log2(cell.rate))))
            for row in judge(figures | {name: one.runs() for name, one in made.items()}):
                for verdict in row.verdicts:
                    states[row.id, verdict.column][n][verdict.state] += 1
                    if verdict.state == UNDECIDED:
                        why[row.id, verdict.column][f"{verdict.why}: {verdict.reason[:90]}"] += 1
    yield f"{worlds} worlds, {np.mean(tried):.1f} η̃ for each m; share supported, not supported at {LOOKS} seeds"
    for cell, by_n in states.items():
        told = "  ".join(f"{c['supported'] / worlds:.2f} {c['not supported'] / worlds:.2f}" for c in by_n.values())
        reason = why[cell].most_common(1)[0][0] if why[cell] else ""
        yield f"{cell[0]:<4} {cell[1]:<22} {told}  {reason}"


PARTS = {"looks": looks, "best": best_of_groups, "chosen": chosen, "power": power}


def main() -> None:
    """Print the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], help="all without names")
    parser.add_argument("--worlds", type=int, default=400, help="worlds for each line (power: a tenth)")
    given = parser.parse_args()
    for name in given.parts or PARTS:
        print(f"\n{name}", *PARTS[name](given.worlds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
