"""`base_lr=search`: the η̃ that are worth a run, uphill by octaves, from the runs that have ended.

Nothing is remembered: a search is played again from its start over the results that are there, and what it lacks is
what to train next. So it goes on where it stopped, whoever trained the runs.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

from omegaconf import DictConfig

from smallbatch.errors import ConfigError
from smallbatch.powers import parse_power
from smallbatch.run import Run, setting
from smallbatch.table import least_reliable

EXPECTED = 5  # η̃ a batch size, for a price
RELIABLE = 0.5  # of the way from chance to the best, as figure 16 has it

Result = dict[str, Any]  # of result.json
Look = Callable[[Run], Result | None]  # what is known of a run


@dataclass(frozen=True)
class Bounds:
    """Octaves to stay between, where the smallest batch size starts, and how many to try at most."""

    start: int = -10
    lowest: int = -20
    highest: int = 0
    points: int = 12

    @classmethod
    def of(cls, search: DictConfig) -> "Bounds":
        """From the settings `search`. Raises ConfigError."""
        start, lowest, highest = (_octave(name, search[name]) for name in ("start", "lowest", "highest"))
        made = cls(start, lowest, highest, search.points)
        if not made.lowest <= made.start <= made.highest:
            raise ConfigError("search: search.start must lie between search.lowest and search.highest")
        return made


def _octave(name: str, value: float | str) -> int:
    mantissa, exponent = math.frexp(parse_power(value, f"search.{name}"))
    if mantissa != 0.5:
        raise ConfigError(f"search.{name}={value}: must be a power of two, as 2**-10: a search goes by octaves")
    return exponent - 1


class Path(NamedTuple):
    """A search so far: the octaves asked for, those of them without a result, the best, and what stopped it early."""

    asked: list[int]
    missing: list[int]
    best: int | None = None
    stopped: str = ""


def climb(look: Callable[[int], list[Result] | None], start: int, bounds: Bounds, best_before: float = 0.0) -> Path:
    """Search for the best octave; `look` gives an octave's results, one a seed, or None while one is missing.

    It ends when the best has a neighbour on each side for every choice that leaves a seed out, and one octave above the
    highest reliable one is known. `best_before`: the best score of smaller batch sizes, for what is reliable.
    """
    asked = [start]
    while True:
        known = {octave: found for octave in asked if (found := look(octave))}
        if missing := [octave for octave in asked if octave not in known]:
            return Path(asked, missing)
        best, wanted = _next(known, best_before, bounds)
        new = [octave for octave in wanted if octave not in known]
        room = bounds.points - len(asked)
        if not new or not room:
            ends = {bounds.lowest: "search.lowest", bounds.highest: "search.highest"}
            return Path(asked, [], best, "search.points" if new else ends.get(best, "") if best is not None else "")
        asked += new[:room]


def _next(known: dict[int, list[Result]], best_before: float, bounds: Bounds) -> tuple[int | None, list[int]]:
    """The best octave of those known, None where nothing has learnt, and the octaves that a search would know."""
    some = next(iter(known.values()))[0]
    scores = {octave: [result["score"] for result in results] for octave, results in known.items()}
    best = _best(scores)

    def least(highest: float) -> float:
        return least_reliable(100 * highest, 100 * some["chance"], some["test_images"], RELIABLE) / 100

    def inside(octaves: Sequence[int]) -> list[int]:
        return [octave for octave in octaves if bounds.lowest <= octave <= bounds.highest]

    if math.isinf(least(fmean(scores[best]))):  # nothing learns: lower, and higher unless the loss is not finite there
        diverged = any(result["status"] == "diverged" for result in known[max(known)])
        return None, inside([min(known) - 1, *([] if diverged else [max(known) + 1])])
    sides = inside([choice + side for choice in _choices(scores) for side in (-1, 1)])
    if any(octave not in known for octave in sides):
        return best, sides
    threshold = least(max(best_before, fmean(scores[best])))
    reliable = [octave for octave in scores if min(scores[octave]) >= threshold]
    return best, inside([max(reliable, default=best) + 1])


def _best(scores: dict[int, list[float]]) -> int:
    """The octave of the highest mean, ties to the smaller."""
    return max(sorted(scores), key=lambda octave: fmean(scores[octave]))


def _choices(scores: dict[int, list[float]]) -> list[int]:
    """The best octave by all seeds, and by all but each."""
    seeds = len(next(iter(scores.values())))
    left_out = [{octave: s[:i] + s[i + 1 :] for octave, s in scores.items()} for i in range(seeds)] if seeds > 1 else []
    return sorted({_best(some) for some in (scores, *left_out)})


class Searched(NamedTuple):
    """Searches so far: the runs asked for, the templates of what goes on, and what ended others early."""

    runs: list[tuple[Any, Run]]
    open: list[tuple[Any, Run]]
    notes: list[str]


def searched(templates: Sequence[tuple[Any, Run]], look: Look, bounds: Bounds) -> Searched:
    """Search each kind of run among the templates, which are runs at any η̃, with what they came from.

    A kind is all but η̃ and seed. The kinds of a setting go one after the other, by batch size and then BN batch, since
    each starts where the one before was best.
    """
    chains: dict[str, dict[tuple[int, int], list[tuple[Any, Run]]]] = defaultdict(lambda: defaultdict(list))
    for source, run in templates:
        chains[setting(run)][run.batch_size, run.bn_batch_size or run.batch_size].append((source, run))
    found, unfinished, notes = [], [], []
    for kinds in chains.values():
        start, best_before = bounds.start, 0.0
        for done, kind in enumerate(sorted(kinds)):
            same = kinds[kind]

            def results(octave: int, same: list[tuple[Any, Run]] = same) -> list[Result] | None:
                there = [look(_at(run, octave)) for _, run in same]
                return None if None in there else there  # type: ignore[return-value]

            path = climb(results, start, bounds, best_before)
            found += [(source, _at(run, octave)) for octave in path.asked for source, run in same]
            if path.missing:
                unfinished += [template for later in sorted(kinds)[done:] for template in kinds[later]]
                break
            if path.stopped:
                notes.append(f"{_name(same[0][1])}: {_WHY[path.stopped]}; see {path.stopped}")
            if path.best is None:
                notes.append(f"{_name(same[0][1])}: learns at none of {len(path.asked)} η̃")
            else:
                best_before = max(best_before, fmean(r["score"] for r in results(path.best) or []))
                start = path.best
    return Searched(found, unfinished, notes)


_WHY = {
    "search.points": "the most η̃ allowed are tried",
    "search.lowest": "its best η̃ is the lowest allowed",
    "search.highest": "its best η̃ is the highest allowed",
}


def _at(run: Run, octave: int) -> Run:
    return replace(run, base_lr=2.0**octave)


def _name(run: Run) -> str:
    """The run's label up to its η̃."""
    return run.label.partition(" η̃=")[0]
