"""What a grid says when it has ended: scores as a table, its picture, what to try next, what is missing."""

import sys
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from statistics import mean

from smallbatch import lock, store
from smallbatch.grids.expand import Grid
from smallbatch.grids.progress import Results, few
from smallbatch.powers import format_power
from smallbatch.run import setting
from smallbatch.store import Record

# What there is to say of ended runs, as lines; it draws them too, below a folder.
Tell = Callable[[list[Record], Path], list[str]]
Cells = dict[tuple[float, int], list[float]]  # scores over seeds and what else is swept, by (η̃, m)


def sum_up(grid: Grid, results: Results, before: set[str], words: list[str], tell: Tell | None) -> None:
    """Say how a grid ended; `before`: the keys that had a result already, `words`: those that name it."""
    ended = [p for p in grid.points if results.status(p) in store.ENDED]
    if len({setting(point.run) for point in grid.points}) == 1:
        cells: Cells = {}
        diverged = set()
        for point in ended:
            cell, result = (point.run.base_lr, point.run.batch_size), results.ended[point.run.key]
            cells.setdefault(cell, []).append(result["score"])
            if result["status"] == "diverged":
                diverged.add(cell)
        if len(cells) > 1:
            print(*_table(cells), sep="\n")
            if not grid.figures:
                print(*(grid.notes if grid.kinds else next_try(cells, diverged)), sep="\n")
    if tell and not grid.figures and len(ended) > 1:
        records = [record for point in ended if (record := store.done(results.folder(point)))]
        print("", *tell(records, results.folders.parent), sep="\n")
    if grid.figures and ended:
        print(f"to see this: python src/figures.py {' '.join(words)}")
    _count(grid, results, before)


def _table(cells: Cells) -> list[str]:
    sizes = sorted({m for _, m in cells})
    several = " (mean over other axes)" if any(len(scores) > 1 for scores in cells.values()) else ""
    lines = ["", f"score{several}", f"{'η̃':>7} " + " ".join(f"{f'm={m}':>7}" for m in sizes)]
    for rate in sorted({rate for rate, _ in cells}, reverse=True):
        scores = [cells.get((rate, m)) for m in sizes]
        lines.append(f"{format_power(rate):>6} " + " ".join(f"{mean(s):7.4f}" if s else " " * 7 for s in scores))
    return lines


def next_try(cells: Cells, diverged: Collection[tuple[float, int]] = ()) -> list[str]:
    """What would tell more: η̃ beyond the edges at which best scores lie, or seeds.

    `diverged` are the cells of which a run diverged: none of them is a best, and an m that has no other goes lower.
    A best that is shared with a cell inside lies at no edge.

    >>> next_try({(2**-10, 8): [0.9], (2**-11, 8): [0.8], (2**-12, 8): [0.7]})
    ['next: the best η̃ of m=8 is the highest; add base_lr=1/512 to those tried']
    """
    rates = sorted({rate for rate, _ in cells})
    ends: dict[str, list[int]] = {"lowest": [], "highest": []}
    for m in sorted({m for _, m in cells}):
        tried = sorted(rate for rate, size in cells if size == m)
        means = {rate: mean(cells[rate, m]) for rate in tried if (rate, m) not in diverged}
        best = [rate for rate in means if means[rate] == max(means.values())]
        if best in ([], tried[:1]):
            ends["lowest"].append(m)
        if best == tried[-1:]:
            ends["highest"].append(m)
    said = [f"of m={','.join(map(str, sizes))} is the {end}" for end, sizes in ends.items() if sizes]
    more = {"lowest": rates[0] / 2, "highest": rates[-1] * 2}
    if said:
        words = ",".join(_word(more[end]) for end, sizes in ends.items() if sizes)
        return [f"next: the best η̃ {' and '.join(said)}; add base_lr={words} to those tried"]
    if min(map(len, cells.values())) < 3:
        return ["next: one seed or two tell little of what differs by chance; add seeds=3"]
    return []


def _word(rate: float) -> str:
    """A rate as one types it: 1/512."""
    return f"1/{1 / rate:.0f}" if rate < 1 and (1 / rate).is_integer() else f"{rate:g}"


def _count(grid: Grid, results: Results, before: set[str]) -> None:
    """How many points ended how, then each that failed or has no result."""
    counts: Counter[str] = Counter()
    failed, missing = [], []
    for point in grid.points:
        result, path = results.ended.get(point.run.key), results.folder(point)
        if result is None:
            counts["without a result"] += 1
            holder = lock.holder(path)
            missing.append(f"{f'in training by {holder}' if holder else 'not trained'}: {point.run.label}")
        elif result["status"] == "failed":
            counts["failed"] += 1
            failed.append(f"failed: {point.run.label}: {result['error']} ({path})")
        else:
            counts["finished before" if point.run.key in before else result["status"]] += 1
    print(", ".join(f"{n} {status}" for status, n in counts.items()))
    for line in failed + few(missing, "without a result: "):
        print(line, file=sys.stderr)
