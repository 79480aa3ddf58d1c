"""Everything on one self-contained page: verdicts and what is behind them, figures, runs, protocol, provenance."""

import base64
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from smallbatch.figures import panels
from smallbatch.figures.collect import FigureRuns
from smallbatch.files import timestamp, write_text
from smallbatch.powers import format_power
from smallbatch.store import Record
from smallbatch.table import table

CHOICES = Path(__file__).parent / "choices.yaml"
COLUMNS = {  # of the table of runs: heading → column, those that sort as numbers in NUMERIC
    "model": "model", "data": "data", "images": "train_images", "norm": "norm", "m": "batch_size",
    "b": "bn_batch_size", "η̃": "base_lr", "epochs": "epochs", "seed": "seed", "optimizer": "optimizer",
    "updates": "updates", "status": "status", "score": "score", "training": "train_accuracy", "seconds": "seconds",
    "key": "key",
}  # fmt: skip
Claims = Sequence[dict[str, Any]]  # the claims of one scale
NOT_TRAINED = "not trained"  # a state of a verdict, as the claims write it
NUMERIC = ("images", "m", "b", "η̃", "epochs", "seed", "updates", "score", "training", "seconds")

PHONE = ("model", "m", "η̃", "seed", "status", "score", "key")  # the columns of a narrow screen


@dataclass(frozen=True)
class Picture:
    """One drawn figure; `paths` are its files."""

    runs: FigureRuns
    paths: Sequence[Path]
    figure: Figure

    def context(self, claims: Mapping[str, Claims]) -> dict[str, Any]:
        """What the template shows of it, with the verdicts that rest on it."""
        runs = self.runs
        scale = "" if runs.draw == "paths" else runs.scale
        train = f"python src/train.py -m figure={runs.name}" + ("" if scale in ("", "paper") else f" scale={scale}")
        return {
            "stem": self.paths[0].stem,
            "title": f"{runs.title} ({runs.stand_in})" if runs.stand_in else runs.title,
            "scale": scale,
            "command": train if len(runs.frame) else train.replace("train.py -m", "figures.py"),
            "note": panels.note(self.figure),  # before the tiles, which go without
            "tiles": [_tile(tile) for tile in panels.tiles(self.figure)],
            "verdicts": [
                (claim, verdict)
                for claim in claims.get(scale, ())
                for verdict in claim["verdicts"]
                if runs.name in verdict["figures"] and verdict["state"] != NOT_TRAINED
            ],
        }


def _tile(tile: panels.Tile) -> dict[str, Any]:
    return {"webp": base64.b64encode(tile.webp).decode(), "width": tile.width, "title": " ".join(tile.title.split())}


def write(
    path: Path, store: Path, records: Sequence[Record], pictures: Sequence[Picture], claims: Mapping[str, Claims]
) -> None:
    """Write the page in one step. `claims`: by scale, as in claims.json."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    environment.filters |= {"signed": _signed, "span": _span}
    drawn = [picture.runs for picture in pictures]
    page = environment.get_template("page.html").render(
        store=store,
        scales=[_scale(name, claims[name], [runs for runs in drawn if runs.scale == name]) for name in claims],
        pictures=[picture.context(claims) for picture in sorted(pictures, key=lambda p: p.runs.draw == "paths")],
        columns=list(COLUMNS),
        numeric=[place for place, name in enumerate(COLUMNS, 1) if name in NUMERIC],
        phone=[place for place, name in enumerate(COLUMNS, 1) if name not in PHONE],
        runs=_rows(table(records)),
        protocol_columns=_PROTOCOL,
        protocol=[_protocol(runs) for runs in drawn if len(runs.frame)],
        choices=_choices(),
        provenance=_provenance(records),
        now=timestamp(),
    )
    write_text(path, page)


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _span(updates: Sequence[int] | None) -> str:
    if updates is None:
        return ""
    low, high = updates
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _scale(name: str, claims: Claims, drawn: list[FigureRuns]) -> dict[str, Any]:
    runs = pd.concat([part.frame for part in drawn]).drop_duplicates("key")
    every = [verdict for claim in claims for verdict in claim["verdicts"]]
    there = {verdict["column"]: len(verdict["figures"]) for verdict in every if verdict["why"] != "no runs"}
    return {
        "name": name,
        "claims": claims,
        "columns": sorted(there, key=lambda column: (there[column], column)),
        "empty": dict.fromkeys(verdict["column"] for verdict in every if verdict["why"] == "no runs"),
        "states": Counter(verdict["state"] for verdict in every),
        "figures": len(drawn),
        "runs": len(runs),
        "diverged": int((runs["status"] == "diverged").sum()),
        "seeds": runs["seed"].nunique(),
    }


def _rows(frame: pd.DataFrame) -> list[list[str]]:
    """For each run the text of each column."""
    return [
        [_text(name, value) for name, value in zip(COLUMNS, values, strict=True)]
        for values in zip(*(frame[column] for column in COLUMNS.values()), strict=True)
    ]


def _text(name: str, value: Any) -> str:
    if name == "η̃":
        return format_power(value)
    if name in ("score", "training"):
        return f"{value:.4f}"
    return f"{value:,.0f}" if name in ("images", "updates", "seconds") else str(value)


_PROTOCOL = (
    "figure", "scale", "model", "data", "training images", "augment", "norm", "epochs", "schedule", "weight decay", "m",
    "η̃", "seeds", "runs",
)  # fmt: skip


def _protocol(runs: FigureRuns) -> list[str]:
    frame = runs.frame
    first = frame.iloc[0]
    norm = first["norm"] if first["norm"] != "batch" else f"batch ({first['norm.layers']})"
    warm = f", warm-up {first['schedule.warmup']:.0%}" if first["schedule.warmup"] else ""
    return [
        runs.name, runs.scale, first["model"], first["data"], f"{first['train_images']:,}",
        "yes" if first["data.augment"] else "no", norm, str(first["epochs"]), f"{first['schedule']}{warm}",
        f"{first['weight_decay']:g}", _range(frame["batch_size"], str), _range(frame["base_lr"], format_power),
        str(frame["seed"].nunique()), f"{len(frame)} of {len(frame) + len(runs.missing)}",
    ]  # fmt: skip


def _range(values: pd.Series, text: Any) -> str:
    low, high = values.min(), values.max()
    return text(low) if low == high else f"{text(low)} … {text(high)}"


def _choices() -> list[list[Markup]]:
    """What the paper leaves open, as rows of what, ours and setting."""
    rows = yaml.safe_load(CHOICES.read_text(encoding="utf-8"))
    return [[Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(cell)))) for cell in r.values()] for r in rows]


def _provenance(records: Iterable[Record]) -> list[dict[str, Any]]:
    """How many runs came from which versions, code and machine, and when; most first."""
    ended: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for result in (record.result for record in records):
        versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
        machine = result.get("machine", {})
        several = f"{machine['devices']} × " if "devices" in machine else ""
        device = f"{several}{machine.get('device', '?')}, {machine.get('cores', '?')} cores"
        ended[versions, str(result.get("commit")), device].append(result.get("ended", "?"))
    return [
        {"versions": versions, "commit": commit, "device": device}
        | {"runs": len(times), "first": min(times), "last": max(times)}
        for (versions, commit, device), times in sorted(ended.items(), key=lambda source: -len(source[1]))
    ]
