"""Draw figures from the runs in the store.

    python src/figures.py                             # every figure, at every scale, that has runs
    python src/figures.py figure=fig01 scale=reduced  # one of them
    python src/figures.py model=alexnet data=digits   # the runs that match, whatever grid they came from

With figure=…, further key=value change its runs as they do for train.py. Without, they choose runs by
the columns of `python src/runs.py list`. Writes PNG and SVG.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from smallbatch import store
from smallbatch.compose import CONF, compose
from smallbatch.config import ConfigError, Figure
from smallbatch.data import Description
from smallbatch.data.folders import preparation
from smallbatch.grid import expand, figure_config
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
        if not records:
            raise ConfigError(f"no ended runs in {arguments.store}; train some with `python src/train.py -m …`")
        if any(word.startswith("figure=") for word in arguments.words):
            drawn = _draw_figure(arguments.words, records, arguments.out)
        elif arguments.words:
            drawn = _draw_chosen(arguments.words, records, arguments.out)
        else:
            drawn = _draw_all(records, arguments.out)
    except (ConfigError, HydraException) as error:
        sys.exit(f"error: {error}")
    if not drawn:
        sys.exit(f"no figure has runs in {arguments.store}")


def _draw_all(records: dict[str, Record], out: Path) -> int:
    """Every figure at every scale of which the store has a run."""
    drawn = 0
    for path in sorted((CONF / "figure").glob("*.yaml")):
        for scale in figure_config(path.stem, compose).scales:
            drawn += _draw_figure([f"figure={path.stem}", f"scale={scale}"], records, out, quiet=True)
    return drawn


def _draw_figure(words: list[str], records: dict[str, Record], out: Path, quiet: bool = False) -> int:
    """One figure from its runs, naming those that are missing; 0 if it has none (an error unless `quiet`)."""
    from smallbatch.paper import figures
    from smallbatch.table import table

    grid = expand(words, compose, _described_by(records))
    present = [records[p.run.key] for p in grid.points if p.run.key in records]
    missing = [p for p in grid.points if p.run.key not in records]
    if not present:
        if not quiet:
            raise ConfigError(f"no run of {' '.join(words)} is there; train: python src/train.py -m {' '.join(words)}")
        return 0
    frame = table(present)
    name, title = "-".join(f.name for f in grid.figures), _title(grid.figures)
    scale = next((word.partition("=")[2] for word in words if word.startswith("scale=")), "paper")
    note = f"{figures.describe(frame)}. Scale: {scale}" + ("" if scale == "paper" else ", not the paper's size") + "."
    for path in figures.save(figures.sweep(frame, title, note, len(grid.points)), out / f"{name}-{scale}"):
        print(path)
    for point in missing[:MOST_NAMED]:
        print(f"missing: {point.run.label}")
    if len(missing) > MOST_NAMED:
        print(f"missing: {len(missing) - MOST_NAMED} more")
    return 1


def _described_by(records: dict[str, Record]) -> Callable[[dict[str, Any]], Description]:
    """What the data of a figure are, as its runs know it: drawing needs no images, and downloads none.

    If runs of one name saw different images, those seen by the most runs are meant.
    """
    seen = Counter((record.run.data["name"], record.run.data["fingerprint"]) for record in records.values())
    fingerprints = {name: fingerprint for (name, fingerprint), _ in reversed(seen.most_common())}

    def describe(data: dict[str, Any]) -> Description:
        sizes = (data["train_size"] or sys.maxsize, data["test_size"] or sys.maxsize)
        fingerprint = fingerprints.get(data["name"], "")
        return Description(data["name"], Path(), fingerprint, 0, *sizes, (sys.maxsize, sys.maxsize), preparation(data))

    return describe


def _title(figures: list[Figure]) -> str:
    return "; ".join(f"Figure {figure.name.removeprefix('fig').lstrip('0')}: {figure.title}" for figure in figures)


def _draw_chosen(words: list[str], records: dict[str, Record], out: Path) -> int:
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
    return 1


if __name__ == "__main__":
    main()
