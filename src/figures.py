"""Draw figures from the runs in the store.

    python src/figures.py                             # every figure, at every scale, that has runs
    python src/figures.py figure=fig01 scale=reduced  # one of them
    python src/figures.py model=alexnet data=digits   # the runs that match, whatever grid they came from

With figure=…, further key=value change its runs as they do for train.py. Without, they choose runs by
the columns of `python src/runs.py list`. Writes PNG and SVG.
"""

import argparse
import sys
from pathlib import Path

from hydra.errors import HydraException

from smallbatch import store
from smallbatch.compose import CONF, compose
from smallbatch.config import ConfigError
from smallbatch.grid import figure_config, figure_names
from smallbatch.lookup import Ended
from smallbatch.paper.collect import FigureRuns, collect
from smallbatch.store import Record

MOST_NAMED = 20  # missing runs of one figure


def main() -> None:
    """Draw what was asked for; a wrong use is one line and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("outputs/runs"), help="run folders (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/figures"), help="pictures (default: %(default)s)")
    parser.add_argument("words", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    try:
        records = store.ended(arguments.store)
        if not records and "figure=sgd_paths" not in arguments.words:
            raise ConfigError(f"no ended runs in {arguments.store}; train some with `python src/train.py -m …`")
        if arguments.words and not any(word.startswith(("figure=", "scale=")) for word in arguments.words):
            _draw_chosen(arguments.words, records, arguments.out)
        else:
            _draw_figures(arguments.words, Ended(records), arguments.out)
    except (ConfigError, HydraException) as error:
        sys.exit(f"error: {error}")


def _draw_figures(words: list[str], ended: Ended, out: Path) -> None:
    """The figures that the words name, or all, at every scale that has runs. Raises ConfigError if none has."""
    asked = {name: word.partition("=")[2].split(",") for word in words for name in [word.partition("=")[0]]}
    names = figure_names(asked.get("figure", ["all"]))
    scales = asked.get("scale") or sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))
    rest = [word for word in words if not word.startswith(("figure=", "scale="))]
    drawn = 0
    for scale in scales:
        gathered: dict[str, FigureRuns] = {}
        problems = []
        for name in [*names, *(part for whole in names for part in figure_config(whole, compose).of)]:
            try:
                gathered.setdefault(name, collect(name, scale, rest, compose, ended))
            except ConfigError as problem:
                problems.append(str(problem))
        drawn += sum(_draw_one(gathered[name], gathered, out) for name in names if name in gathered)
        if problems and asked.get("scale"):
            raise ConfigError("; ".join(problems))
    if not drawn:
        raise ConfigError(f"no run of {' '.join(words)} is there; train: python src/train.py -m {' '.join(words)}")


def _draw_one(runs: FigureRuns, gathered: dict[str, FigureRuns], out: Path) -> bool:
    """Draw a figure if it has runs, naming those that are missing."""
    from smallbatch.paper import figures

    parts = [gathered[name] for name in runs.of if name in gathered and not gathered[name].frame.empty]
    if runs.frame.empty and not parts and runs.draw != "paths":
        return False
    stem = runs.name if runs.draw == "paths" else f"{runs.name}-{runs.scale}"
    for path in figures.save(figures.draw(runs, parts), out / stem):
        print(path)
    for run in runs.missing[:MOST_NAMED]:
        print(f"missing: {run.label}")
    if len(runs.missing) > MOST_NAMED:
        print(f"missing: {len(runs.missing) - MOST_NAMED} more")
    return True


def _draw_chosen(words: list[str], records: dict[str, Record], out: Path) -> None:
    """The runs whose columns match. Raises ConfigError if they differ in more than a sweep varies."""
    from smallbatch.paper import figures
    from smallbatch.table import differences, parse_choice, select, table

    frame = select(table(records.values()), parse_choice(words))
    if frame.empty:
        raise ConfigError(f"no run matches {' '.join(words)}")
    if frame["setting"].nunique() > 1:
        raise ConfigError(f"these runs do not belong in one figure; choose among {differences(frame)}")
    stem = out / "-".join(["sweep", *(word.replace("=", "_").replace("/", "over") for word in sorted(words))])
    for path in figures.save(figures.sweep(frame, "Sweep", f"{figures.describe(frame)}."), stem):
        print(path)


if __name__ == "__main__":
    main()
