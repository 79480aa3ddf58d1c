"""Draw the figures that have runs, judge the paper's claims by them, and put everything on one page.

    python src/figures.py                             # every figure, at every scale, that has runs
    python src/figures.py figure=fig01 scale=reduced  # one of them
    python src/figures.py model=alexnet data=digits   # the runs that match, whatever grid they came from

With figure=… or scale=…, further key=value change the runs as they do for train.py. Without, they choose runs by
the columns of `python src/runs.py list`. Writes PNG and SVG; without words, or with scale=… alone, also the
claims (claims.json) and a page of everything (index.html).
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from hydra.errors import HydraException

from smallbatch import store
from smallbatch.compose import CONF, compose
from smallbatch.config import ConfigError
from smallbatch.files import write_text
from smallbatch.grid import figure_config, figure_names
from smallbatch.lookup import Ended
from smallbatch.paper import figures, report
from smallbatch.paper.claims import Verdict, judge
from smallbatch.paper.collect import FigureRuns, collect
from smallbatch.paper.report import Picture
from smallbatch.store import Record
from smallbatch.table import differences, parse_choice, select, table

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
            _draw_figures(arguments.words, Ended(records), arguments)
    except (ConfigError, HydraException) as error:
        sys.exit(f"error: {error}")


def _draw_figures(words: list[str], ended: Ended, arguments: argparse.Namespace) -> None:
    """The figures that the words name, or all, at every scale that has runs. Raises ConfigError if none has."""
    asked = {name: word.partition("=")[2].split(",") for word in words for name in [word.partition("=")[0]]}
    names = figure_names(asked.get("figure", ["all"]))
    scales = asked.get("scale") or sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))
    rest = [word for word in words if not word.startswith(("figure=", "scale="))]
    changes = [word for word in rest if not word.startswith(("data.root=", "machine."))]
    pictures: dict[str, Picture] = {}
    verdicts = {}
    for scale in scales:
        gathered, problems = _gather(names, scale, rest, ended)
        for runs in (gathered[name] for name in names if name in gathered):
            stem = runs.name if runs.draw == "paths" else "-".join([runs.name, scale, *map(_file_name, changes)])
            if stem not in pictures and (picture := _draw(runs, gathered, changes, arguments.out / stem)):
                pictures[stem] = picture
        if problems and "scale" in asked and "figure" in asked:
            raise ConfigError("; ".join(problems))
        if any(len(runs.frame) for runs in gathered.values()):
            verdicts[scale] = judge(gathered)
    if not pictures:
        raise ConfigError(f"no run of {' '.join(words)} is there; train: python src/train.py -m {' '.join(words)}")
    if "figure" not in asked:
        _conclude(list(pictures.values()), verdicts, ended, arguments)


def _gather(names: list[str], scale: str, words: list[str], ended: Ended) -> tuple[dict[str, FigureRuns], list[str]]:
    """The runs of the figures, and of those that they summarise, at one scale; and why some cannot be told."""
    gathered, problems = {}, []
    for name in dict.fromkeys([*names, *(part for whole in names for part in figure_config(whole, compose).of)]):
        try:
            gathered[name] = collect(name, scale, words, compose, ended)
        except ConfigError as problem:
            problems.append(str(problem))
    return gathered, problems


def _draw(runs: FigureRuns, gathered: dict[str, FigureRuns], changes: list[str], stem: Path) -> Picture | None:
    """Draw a figure if it has runs, naming those that are missing, and what it has other than its config."""
    parts = [gathered[name] for name in runs.of if name in gathered and not gathered[name].frame.empty]
    if runs.frame.empty and not parts and runs.draw != "paths":
        return None
    changed = f" (with {' '.join(changes)})" if changes else ""
    paths = figures.save(figures.draw(replace(runs, title=runs.title + changed), parts), stem)
    for path in paths:
        print(path)
    for run in runs.missing[:MOST_NAMED]:
        print(f"missing: {run.label}")
    if len(runs.missing) > MOST_NAMED:
        print(f"missing: {len(runs.missing) - MOST_NAMED} more")
    return Picture(runs, paths[0])


def _conclude(
    pictures: list[Picture], verdicts: dict[str, list[Verdict]], ended: Ended, arguments: argparse.Namespace
) -> None:
    """Print the claims, and write them and the page."""
    for scale, judged in verdicts.items():
        print(f"\nclaims at scale {scale}{'' if scale == 'paper' else ', not the size of the paper'}")
        for verdict in judged:
            print(
                f"{verdict.id:>4} {verdict.verdict:<14} {verdict.text}"
                + (f" [{verdict.reason}]" if verdict.reason else "")
            )
    claims = {scale: [asdict(verdict) for verdict in judged] for scale, judged in verdicts.items()}
    write_text(arguments.out / "claims.json", json.dumps(claims, indent=1, ensure_ascii=False) + "\n")
    report.write(arguments.out / "index.html", arguments.store, list(ended.records.values()), pictures, verdicts)
    print(f"\n{arguments.out / 'claims.json'}\n{arguments.out / 'index.html'}")


def _draw_chosen(words: list[str], records: dict[str, Record], out: Path) -> None:
    """The runs whose columns match. Raises ConfigError if they differ in more than a sweep varies."""
    frame = select(table(records.values()), parse_choice(words))
    if frame.empty:
        raise ConfigError(f"no run matches {' '.join(words)}")
    if frame["setting"].nunique() > 1:
        raise ConfigError(f"these runs do not belong in one figure; choose among {differences(frame)}")
    stem = out / "-".join(["sweep", *map(_file_name, sorted(words))])
    for path in figures.save(figures.sweep(frame, "Sweep", f"{figures.describe(frame)}."), stem):
        print(path)


def _file_name(word: str) -> str:
    return word.replace("=", "_").replace("/", "over")


if __name__ == "__main__":
    main()
