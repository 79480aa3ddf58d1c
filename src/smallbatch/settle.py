"""A verdict or an answer within hours: train what decides soonest, look, and go on until it is decided or time is up.

`settle=C4` decides a claim on the figures named, look by look (3, 5, 8 seeds), with the runs that its verdicts ask for.
Without `settle`, `hours=8` bounds any grid, and one with `seeds=N` goes on to the next look while its answer is open.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from smallbatch import signals, store
from smallbatch.answer import answer, by_setting
from smallbatch.claims.judge import CLAIMS, Verdict, judge
from smallbatch.claims.needs import Need
from smallbatch.claims.statistics import REFUTED, SUPPORTED
from smallbatch.claims.text import told
from smallbatch.cli import is_beside
from smallbatch.compose import parse_words
from smallbatch.config import Config
from smallbatch.data import describe
from smallbatch.ended import Ended
from smallbatch.errors import ConfigError, NotYet
from smallbatch.figures.collect import Asked, gather
from smallbatch.grids.best_rates import best_rates
from smallbatch.grids.expand import expand, stages
from smallbatch.grids.price import Prices, expected_share, price_of, rest_of_search, words
from smallbatch.grids.summary import Tell
from smallbatch.grids.sweep import Launch, train_grid
from smallbatch.ranges import ranges, refused
from smallbatch.store import Record

RANGE: Any = ranges(Config)["hours"]
Train = Callable[[list[str], Tell | None], bool]


class Clock:
    """The hours given, from now on; None: no end."""

    def __init__(self, hours: float | None) -> None:
        self.start, self.seconds = time.monotonic(), None if hours is None else 3600 * hours

    @property
    def took(self) -> str:
        """`12 min`."""
        return words(time.monotonic() - self.start)

    @property
    def spent(self) -> bool:
        """Whether they are over."""
        return self.seconds is not None and time.monotonic() - self.start >= self.seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """Interrupt this process when they are over, as Ctrl-C does: what runs keeps its last whole epoch."""
        with nullcontext() if self.seconds is None else signals.after(self.seconds):
            yield


def settle(arguments: list[str], launch: Launch, cfg: DictConfig, tell: Tell) -> bool:
    """Train a command line with `settle` or `hours`; whether all that it asked for is decided or trained.

    Raises ConfigError, KeyboardInterrupt on Ctrl-C.
    """
    given, _ = parse_words([word for word in arguments if word.startswith(("settle=", "hours="))])
    rest = [word for word in arguments if not word.startswith(("settle=", "hours="))]
    clock = Clock(_hours(given.get("hours", ["null"])))
    train = partial(train_grid, launch, cfg)
    try:
        with clock.running():
            if given.get("settle", ["null"]) != ["null"]:
                return _settle_claims(given["settle"], rest, cfg, train, clock)
            return _settle_answer(rest, cfg, train, tell, clock)
    except KeyboardInterrupt:
        if not clock.spent:
            raise
        print(f"the hours are spent ({clock.took}): the same command goes on from here")
        return False


def _hours(given: list[str]) -> float | None:
    try:
        hours = None if given == ["null"] else float(" ".join(given))
    except ValueError:
        hours = 0.0
    if len(given) > 1 or hours not in RANGE:
        raise ConfigError(refused(Config, "hours", ",".join(given)))
    return hours


def _settle_answer(arguments: list[str], cfg: DictConfig, train: Train, tell: Tell, clock: Clock) -> bool:
    """Train a grid, and with `seeds=N` to the next look while its answer is open."""
    while True:
        seen: list[Record] = []

        def keep(records: list[Record], folder: Path, seen: list[Record] = seen) -> list[str]:
            seen.extend(records)
            return tell(records, folder)

        complete = train(arguments, keep)
        answers = [answer(some, cfg.margin) for some in by_setting(seen)] if seen else []
        look = max((found.next_look or 0 for found in answers if not isinstance(found, str)), default=0)
        seeds = next((word for word in arguments if word.startswith("seeds=")), "")
        if not complete or not look or not seeds:
            return complete
        arguments = [f"seeds={look}" if word == seeds else word for word in arguments]
        print(f"\nundecided after {clock.took}: on to seeds={look}", flush=True)


def _settle_claims(ids: list[str], arguments: list[str], cfg: DictConfig, train: Train, clock: Clock) -> bool:
    """Train what the claims' verdicts on the figures named ask for, the cheapest first, until all are decided."""
    describing = [word for word in arguments if not is_beside(word)]
    beside = [word for word in arguments if is_beside(word)]
    if not any(word.startswith("scale=") for word in describing):
        describing.append("scale=paper")
    asked = Asked.of(describing)
    if not asked.by_name or len(asked.scales) > 1:
        raise ConfigError("settle=… goes with figure=… and one scale=…")
    folders, done = Path(cfg.store), set()
    prices = Prices(folders.parent / "calibration.json")
    while True:
        ended = Ended(store.ended(folders))
        verdicts = _verdicts(ids, asked, ended)
        print(f"\nafter {clock.took}:", *(_line(*named) for named in verdicts), sep="\n", flush=True)
        opened = [verdict for _, verdict in verdicts if verdict.state not in (SUPPORTED, REFUTED)]
        if not opened:
            return True
        needs = {need.command: need for verdict in opened for need in verdict.needs if need.command not in done}
        costs = {name: _cost(need, beside, ended, prices) for name, need in needs.items()}
        if not costs:
            print("no more seeds or η̃ would settle it: see the reasons above")
            return False
        command = min(costs, key=lambda name: costs[name])
        print(f"training {command}, about {words(costs[command])}", flush=True)
        if not train([*needs[command].arguments, *beside], None):
            return False
        done.add(command)


def _verdicts(ids: list[str], asked: Asked, ended: Ended) -> list[tuple[str, Verdict]]:
    """The claims' verdicts that rest on the figures named alone. Raises ConfigError if a claim has none."""
    known = {claim.id: claim for claim in CLAIMS}
    for name in ids:
        if name not in known:
            raise ConfigError(f"settle={name}: is no claim; there are {', '.join(known)}")
        columns = {test.figures for test in known[name].tests}
        if not any(set(figures) <= set(asked.figures) for figures in columns):
            there = "; ".join(f"figure={','.join(figures)}" for figures in sorted(columns))
            raise ConfigError(f"settle={name}: rests on other figures: {there}")
    gathered, problems = gather(asked, asked.scales[0], ended)
    if wrong := [problem for problem in problems if not isinstance(problem, NotYet)]:
        raise wrong[0]
    return [
        (row.id, verdict)
        for row in judge(gathered, asked.changes)
        if row.id in ids
        for verdict in row.verdicts
        if set(verdict.figures) <= set(asked.figures)
    ]


def _line(claim: str, verdict: Verdict) -> str:
    why = f" ({verdict.why}): {verdict.reason}" if verdict.why else ""
    parts = [f"\n    {part.label}: {told(part)}" for part in verdict.parts if part.counts and part.effect is not None]
    return f"  {claim} {verdict.column}: {verdict.state}{why}{''.join(parts)}"


def _cost(need: Need, beside: Sequence[str], ended: Ended, prices: Prices) -> float:
    """Seconds that its runs are expected to take, as far as is known."""
    total = 0.0
    for stage in stages([*need.arguments, *beside]):
        try:
            grid = expand(stage, rates=best_rates(ended, describe), look=ended.look)
        except NotYet:
            continue  # what takes the best η̃ of runs that are not there yet
        missing: list[Any] = [point for point in grid.points if point.run.key not in ended.records]
        total += sum(price_of(p, prices, expected_share(p.run, ended.alike(p.run))) for p in missing)
        total += rest_of_search(grid, prices)[0]
    return total
