"""Build a W&B report of the paper's figures from the runs of a W&B project.

    python src/report.py                             # every figure, at every scale, that has runs
    python src/report.py figure=fig01 scale=reduced wandb.project=mine

The table of verdicts, a section a figure with its runs' own panels, and a section a verdict with its runs. What has
more runs than a panel of W&B averages is drawn from tables that go with the report. `python src/publish.py` uploads
runs first. Without a login, or with wandb.mode=offline, it prints what it would create from the runs of the store.
It needs wandb-workspaces, which is in requirements.lock.
"""

from smallbatch import signals, surroundings

if __name__ == "__main__":
    surroundings.shut_out()  # before the imports below read the variables of other tools
    signals.at_once()  # while they take seconds

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from smallbatch import cli, store
from smallbatch.claims import judge, text
from smallbatch.claims.judge import Row, Verdict
from smallbatch.claims.statistics import Part
from smallbatch.ended import Ended
from smallbatch.errors import ConfigError
from smallbatch.figures import panels
from smallbatch.figures.collect import Asked, FigureRuns, gather
from smallbatch.powers import format_power
from smallbatch.store import Record
from smallbatch.table import keep
from smallbatch.tracking import project
from smallbatch.tracking.page import read_note
from smallbatch.tracking.place import Place, login, wandb_errors

TITLE = "Revisiting small batch training, reproduced"
MOST = 100  # runs that a panel of W&B averages unless told otherwise, a sample of what there is (wandb/wandb#3404)
CURVES = ("train_accuracy", "test_accuracy")  # of the history, drawn by W&B itself
LINES = "wandb/lineseries/v0"  # W&B's chart of a table's lines
CHARTS = {  # by how a figure is drawn: title, x, lines and y, all columns of `points`
    "sweep": (
        ("accuracy (%) against log2 η̃", "log2 η̃", "by m", "accuracy"),
        ("accuracy (%) against log2 m", "log2 m", "by η̃", "accuracy"),
    ),
    "bn_batch": (("accuracy (%) against log2 of the BN batch", "log2 BN batch", "by m", "accuracy"),),
    "convergence": (
        ("training accuracy (%) against epochs", "epoch", "by m", "training"),
        ("test accuracy (%) against epochs", "epoch", "by m", "test"),
    ),
}


@dataclass(frozen=True)
class Section:
    """One figure of the report and the command that makes its runs."""

    runs: FigureRuns
    command: str

    @property
    def title(self) -> str:
        """The figure's, with its scale."""
        return ", ".join(filter(None, (self.runs.title, f"scale {self.runs.scale}", self.runs.stand_in)))

    @property
    def table(self) -> str:
        """The name of its table of points in W&B."""
        return f"points/{self.runs.name}-{self.runs.scale}"

    @property
    def keys(self) -> list[str]:
        """Of the runs that are there."""
        return list(self.runs.frame["key"])

    @property
    def told(self) -> str:
        """How many runs there are."""
        return f"{len(self.keys)} of {len(self.keys) + len(self.runs.missing)} runs"

    def __str__(self) -> str:
        return f"{self.title}\n  {self.told}; {self.command}"


def main() -> None:
    """Create the report, or print it where nobody is logged in."""
    parser = cli.parser(__doc__)
    cli.add_words(parser)
    cli.add_where(parser)
    parser.add_argument("--source", choices=["wandb", "store"], default="wandb", help="where the runs are read from")
    arguments = parser.parse_intermixed_args()
    with cli.one_line_errors():
        words, cfg = cli.sort(arguments.words, arguments.config_dir)
        place = Place.of(cfg)
        online, why = _reachable(place)
        reports = _library() if online else None
        from_project = online and arguments.source == "wandb"
        records = project.records(place) if from_project else store.ended(Path(cfg.store))
        kept = keep(records, arguments.where)
        sections, claims = contents(Asked.of(words), Ended(kept)) if kept else ([], {})
        if not sections:
            raise ConfigError(f"no figure has runs in {f'project {place.project}' if from_project else cfg.store}")
        if reports:
            groups = project.groups(place) if from_project else _noted_groups(records, Path(cfg.store))
            print(_create(reports, replace(place, mode="online"), groups, sections, claims))
            return
    print(f"{why}; a report in project {place.project} would have these sections:")
    print(*map(text.markdown_table, claims.values()), *sections, sep="\n")


def _reachable(place: Place) -> tuple[bool, str]:
    """Whether W&B is wanted and there is a login for it, and if not, why."""
    if place.mode not in (None, "online"):
        return False, f"wandb.mode={place.mode}"
    known, server = login()
    return known, f"no login for {server}"


def _library() -> Any:
    try:
        import wandb_workspaces.reports.v2 as reports
    except ImportError:
        raise ConfigError("wandb-workspaces is not installed; pip install wandb-workspaces") from None
    return reports


def _noted_groups(records: Mapping[str, Record], folders: Path) -> dict[str, str]:
    """The group under which each run went to W&B, by its key; "" for none."""
    return {key: read_note(store.folder(folders, r.run)).get("group") or "" for key, r in records.items()}


def contents(asked: Asked, ended: Ended) -> tuple[list[Section], dict[str, list[Row]]]:
    """A section for each figure and scale that has runs, and the verdicts of each scale that rest on them."""
    sections, claims = [], {}
    for scale in asked.scales:
        gathered, wrong = gather(asked, scale, ended)
        there = [gathered[name] for name in asked.figures if name in gathered and len(gathered[name].frame)]
        for runs in there:
            command = " ".join([f"python src/train.py -m figure={runs.name} scale={scale}", *asked.rest])
            sections.append(Section(runs, command))
        if there:
            others, _ = gather(replace(asked, figures=judge.partners(list(gathered))), scale, ended)
            claims[scale] = judge.with_figure(judge.judge(others | gathered, asked.changes), list(gathered))
        if asked.by_name and wrong:
            raise wrong[0]
    return sections, claims


@wandb_errors()
def _create(
    reports: Any, place: Place, groups: Mapping[str, str], sections: list[Section], claims: Mapping[str, list[Row]]
) -> str:
    """Upload the tables, save the report; gives its address."""
    tables = {section.table: points(section.runs) for section in sections}
    entity, address = project.add_tables(place, tables | text.frames(claims))
    builder = Builder(reports, replace(place, entity=entity), address, groups)
    return str(builder.report(sections, claims).save().url)


def points(runs: FigureRuns) -> pd.DataFrame:
    """What a figure's charts show, for W&B's chart of lines: a row a cell, seeds averaged; of curves a row an epoch."""
    if runs.curves is not None:
        means = runs.curves.groupby(["batch_size", "epoch"])[["train_accuracy", "test_accuracy"]].mean().reset_index()
        names = {"train_accuracy": "training", "test_accuracy": "test"}
        frame = means.assign(**{name: 100 * means[column] for column, name in names.items()})[
            ["batch_size", "epoch", *names.values()]
        ]
        return frame.assign(**{"by m": [f"m = {m}" for m in frame.pop("batch_size")]})
    cells = panels.cell_means(runs.frame, ["batch_size", "bn_batch_size", "base_lr"])
    return pd.DataFrame(
        {
            "by m": [f"m = {m}" for m in cells["batch_size"]],
            "by η̃": [f"η̃ = {format_power(rate)}" for rate in cells["base_lr"]],
            "log2 m": np.log2(cells["batch_size"]),
            "log2 η̃": np.log2(cells["base_lr"]),
            "log2 BN batch": np.log2(cells["bn_batch_size"]),
            "accuracy": cells["mean"],
            "deviation": cells["std"],
            "runs": cells["count"],
        }
    )


def best_keys(frame: pd.DataFrame) -> list[str]:
    """The runs at the best η̃ of each m, by the mean score."""
    means = frame.groupby(["batch_size", "base_lr"])["score"].mean()
    tops = means.loc[means.groupby("batch_size").idxmax()].index
    return list(frame.loc[frame.set_index(["batch_size", "base_lr"]).index.isin(tops), "key"])


@dataclass(frozen=True)
class Builder:
    """Writes the report's blocks. `address`: of the run that has the tables; `groups`: of the project's runs."""

    wr: Any  # wandb_workspaces.reports.v2
    place: Place
    address: str
    groups: Mapping[str, str]

    def report(self, sections: Iterable[Section], claims: Mapping[str, list[Row]]) -> Any:
        """The report, not saved yet: verdicts, figures, what is behind each verdict."""
        blocks: list[Any] = []
        for scale, rows in claims.items():
            blocks += [self.wr.H1(f"Verdicts at scale {scale}"), self.wr.MarkdownBlock(text.markdown_table(rows))]
            blocks += [self.wr.MarkdownBlock("\n".join(f"- **{row.id}** {row.text}" for row in rows))]
        blocks += [self.wr.TableOfContents()]
        for section in sections:
            blocks += self._figure(section)
        for scale, rows in claims.items():
            found = [(row, v) for row in rows for v in row.verdicts if any(part.keys for part in v.parts)]
            if found:
                blocks += [self.wr.H1(f"Behind each verdict at scale {scale}")]
            for row, verdict in found:
                blocks += self._verdict(row, verdict)
        return self.wr.Report(
            project=self.place.project, entity=self.place.entity, title=TITLE, blocks=blocks, width="fluid"
        )

    def _figure(self, section: Section) -> list[Any]:
        runs = section.runs
        blocks = [
            self.wr.H1(section.title),
            self.wr.P(f"{section.told}. The first charts are drawn from a table of all of them, seeds averaged."),
            self.wr.MarkdownBlock(f"```sh\n{section.command}\n```"),
            self._grid("tables of this report", f"Metric('ID') in {[self.address.rpartition('/')[2]]}", [
                self._chart(section.table, *chart) for chart in CHARTS.get(runs.draw, ())
            ]),
        ]  # fmt: skip
        best = best_keys(runs.frame) if runs.draw == "sweep" else section.keys
        if len(best) <= MOST:
            name = "at the best η̃ of each m" if runs.draw == "sweep" else "its runs"
            blocks.append(self._grid(f"{runs.name}: {name}", _ids(best), [self._curves(c) for c in CURVES]))
        points = self._scatter() if len(section.keys) <= MOST else []
        blocks.append(self._grid(f"{runs.name}: all its runs", self.exactly(section.keys), points))
        return blocks

    def _verdict(self, row: Row, verdict: Verdict) -> list[Any]:
        """The criterion, a table of its parts, and the runs that it rests on, as links and as W&B's own list."""
        keys = list(dict.fromkeys(key for part in verdict.parts for key in part.keys))
        why = f" ({verdict.why})" if verdict.why else ""
        lines = [f"**{row.text}** {verdict.reason}", "", f"Asks: {verdict.criterion}", ""]
        lines += [f"To decide it: `{need.command}`" for need in verdict.needs]
        heads = ("comparison", "effect, 98 % interval, seeds, runs: verdict", "in training accuracy", "updates a run")
        lines += [
            "",
            f"| {' | '.join(heads)} |",
            "|---|---|---|---|",
            *map(_part, verdict.parts),
            "",
            self._links(keys),
        ]
        return [
            self.wr.H2(f"{row.id} {verdict.column}: {verdict.state}{why}"),
            self.wr.MarkdownBlock("\n".join(lines)),
            self._grid(f"{row.id} {verdict.column}", _ids(keys), self._scatter() if len(keys) <= MOST else []),
        ]

    def _links(self, keys: list[str]) -> str:
        runs = self.address.rpartition("/")[0]
        links = ", ".join(f"[{key}]({runs}/{key})" for key in keys[:MOST])
        return f"Runs: {links}" + (f", and {len(keys) - MOST} more, all in the list below" if len(keys) > MOST else "")

    def exactly(self, keys: list[str]) -> str:
        """A filter that these runs pass, and no others that are there: by groups that have no others, else by id.

        A run that is added to such a group later passes it too.
        """
        outside = {group for key, group in self.groups.items() if key not in set(keys)} | {""}
        whole = sorted({self.groups.get(key, "") for key in keys} - outside)
        single = [key for key in keys if self.groups.get(key) not in whole]
        by_group = [f"Metric('Group') in {whole}"] if whole else []
        return " or ".join([*by_group, *([_ids(single)] if single else [])])

    def _grid(self, name: str, filters: str, panels: list[Any]) -> Any:
        runs = self.wr.Runset(project=self.place.project, entity=self.place.entity, name=name, filters=filters)
        return self.wr.PanelGrid(runsets=[runs], panels=panels)

    def _chart(self, table: str, title: str, x: str, lines: str, y: str) -> Any:
        return self.wr.CustomChart(
            query={"summaryTable": {"tableKey": table}, "id": {}, "name": {}},
            chart_name=LINES,
            chart_fields={"step": x, "lineKey": lines, "lineVal": y},
            chart_strings={"title": title, "xname": x},
        )

    def _curves(self, column: str) -> Any:
        return self.wr.LinePlot(
            title=f"{column.replace('_', ' ')}, mean and range of each m",
            x="epoch",
            y=[column],
            groupby=self.wr.Config("batch_size"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=MOST,
        )

    def _scatter(self) -> list[Any]:
        score = self.wr.SummaryMetric("score")
        m, rate = self.wr.Config("log2_batch_size"), self.wr.Config("log2_base_lr")
        return [
            self.wr.ScatterPlot(title="score against log2 η̃, colour: log2 m", x=rate, y=score, z=m),
            self.wr.ScatterPlot(title="score against log2 m, colour: log2 η̃", x=m, y=score, z=rate),
        ]


def _ids(keys: list[str]) -> str:
    return f"Metric('ID') in {keys}"


def _part(part: Part) -> str:
    trained = "" if part.train_effect is None else f"{part.train_effect:+.2f}"
    trained += {None: "", True: " (already)", False: " (not)"}[part.in_training]
    sides = filter(None, (part.updates, part.updates_against))
    spans = [f"{low:,} … {high:,}" if low < high else f"{low:,}" for low, high in sides]
    return f"| {part.label} | {text.told(part)} | {trained} | {' against '.join(spans)} |"


if __name__ == "__main__":
    main()
