"""The claims of the paper judged on the runs that are there: a table of verdicts, a row a claim.

A verdict is one claim on one figure, or on the figures that it compares, at one scale. A claim as a whole has none: its
row is counted. `README.md` beside this file says how a verdict comes about.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from smallbatch.claims.bn_batch import C11
from smallbatch.claims.cells import LOOKS, Undecided, count, read
from smallbatch.claims.claim import Claim, Test
from smallbatch.claims.imagenet import C10
from smallbatch.claims.needs import Need, more_cells, more_seeds, whole
from smallbatch.claims.ranges import C2
from smallbatch.claims.statistics import EDGE, SEEDS, SUPPORTED, UNDECIDED, Part, all_of, undecided_as
from smallbatch.claims.training import C8, C9, C12
from smallbatch.claims.with_bn import C3, C6, C7, C13
from smallbatch.claims.without_bn import C1, C4, C5
from smallbatch.figures.collect import FigureRuns

CLAIMS = (C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13)
SHARES = (0.25, 0.5, 0.75)  # where reliability is judged; the verdict is that at ½
NOT_TRAINED = "not trained"
NO_RUNS, INCOMPLETE = "no runs", "incomplete"  # why it is not
STATES = {"supported": "supported in", "not supported": "not in", UNDECIDED: "undecided", NOT_TRAINED: NOT_TRAINED}
NAMED = 3  # parts in a reason; more are counted
FORM = 2  # of claims.json; to be raised when a field changes its meaning or goes


@dataclass(frozen=True)
class Verdict:
    """A claim judged on one figure, or on the figures that it compares, at one scale.

    `state`: one of STATES; `why`: of an undecided one "seeds", "edge" or "noise", of one not trained "no runs" or
    "incomplete"; `reason`: that in full; `by_share`: where it asks what is reliable, the state at each share; `needs`:
    the runs that would decide it.
    """

    figures: tuple[str, ...]
    scale: str
    state: str
    why: str
    reason: str
    criterion: str
    stand_in: str = ""
    parts: tuple[Part, ...] = ()
    by_share: dict[float, str] = field(default_factory=dict)
    needs: tuple[Need, ...] = ()

    @property
    def column(self) -> str:
        """`fig10`, or `fig10 / fig08` of a comparison."""
        return " / ".join(self.figures)


@dataclass(frozen=True)
class Row:
    """A claim and its verdicts: figures first, then comparisons."""

    id: str
    text: str
    verdicts: tuple[Verdict, ...]

    @property
    def counted(self) -> str:
        """`supported in 2, not in 1, 3 undecided, 5 not trained`."""
        numbers = Counter(verdict.state for verdict in self.verdicts)
        told = [(words, numbers[state]) for state, words in STATES.items() if numbers[state]]
        return ", ".join(f"{words} {n}" if words.endswith(" in") else f"{n} {words}" for words, n in told)


def judge(runs: Mapping[str, FigureRuns], words: Sequence[str] = ()) -> list[Row]:
    """All claims in order, from the figures of one scale by name; `words` changed these figures' runs."""
    return [_row(claim, runs, words) for claim in CLAIMS]


def _row(claim: Claim, runs: Mapping[str, FigureRuns], words: Sequence[str] = ()) -> Row:
    tests: dict[tuple[str, ...], list[Test]] = defaultdict(list)
    for test in claim.tests:
        tests[test.figures].append(test)
    columns = sorted(tests, key=lambda figures: (len(figures), figures))
    return Row(claim.id, claim.text, tuple(_verdict(figures, tests[figures], runs, words) for figures in columns))


def with_figure(rows: Iterable[Row], names: Sequence[str]) -> list[Row]:
    """The verdicts that rest on one of these figures."""
    kept = [replace(row, verdicts=tuple(v for v in row.verdicts if set(names) & set(v.figures))) for row in rows]
    return [row for row in kept if row.verdicts]


def partners(names: Sequence[str]) -> list[str]:
    """The other figures that claims compare with these."""
    compared = [test.figures for claim in CLAIMS for test in claim.tests if set(names) & set(test.figures)]
    return sorted({name for figures in compared for name in figures}.difference(names))


def _verdict(
    figures: tuple[str, ...], tests: list[Test], runs: Mapping[str, FigureRuns], words: Sequence[str]
) -> Verdict:
    there = [runs[name] for name in figures if name in runs]
    scale = next((figure.scale for figure in runs.values()), "")
    criterion = " ".join(dict.fromkeys(test.criterion for test in tests))
    lacking = {name: lack for name in figures if (lack := _lacks(name, runs))}
    if lacking:
        empty = any(name not in runs or runs[name].frame.empty for name in lacking)
        why, reason = (NO_RUNS if empty else INCOMPLETE), "; ".join(lacking.values())
        return Verdict(figures, scale, NOT_TRAINED, why, reason, criterion, needs=(whole(lacking, scale, runs, words),))
    parts = _parts(tests, there)
    state = _state(parts)
    why, wanted = _wanting(tests, parts, there, runs, words) if state == UNDECIDED else ("", ())
    shares = SHARES if any(test.reliability for test in tests) else ()
    return Verdict(
        figures=figures,
        scale=scale,
        state=state,
        why=why,
        reason=_reason(state, parts),
        criterion=criterion,
        stand_in="; ".join(f"{figure.name}: {figure.stand_in}" for figure in there if figure.stand_in),
        parts=tuple(parts),
        by_share={share: _state(_parts(tests, there, share)) for share in shares},
        needs=wanted,
    )


def _lacks(name: str, runs: Mapping[str, FigureRuns]) -> str:
    """What a figure lacks, in words; "" if nothing."""
    if name not in runs or runs[name].frame.empty:
        return f"{name} has no runs"
    missing = len(runs[name].missing)
    return f"{name} lacks {count(missing, 'run')}" if missing else ""


def _parts(tests: list[Test], figures: list[FigureRuns], share: float = 0.5) -> list[Part]:
    parts: list[Part] = []
    for test in tests:
        try:
            together = [figures] if not test.own_seeds else [[figure] for figure in figures]
            found = [cells for some in together for cells in read(*some, first=test.first, share=share)]
            parts.extend(
                _look(part, min(len(cells.seeds) for cells in found)) for part in test.run(*found, **test.given)
            )
        except Undecided as no:
            why = SEEDS if no.need else EDGE
            parts.append(Part(str(no), UNDECIDED, why=why, beyond=no.beyond))
    return list(dict.fromkeys(parts))  # several tests of one figure may lack the same


def _look(part: Part, seeds: int) -> Part:
    """A part as it counts with so many seeds: before the first look it waits."""
    if seeds >= LOOKS[0] or part.why == EDGE:
        return part
    return replace(part, verdict=UNDECIDED, reason=f"{count(seeds, 'seed')} of {LOOKS[0]}", why=SEEDS)


def _state(parts: list[Part]) -> str:
    return all_of(part.verdict for part in parts if part.counts)


def _wanting(
    tests: list[Test],
    parts: list[Part],
    figures: list[FigureRuns],
    runs: Mapping[str, FigureRuns],
    words: Sequence[str],
) -> tuple[str, tuple[Need, ...]]:
    """Why the parts are undecided, and the runs that would decide them."""
    first = max(test.first for test in tests)
    why, beyond = undecided_as(part for part in parts if part.counts)
    if why == EDGE:
        return why, tuple(more_cells(beyond, first, runs, words))
    return why, tuple(more_seeds(figures, first, words))


def _reason(state: str, parts: list[Part]) -> str:
    """One line: the parts that made it what it is, the first few by name."""
    if state == SUPPORTED:
        return ""
    told = [f"{p.label}: {p.reason}" if p.reason else p.label for p in parts if p.counts and p.verdict == state]
    told = list(dict.fromkeys(told))
    more = f"; and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return "; ".join(told[:NAMED]) + more


def plain(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The table of one scale as plain values, as in claims.json (see README.md)."""
    return [
        {"id": row.id, "text": row.text, "counted": row.counted, "verdicts": [_plain(v) for v in row.verdicts]}
        for row in rows
    ]


def _plain(verdict: Verdict) -> dict[str, Any]:
    names = ("state", "why", "reason", "criterion", "stand_in")
    return {
        "column": verdict.column,
        "figures": list(verdict.figures),
        **{name: getattr(verdict, name) for name in names},
        "by_share": {str(share): state for share, state in verdict.by_share.items()},
        "train": [need.command for need in verdict.needs],
        "parts": [
            {name: value for name, value in asdict(part).items() if name != "beyond"}
            | {"in_training": part.in_training}
            for part in verdict.parts
        ],
    }
