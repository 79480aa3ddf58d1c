"""Draw the figures that have runs, judge the paper's claims by them, and put everything on one page.

    python src/figures.py                             # every figure, at every scale, that has runs
    python src/figures.py figure=fig01 scale=reduced  # one of them
    python src/figures.py model=alexnet data=digits   # the runs that match, whatever grid they came from

Words are settings: with figure=… or scale=… they change the figures' runs as they do for train.py, without they say
which settings the runs have. Writes PNG and SVG, and prints the claims that rest on these figures; without words, or
with scale=… alone, writes them too (claims.json), with a page of everything (index.html). With logger=wandb all this
goes to a Weights & Biases project too.
"""

from smallbatch import signals, surroundings

if __name__ == "__main__":
    surroundings.shut_out()  # before the imports below read the variables of other tools
    signals.at_once()  # while they take seconds

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from smallbatch import answer, cli, store
from smallbatch.claims import judge, text
from smallbatch.claims.judge import Row
from smallbatch.claims.needs import whole
from smallbatch.compose import parse_settings
from smallbatch.ended import Ended
from smallbatch.errors import ConfigError, NotYet
from smallbatch.figures import draw, panels
from smallbatch.figures import page as report
from smallbatch.figures.collect import Asked, FigureRuns, gather, names_figures
from smallbatch.figures.page import Picture
from smallbatch.files import write_text
from smallbatch.store import Record
from smallbatch.table import differences, keep, select, table
from smallbatch.tracking import project
from smallbatch.tracking.place import Place, settled

MOST_NAMED = 20  # missing runs of one figure


def main() -> None:
    """Draw what was asked for; a wrong use is one line and exit status 1."""
    parser = cli.parser(__doc__)
    cli.add_words(parser)
    cli.add_where(parser)
    parser.add_argument("--source", choices=["store", "wandb"], default="store", help="where the runs are read from")
    parser.add_argument("--out", type=Path, default=Path("outputs/figures"), help="pictures (default: %(default)s)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the verdicts as Markdown too")
    arguments = parser.parse_intermixed_args()
    with cli.one_line_errors():
        words, cfg = cli.sort(arguments.words, arguments.config_dir)
        folders, place = Path(cfg.store), Place.of(cfg)
        records = project.records(place) if arguments.source == "wandb" else store.ended(folders)
        records = keep(records, arguments.where)
        if not records and words != ["figure=sgd_paths"]:
            raise ConfigError(f"no ended runs in {folders} that match; train some with `python src/train.py -m …`")
        if names_figures(words) or not words:
            drawn = _draw_figures(words, Ended(records), folders, arguments.out, cfg.margin)
        else:
            drawn = _draw_chosen(words, records, arguments.out, cfg.margin)
        if arguments.markdown:
            write_text(arguments.markdown, "\n\n".join(map(text.markdown, drawn.claims.values())) + "\n")
        if cfg.logger.name == "wandb":
            _log(drawn, table(records.values()), place)


@dataclass(frozen=True)
class Drawn:
    """What was made: files, the claims by scale, and the page if there is one."""

    paths: list[Path]
    claims: dict[str, list[Row]] = field(default_factory=dict)
    page: Path | None = None


def _log(drawn: Drawn, runs: pd.DataFrame, place: Place) -> None:
    """Add what was drawn to the W&B project. Raises SmallBatchError if W&B does not take it: the files are there."""
    place = settled(place, lambda line: None)
    if place.mode != "disabled":
        answers = {path.stem: pd.read_csv(path) for path in drawn.paths if path.suffix == ".csv"}
        tables = {"runs": runs} | text.frames(drawn.claims) | answers
        where = project.add_figures(place, drawn.paths, tables, drawn.page)
        print(where if place.mode == "online" else f"W&B: offline; upload with `wandb sync {where}`")


def _draw_figures(words: list[str], ended: Ended, folders: Path, out: Path, margin: float) -> Drawn:
    """The figures that the words name, or all, at every scale that has runs. Raises ConfigError if none has."""
    asked = Asked.of(words)
    pictures: dict[str, Picture] = {}
    claims: dict[str, list[Row]] = {}
    problems: dict[str, None] = {}
    for scale in asked.scales:
        gathered, wrong = gather(asked, scale, ended)
        wrong += _draw_scale(asked, scale, gathered, out, pictures)
        if wrong and asked.by_name and len(asked.scales) == 1:
            raise ConfigError("; ".join(map(str, wrong)))
        problems |= dict.fromkeys(str(problem) for problem in wrong if not isinstance(problem, NotYet))
        if any(len(runs.frame) for runs in gathered.values()):
            claims[scale] = _judge(asked, scale, gathered, ended)
    if not pictures or not (asked.by_name or claims):
        named = " ".join(words if asked.by_name else ["figure=all", *words])
        nothing = f"no run of {named} is there; train: python src/train.py -m {named}"
        raise ConfigError(next(iter(problems), nothing))
    paths = [path for picture in pictures.values() for path in picture.paths]
    if asked.by_name:
        return Drawn([*paths, *_answer(pictures, ended, out, margin)], claims)
    if problems:
        print(*(f"not drawn: {problem}" for problem in problems), sep="\n", file=sys.stderr)
    others = set(ended.records).difference(*(picture.runs.frame.get("key", ()) for picture in pictures.values()))
    if others and not words:
        number = "1 run belongs" if len(others) == 1 else f"{len(others)} runs belong"
        print(f"{number} to no figure; choose such by the columns of `python src/runs.py list`, as in model=… data=…")
    return Drawn(paths, claims, _conclude(list(pictures.values()), claims, ended, folders, out))


def _answer(pictures: dict[str, Picture], ended: Ended, out: Path, margin: float) -> list[Path]:
    """Say which m and η̃ each figure that is a grid of them is for; returns the files."""
    paths: list[Path] = []
    for stem, picture in pictures.items():
        if picture.runs.draw in ("sweep", "bn_batch"):
            records = [ended.records[key] for key in picture.runs.frame["key"]]
            lines, files = answer.tell(records, out / f"{stem}-answer", margin)
            print(f"\n{picture.runs.name}, which m and η̃", *lines, sep="\n")
            paths += files
    return paths


def _judge(asked: Asked, scale: str, gathered: dict[str, FigureRuns], ended: Ended) -> list[Row]:
    """Judge the claims at a scale, and print them: all, or those of the figures asked for."""
    if not asked.by_name:
        rows = judge.judge(gathered, asked.changes)
    else:
        others, _ = gather(replace(asked, figures=judge.partners(list(gathered))), scale, ended)
        rows = judge.with_figure(judge.judge(others | gathered, asked.changes), asked.figures)
    without = [runs.name for runs in gathered.values() if runs.frame.empty and not runs.of and runs.draw != "paths"]
    print(f"\nclaims at scale {scale}{'' if scale == 'paper' else ', not the size of the paper'}")
    empty = [whole(without, scale, gathered, asked.changes)] if without else []
    print(*text.terminal(rows, empty, parts=asked.by_name), sep="\n")
    return rows


def _draw_scale(
    asked: Asked, scale: str, gathered: dict[str, FigureRuns], out: Path, pictures: dict[str, Picture]
) -> list[ConfigError]:
    """Draw what one scale has, adding to `pictures` by stem; returns why some cannot be drawn."""
    problems = []
    for runs in (gathered[name] for name in asked.figures if name in gathered):
        stem = runs.name if runs.draw == "paths" else "-".join([runs.name, scale, *map(_file_name, asked.changes)])
        parts = [gathered[name] for name in runs.of if name in gathered and len(gathered[name].frame)]
        if stem not in pictures and (parts or len(runs.frame) or runs.draw == "paths"):
            try:
                pictures[stem] = _draw(runs, parts, asked.changes, out / stem)
            except ConfigError as problem:  # such as several η̃ where one is drawn
                problems.append(problem)
    return problems


def _draw(runs: FigureRuns, parts: list[FigureRuns], changes: list[str], stem: Path) -> Picture:
    """Draw a figure, naming the runs that are missing, and what it has other than its config."""
    changed = f" (with {' '.join(changes)})" if changes else ""
    figure = draw.draw(replace(runs, title=runs.title + changed), parts)
    paths = panels.save(figure, stem)
    print(*paths, sep="\n")
    for run in runs.missing[:MOST_NAMED]:
        print(f"missing: {run.label}")
    if len(runs.missing) > MOST_NAMED:
        print(f"missing: {len(runs.missing) - MOST_NAMED} more")
    return Picture(runs, paths, figure)


def _conclude(pictures: list[Picture], claims: dict[str, list[Row]], ended: Ended, folders: Path, out: Path) -> Path:
    """Write the claims and the page."""
    plain = {scale: judge.plain(rows) for scale, rows in claims.items()}
    everything = {"form": judge.FORM, "scales": plain}
    write_text(out / "claims.json", json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    page: Path = out / "index.html"
    report.write(page, folders, list(ended.records.values()), pictures, plain)
    print(f"\n{out / 'claims.json'}\n{page}")
    return page


def _draw_chosen(words: list[str], records: dict[str, Record], out: Path, margin: float) -> Drawn:
    """The runs whose columns match. Raises ConfigError if they differ in more than a sweep varies."""
    frame = select(table(records.values()), parse_settings(words))
    if frame.empty:
        raise ConfigError(f"no run matches {' '.join(words)}")
    if frame["setting"].nunique() > 1:
        raise ConfigError(f"these runs do not belong in one figure; choose among {differences(frame)}")
    if frame.groupby(["batch_size", "base_lr", "seed"]).size().max() > 1:
        sizes = ", ".join(map(str, sorted(frame["bn_batch_size"].unique())))
        raise ConfigError(f"these runs differ in their BN batch too; choose one, as bn_batch_size=… of {sizes}")
    stem = out / "-".join(["sweep", *map(_file_name, sorted(words))])
    paths = panels.save(draw.sweep(frame, "Sweep", f"{panels.describe(frame)}."), stem)
    lines, files = answer.tell([records[key] for key in frame["key"]], out / f"{stem.name}-answer", margin)
    print(*paths, "", *lines, sep="\n")
    return Drawn([*paths, *files])


def _file_name(word: str) -> str:
    return word.replace("=", "_").replace("/", "over")


if __name__ == "__main__":
    main()
