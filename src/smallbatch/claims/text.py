"""The table of verdicts as text: for the terminal, as Markdown, and as tables for W&B."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from smallbatch.claims.judge import NO_RUNS, NOT_TRAINED, Row, Verdict
from smallbatch.claims.needs import Need, merged
from smallbatch.claims.statistics import REFUTED, SUPPORTED, UNDECIDED, Part

MARKS = {SUPPORTED: "yes", REFUTED: "no", NOT_TRAINED: "·"}  # an undecided verdict shows its reason
LEGEND = "yes: supported, no: not supported, seeds, edge, noise: why undecided, ·: not trained"
WRONG = 0.05  # of decided verdicts, if their truth lies just at the bound: 98 % at each of the looks (`make simulate`)
ID, CELL = 5, 7  # characters; a column's head takes several lines


def marks(row: Row) -> dict[str, str]:
    """By column `yes`, `no`, `seeds`, `edge`, `noise` or `·`."""
    return {v.column: v.why if v.state == UNDECIDED else MARKS[v.state] for v in row.verdicts}


def columns(rows: Iterable[Row]) -> list[str]:
    """The figures, then the comparisons, that have a verdict with runs."""
    found = {v.column: v.figures for row in rows for v in row.verdicts if v.why != NO_RUNS}
    return sorted(found, key=lambda column: (len(found[column]), found[column]))


def terminal(rows: Sequence[Row], empty: Sequence[Need] = (), parts: bool = False) -> list[str]:
    """The table in the width of the terminal, and what would decide what is open.

    `empty`: what else has no runs; `parts`: with what is behind each verdict.
    """
    width = shutil.get_terminal_size((100, 24)).columns
    lines: list[str] = []
    shown = columns(rows)
    most = max(1, (width - ID) // CELL)
    for start in range(0, len(shown), most):
        lines += [*_block(rows, shown[start : start + most]), ""]
    if shown:
        lines += [*textwrap.wrap(f"{LEGEND}. {chance(rows)}", width), ""]
    for row in rows:
        counted = textwrap.shorten(f"{row.counted}: {row.text}", width - ID, placeholder=" …")
        lines.append(f"{row.id:<{ID}}{counted}")
    for row in rows if parts else ():
        for verdict in row.verdicts:
            lines += _behind(row, verdict, width)
    return [*lines, *_open(rows), *no_runs(rows, empty)]


def chance(rows: Iterable[Row]) -> str:
    """How many of the verdicts that are decided may be wrong by chance; nothing if none is decided."""
    decided = sum(verdict.state in (SUPPORTED, REFUTED) for row in rows for verdict in row.verdicts)
    return f"Of {decided} decided at most {WRONG * decided:.2g} would be wrong by chance (5 % each)." if decided else ""


def _block(rows: Sequence[Row], shown: Sequence[str]) -> list[str]:
    heads = [column.replace(" / ", "\n/").replace("_", "\n_").split("\n") for column in shown]
    depth = max(map(len, heads))
    lines = [" " * ID + "".join(f"{(head + [''] * depth)[i]:<{CELL}}" for head in heads) for i in range(depth)]
    for row in rows:
        own = marks(row)
        if own.keys() & set(shown):
            lines.append(f"{row.id:<{ID}}" + "".join(f"{own.get(column, ''):<{CELL}}" for column in shown))
    return [line.rstrip() for line in lines]


def _behind(row: Row, verdict: Verdict, width: int) -> list[str]:
    if not any(part.keys for part in verdict.parts):
        return []
    lines = ["", f"{row.id} {verdict.column}: {verdict.state}"]
    lines += textwrap.wrap(verdict.criterion, width, initial_indent="  asks: ", subsequent_indent="  ")
    return [*lines, *(f"  {part.label}: {told(part)}" for part in verdict.parts)]


def told(part: Part) -> str:
    """`+0.82 (0.31 … 1.33) points, 3 seeds, 96 runs: supported`."""
    found = [] if part.effect is None else [f"{part.effect:+.2f} ({part.low:.2f} … {part.high:.2f}) points"]
    found += [f"{part.seeds} seeds"] if part.seeds else []
    found += [f"{len(part.keys)} runs"] if part.keys else []
    return ": ".join(filter(None, (", ".join(found), part.verdict)))


def _open(rows: Iterable[Row]) -> list[str]:
    """What is undecided or lacks some runs, each reason once, and the commands to train what is missing."""
    by_needs: dict[tuple[Need, ...], dict[str, list[str]]] = {}
    for row in rows:
        for verdict in row.verdicts:
            if verdict.why not in ("", NO_RUNS):
                line = f"{verdict.column} {verdict.state} ({verdict.why}): {verdict.reason}"
                by_needs.setdefault(verdict.needs, {}).setdefault(line, []).append(row.id)
    lines: list[str] = []
    for needs, claims in by_needs.items():
        lines += [f"{', '.join(ids)} {line}" for line, ids in claims.items()]
        lines += [f"  train: {need.command}" for need in needs]
    return ["", *lines] if lines else []


def no_runs(rows: Iterable[Row], empty: Sequence[Need] = ()) -> list[str]:
    """All that has no runs, in one line."""
    verdicts = [verdict for row in rows for verdict in row.verdicts]
    there = {name for verdict in verdicts if verdict.why != NO_RUNS for name in verdict.figures}
    needs = [need for verdict in verdicts if verdict.why == NO_RUNS for need in verdict.needs]
    return [
        f"no runs of {', '.join(name for name in need.figures if name not in there)}; train: {need.command}"
        for need in merged([*empty, *needs])
    ]


def markdown_table(rows: Sequence[Row]) -> str:
    """The table alone, as Markdown."""
    shown = columns(rows)
    lines = [f"| claim | {' | '.join(shown)} | counted |", "|---" * (len(shown) + 2) + "|"]
    for row in rows:
        own = marks(row)
        lines.append(f"| {row.id} | {' | '.join(own.get(column, '') for column in shown)} | {row.counted} |")
    return "\n".join([*lines, "", f"{LEGEND}. {chance(rows)}"])


def markdown(rows: Sequence[Row]) -> str:
    """The table, and behind it a line each verdict."""
    lines = [markdown_table(rows), ""]
    for row in rows:
        lines.append(f"- **{row.id}** {row.text}")
        for verdict in (v for v in row.verdicts if v.why != NO_RUNS):
            lines.append(f"    - {verdict.column}: **{verdict.state}**. {verdict.reason} Asks: {verdict.criterion}")
            lines += [f"        - {part.label}: {told(part)}; {' '.join(part.keys)}" for part in verdict.parts]
    return "\n".join([*lines, "", *no_runs(rows)])


def frames(scales: Mapping[str, Sequence[Row]]) -> dict[str, pd.DataFrame]:
    """The table of all scales, `claims`, and what is behind each verdict, `verdicts`: a row a part."""
    shown = dict.fromkeys(column for rows in scales.values() for column in columns(rows))
    claims, verdicts = [], []
    for scale, rows in scales.items():
        for row in rows:
            own = marks(row)
            start = {"scale": scale, "claim": row.id}
            claims.append(start | {c: own.get(c, "") for c in shown} | {"counted": row.counted, "text": row.text})
            verdicts += [start | line for verdict in row.verdicts for line in _records(verdict)]
    return {"claims": pd.DataFrame(claims), "verdicts": pd.DataFrame(verdicts)} if claims else {}


def _records(verdict: Verdict) -> list[dict[str, object]]:
    whole = {"figures": verdict.column, **{n: getattr(verdict, n) for n in ("state", "why", "reason", "criterion")}}
    fields = ("label", "effect", "low", "high", "seeds")
    parts = verdict.parts or (Part("", verdict.state),)
    return [whole | {n: getattr(p, n) for n in fields} | {"keys": " ".join(p.keys)} for p in parts]
