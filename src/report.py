"""Build a W&B report of the paper's figures from the runs in the store.

    python src/report.py                             # every figure, at every scale, that has runs
    python src/report.py figure=fig01 scale=reduced wandb.project=mine

The claims, and a section a figure: the runs' accuracy against η̃ by m and against m by η̃, drawn by W&B from exactly
the figure's runs, and the commands that make them. Without a login it prints what it would create.
It needs: pip install wandb-workspaces
"""

from smallbatch import signals

if __name__ == "__main__":
    signals.at_once()  # while the imports below take seconds

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallbatch import cli, store
from smallbatch.claims.judge import judge
from smallbatch.claims.text import markdown
from smallbatch.ended import Ended
from smallbatch.errors import ConfigError
from smallbatch.figures.collect import Asked, gather
from smallbatch.table import keep
from smallbatch.tracking.live import Place, login, wandb_errors


@dataclass(frozen=True)
class Section:
    """One figure of the report: `keys` are its runs that are there, of `points` in all."""

    title: str
    command: str
    keys: list[str]
    points: int

    def __str__(self) -> str:
        return f"{self.title}\n  {len(self.keys)} of {self.points} runs; {self.command}"


def main() -> None:
    """Create the report, or print it where nobody is logged in."""
    parser = cli.parser(__doc__)
    cli.add_words(parser)
    cli.add_where(parser)
    arguments = parser.parse_intermixed_args()
    with cli.one_line_errors():
        words, cfg = cli.sort(arguments.words, arguments.config_dir)
        place = Place.of(cfg)
        records = keep(store.ended(Path(cfg.store)), arguments.where)
        parts, claims = contents(Asked.of(words), Ended(records)) if records else ([], [])
        if not parts:
            raise ConfigError(f"no figure has runs in {cfg.store}")
        known, server = login()
        if known:
            report = _build(place, parts, claims)
            with wandb_errors():
                address = report.save().url
            print(address)
            return
    print(f"no login for {server}; a report in project {place.project} would have these sections:")
    print("\n".join([*claims, *map(str, parts)]))


def contents(asked: Asked, ended: Ended) -> tuple[list[Section], list[str]]:
    """A section for each figure and scale that has runs, and the table of claims of each scale, as Markdown."""
    sections, claims = [], []
    for scale in asked.scales:
        gathered, wrong = gather(asked, scale, ended)
        there = [gathered[name] for name in asked.figures if name in gathered and len(gathered[name].frame)]
        for runs in there:
            command = " ".join([f"python src/train.py -m figure={runs.name} scale={scale}", *asked.rest])
            title = ", ".join(filter(None, (runs.title, f"scale {scale}", runs.stand_in)))
            keys = runs.frame["key"].tolist()
            sections.append(Section(title, command, keys, len(keys) + len(runs.missing)))
        if there and not asked.by_name:
            claims.append(f"Scale {scale}\n\n{markdown(judge(gathered, asked.changes))}")
        if asked.by_name and wrong:
            raise wrong[0]
    return sections, claims


def _build(place: Place, parts: list[Section], claims: list[str]) -> Any:
    """The report, not saved yet. Raises ConfigError without wandb-workspaces."""
    try:
        import wandb_workspaces.reports.v2 as reports
    except ImportError:
        raise ConfigError("wandb-workspaces is not installed; pip install wandb-workspaces") from None
    entity = {"entity": place.entity} if place.entity else {}
    blocks: list[Any] = [reports.TableOfContents()]
    if claims:
        blocks += [reports.H1("Claims"), *map(reports.MarkdownBlock, claims)]
    for part in parts:
        runs = reports.Runset(project=place.project, name=part.title, filters=f"Metric('ID') in {part.keys}", **entity)
        score = reports.SummaryMetric("score")
        m, rate = reports.Config("log2_batch_size"), reports.Config("log2_base_lr")
        panels = [
            reports.ScatterPlot(title="score against log2 η̃, colour: log2 m", x=rate, y=score, z=m),
            reports.ScatterPlot(title="score against log2 m, colour: log2 η̃", x=m, y=score, z=rate),
            reports.LinePlot(title="test accuracy", x="epoch", y=["test_accuracy"]),
        ]
        blocks += [
            reports.H1(part.title),
            reports.P(f"{len(part.keys)} of {part.points} runs"),
            reports.MarkdownBlock(f"```sh\n{part.command}\n```"),
            reports.PanelGrid(runsets=[runs], panels=panels),
        ]
    title = "Revisiting small batch training, reproduced"
    return reports.Report(project=place.project, title=title, blocks=blocks, width="fluid", **entity)


if __name__ == "__main__":
    main()
