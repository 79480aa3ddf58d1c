"""A W&B project as a whole: its runs read back into records, and figures added to it."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from smallbatch import store
from smallbatch.errors import ConfigError, one_line
from smallbatch.record import INTEGERS, Record, Row, make_record
from smallbatch.run import Run
from smallbatch.tracking.page import open_run
from smallbatch.tracking.place import Place, login, wandb_errors

PAGE = 100  # runs a request
PAUSES = (1.0, 5.0, 25.0)  # seconds before each further attempt, on top of wandb's own
_RESULT = (
    *("status", "score", "error", "chance", "train_images", "test_images", "seconds", "ended", "threads"),
    *("versions", "commit", "machine"),
)


# --- reading


@wandb_errors()
def records(place: Place, api: Any = None) -> dict[str, Record]:
    """The ended runs of a W&B project, by key, as `store.ended` has those of a store; other people's are left out.

    Raises ConfigError without a login or a project, and SmallBatchError if W&B fails again and again.
    """
    where = "/".join(filter(None, (place.entity, place.project)))
    api = api or _api()
    found = {}
    try:
        runs = api.runs(where, filters={"jobType": "train"}, per_page=PAGE, lazy=False)
        total = _patiently(lambda: len(runs))
        for wandb_run in tqdm(_each(runs), total=total, unit="run", disable=None):
            record = read(wandb_run)
            if record and record.result["status"] in store.ENDED:
                found[record.run.key] = record
    except ValueError as error:  # how wandb says that there is no such project
        raise ConfigError(f"wandb.project={place.project}: {one_line(error)}") from None
    return found


@wandb_errors()
def groups(place: Place, api: Any = None) -> dict[str, str]:
    """The group of each training run of a project, by the run's id; "" for none."""
    where = "/".join(filter(None, (place.entity, place.project)))
    runs = (api or _api()).runs(where, filters={"jobType": "train"}, per_page=PAGE, lazy=True)
    return {run.id: run.group or "" for run in _each(runs)}


def read(wandb_run: Any) -> Record | None:
    """A W&B run as a record; None if it is not one of ours, has not ended or has what no run has."""
    run = _run(wandb_run)
    summary = dict(wandb_run.summary_metrics)
    result = {name: summary[name] for name in _RESULT if name in summary}
    if run is None or "status" not in result:
        return None
    rows = _patiently(lambda: [_row(entry) for entry in wandb_run.scan_history() if "epoch" in entry])
    by_epoch = {row["epoch"]: row for row in rows}
    with suppress(ValueError, TypeError, ConfigError):
        return make_record(run.to_dict(), [by_epoch[epoch] for epoch in sorted(by_epoch)], result)
    return None


def _run(wandb_run: Any) -> Run | None:
    with suppress(KeyError, ValueError, TypeError, AttributeError):
        run = Run.from_dict(json.loads(wandb_run.config["run"]))
        return run if run.key == wandb_run.id else None
    return None


def _row(entry: dict[str, Any]) -> Row:
    """A history entry as a row of epochs.csv; JSON has no nan, and drops the point of whole numbers."""
    values = {name: float(value) for name, value in entry.items() if not name.startswith("_")}
    return {name: int(value) if name in INTEGERS else value for name, value in values.items()}


def _each(runs: Iterable[Any]) -> Iterator[Any]:
    """The runs, whose pages are fetched on the way."""
    iterator = iter(runs)
    with suppress(StopIteration):
        while True:
            yield _patiently(lambda: next(iterator))


def _patiently(ask: Callable[[], Any]) -> Any:
    """Ask again after a pause if wandb fails; the last failure is raised."""
    for pause in PAUSES:
        try:
            return ask()
        except (StopIteration, ValueError):
            raise
        except Exception:  # wandb's are of many kinds
            time.sleep(pause)
    return ask()


def _api() -> Any:
    known, server = login()
    if not known:
        raise ConfigError(f"source=wandb: no login for {server}; say `wandb login`")
    import wandb

    return wandb.Api(timeout=60)


# --- adding figures


@wandb_errors()
def add_figures(place: Place, pictures: list[Path], tables: dict[str, pd.DataFrame], page: Path | None = None) -> str:
    """One run of job type `figures`: every picture, table and sweep, the HTML page, and all files as an artifact.

    `tables["runs"]` is the table of runs, from which W&B draws its own lines too. Gives the run's address or, offline,
    its folder. Raises SmallBatchError if W&B does not take it.
    """
    import wandb

    run = open_run(place, name="figures", job_type="figures")
    shown: dict[str, Any] = {path.stem: wandb.Image(str(path)) for path in pictures if path.suffix == ".png"}
    shown |= {f"table/{name}": wandb.Table(dataframe=_plain(frame)) for name, frame in tables.items()}
    shown |= _lines(tables["runs"])
    if page:
        with page.open(encoding="utf-8") as file:
            shown["page"] = wandb.Html(file, inject=False)
    run.log(shown)
    artifact = wandb.Artifact("figures", type="figures")
    for path in filter(None, [*pictures, page]):
        artifact.add_file(str(path))
    run.log_artifact(artifact)
    url = run.url or str(Path(run.settings.sync_dir))
    run.finish()
    return str(url)


@wandb_errors()
def add_tables(place: Place, tables: dict[str, pd.DataFrame]) -> tuple[str, str]:
    """One run of job type `report`, with tables for a report to draw from; gives the entity and the run's address."""
    import wandb

    run = open_run(place, name="report", job_type="report")
    run.log({name: wandb.Table(dataframe=_plain(frame)) for name, frame in tables.items()})
    run.finish()
    return str(run.entity), str(run.url)


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of one type each, which W&B's tables ask for: text where a column mixes or nests."""
    return frame.apply(lambda column: column if pd.api.types.is_numeric_dtype(column) else column.astype(str))


def _lines(frame: pd.DataFrame) -> dict[str, Any]:
    """W&B's own line plots: for each setting, score against log2 m by η̃ and against log2 η̃ by m; seeds averaged."""
    import wandb

    plots = {}
    for setting, runs in frame.groupby("setting"):
        first = runs.iloc[0]
        for x, curve in (("batch_size", "base_lr"), ("base_lr", "batch_size")):
            grid: Any = runs.pivot_table(index=x, columns=curve, values="score")
            plots[f"sweep/{first['model']}-{first['data']}-{setting}/{x}"] = wandb.plot.line_series(
                xs=[[math.log2(value) for value in grid[c].dropna().index] for c in grid],
                ys=[grid[c].dropna().tolist() for c in grid],
                keys=[f"{curve}=2^{math.log2(c):g}" for c in grid],
                title=f"{first['model']}, {first['data']}: score against {x}",
                xname=f"log2 {x}",
            )
    return plots
