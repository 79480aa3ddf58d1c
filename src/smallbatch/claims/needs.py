"""What to train next: the command whose runs would decide a verdict."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from smallbatch.claims.cells import LOOKS, PILOT, Untried, at_look, common_seeds
from smallbatch.figures.collect import FigureRuns
from smallbatch.grids.expand import figure_config


@dataclass(frozen=True)
class Need:
    """Figures at one scale whose runs, changed by further words, are wanted."""

    figures: tuple[str, ...]
    scale: str
    words: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """The words of the command line."""
        return [f"figure={','.join(self.figures)}", f"scale={self.scale}", *self.words]

    @property
    def command(self) -> str:
        """As it is typed; runs that are there are not trained again."""
        return shlex.join(["python", "src/train.py", "-m", *self.arguments])


def whole(names: Iterable[str], scale: str, runs: Mapping[str, FigureRuns], words: Sequence[str]) -> Need:
    """All runs of these figures, at the seeds of the first look, and of those whose best η̃ they wait for."""
    figures: list[str] = []
    for name in names:
        sweep = figure_config(name).rates_of
        figures += [sweep, name] if sweep and name not in runs else [name]
    seeded = any(word.startswith(("seed=", "seeds=")) for word in words)
    return Need(tuple(dict.fromkeys(figures)), scale, tuple(words) if seeded else _changed(words, seeds=[LOOKS[0]]))


def more_seeds(figures: Sequence[FigureRuns], first: int, words: Sequence[str]) -> list[Need]:
    """The figures with the seeds of the next look; nothing beyond the last."""
    there = len(common_seeds(*figures, first=first))
    wanted = next((look for look in LOOKS if look > there), 0)
    names = tuple(figure.name for figure in figures)
    seeds = {"seeds": [wanted]} if first == PILOT + 1 else {"seed": list(range(first, first + wanted))}
    return [Need(names, figures[0].scale, _changed(words, **seeds))] if wanted else []


def more_cells(
    untried: Iterable[Untried], first: int, runs: Mapping[str, FigureRuns], words: Sequence[str]
) -> list[Need]:
    """The cells, each at its figure's seeds, as few products of m and η̃."""
    sizes: dict[tuple[str, float], list[int]] = {}
    for name, m, rate in sorted(set(untried)):
        sizes.setdefault((name, rate), []).append(m)
    rates: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (name, rate), some in sizes.items():
        rates.setdefault((name, tuple(some)), []).append(_typed(rate))
    seeds = {name: at_look(common_seeds(runs[name], first=first)) for name, _ in rates}
    return [
        Need((name,), runs[name].scale, _changed(words, batch_size=some, base_lr=each, seed=seeds[name]))
        for (name, some), each in rates.items()
    ]


def merged(needs: Iterable[Need]) -> list[Need]:
    """Those that differ in their figures alone as one; what takes a best η̃ is trained last anyway."""
    figures: dict[tuple[str, tuple[str, ...]], dict[str, None]] = {}
    for need in needs:
        figures.setdefault((need.scale, need.words), {}).update(dict.fromkeys(need.figures))
    return [Need(tuple(sorted(names)), *rest) for rest, names in figures.items()]


def _changed(words: Sequence[str], **axes: Iterable[object]) -> tuple[str, ...]:
    gone = {*axes} | ({"seed", "seeds"} if {"seed", "seeds"} & {*axes} else set())
    kept = [word for word in words if word.partition("=")[0] not in gone]
    return (*kept, *(f"{name}={','.join(map(str, values))}" for name, values in axes.items()))


def _typed(rate: float) -> str:
    """`1/512`, which no shell reads as a pattern; other numbers as they are."""
    fraction = Fraction(rate)
    return str(fraction) if fraction.denominator < 2**40 else repr(rate)
