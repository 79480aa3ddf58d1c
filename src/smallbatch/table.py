"""Run records as one pandas table, and the choice of rows from it."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from pandas.api.types import is_float_dtype

from smallbatch.compose import compose, did_you_mean
from smallbatch.data import describe
from smallbatch.errors import ConfigError, one_line
from smallbatch.powers import format_power, parse_power
from smallbatch.run import VARIED, setting
from smallbatch.store import Record

LEARNT = 5.0  # standard errors above chance: the best of thousands of runs that learn nothing stays below


def least_reliable(best: float, chance: float, test_images: int, share: float) -> float:
    """The score in points that every seed has to reach, infinite where the best run is at chance."""
    learnt = best - chance > LEARNT * binomial_error(chance, test_images)
    return chance + share * (best - chance) if learnt else np.inf


def binomial_error(accuracy: float, images: int) -> float:
    """Standard error in points of an accuracy in points, from the size of the test set."""
    share = min(max(accuracy / 100, 0.0), 1.0)
    return float(100 * np.sqrt(share * (1 - share) / images))


MOST_VALUES = 12  # of a column that an error names
_TYPED = {"True": "true", "False": "false", "None": "null"}
_OUTCOME = ("status", "score", "chance", "train_images", "test_images", "seconds")  # of result.json
# Columns that are no settings: what a run is known by, and what came out.
RESULTS = ("key", "setting", "protocol", "updates", "train_accuracy", *_OUTCOME)


def table(records: Iterable[Record]) -> pd.DataFrame:
    """One row a run, ordered by setting, batch_size, base_lr and seed; nested settings flattened as `norm.layers`.

    `setting` names everything but what sweeps vary: rows that share it belong in one figure.
    """
    frame = pd.DataFrame([_row(record) for record in records])
    if frame.empty:
        return frame
    return frame.sort_values(["setting", "batch_size", "base_lr", "seed"], ignore_index=True)


def _row(record: Record) -> dict[str, Any]:
    run = record.run
    row: dict[str, Any] = {"key": run.key, "setting": setting(run)}
    for group, values in run.to_dict().items():
        if isinstance(values, dict):
            row[group] = values.get("name", values.get("kind"))
            row |= {f"{group}.{name}": str(v) if isinstance(v, list) else v for name, v in values.items()}
        else:
            row[group] = values
    row["bn_batch_size"] = run.bn_batch_size or run.batch_size
    last = record.rows[-1] if record.rows else {}
    row |= {"updates": last.get("updates", 0), "train_accuracy": last.get("train_accuracy", np.nan)}
    return row | {name: record.result.get(name, np.nan) for name in _OUTCOME}


def keep(records: dict[str, Record], query: str | None) -> dict[str, Record]:
    """The records of which a pandas query over the table's columns is true; all without one. Raises ConfigError."""
    if query is None or not records:
        return records
    try:
        frame = table(records.values())
        chosen = frame.eval(query, engine="python", local_dict={}, global_dict={})
        if not (isinstance(chosen, pd.Series) and chosen.dtype == bool):
            raise ValueError("is true or false of no run")
        return {key: records[key] for key in frame["key"][chosen]}
    except Exception as error:  # pandas raises a dozen kinds
        reason = one_line(error)
        raise ConfigError(f"--where {query!r}: {reason}; write a condition on columns, as score > 0.5") from None


def select(frame: pd.DataFrame, wanted: dict[str, list[str]]) -> pd.DataFrame:
    """The rows that have these settings, each one of the values, as typed on a command line.

    Raises ConfigError for what is no setting of a run, or values that no run has.
    """
    for name, values in _by_images(wanted).items():
        if name in RESULTS:
            raise ConfigError(f"{name}={','.join(values)}: is a result, no setting; choose by --where, as {name} > …")
        if name not in frame:
            settings = [column for column in frame.columns if column not in RESULTS]
            there = f"they have {', '.join(settings)}" if settings else "there are none"
            hint = did_you_mean(name, settings).strip() or there
            raise ConfigError(f"{name}: these runs have no such setting; {hint}")
        texts = [_TYPED.get(value, value.strip("'\"")) for value in values]
        texts = [re.sub(r",\s*", ", ", text) if text.startswith("[") else text for text in texts]  # as Python has it
        if is_float_dtype(frame[name]) and "null" not in texts:
            chosen = frame[name].isin([parse_power(v) for v in texts])
        else:
            chosen = frame[name].map(_text).isin(texts)
        if not chosen.any():
            shown = frame[name].map(format_power if name == "base_lr" else _text)
            there = ", ".join(sorted(set(shown))[:MOST_VALUES])
            raise ConfigError(f"{name}={','.join(values)}: no run has that; there is {there}")
        frame = frame[chosen]
    return frame


def _by_images(wanted: dict[str, list[str]]) -> dict[str, list[str]]:
    """With the images themselves in place of where they lie, which is no part of a run."""
    paths = wanted.get("data.path", [])
    rest = {name: values for name, values in wanted.items() if name not in ("data.path", "data.root")}
    if not paths:
        return rest
    how = [f"{name}={values[0]}" for name, values in wanted.items() if name.partition(".")[0] == "data"]
    data: list[Any] = [OmegaConf.to_container(compose([*how, f"data.path={p}"]).data, resolve=True) for p in paths]
    return rest | {"data.fingerprint": [describe(one).fingerprint for one in data]}


def _text(value: Any) -> str:
    """As it would be typed: `true`, `null`, `12`; a whole column that pandas made float loses its `.0`."""
    if pd.isna(value):  # pandas turns None into NaN
        return "null"
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def differences(frame: pd.DataFrame) -> str:
    """What tells the settings in a table apart, as `epochs=3,12 model=alexnet,resnet8`."""
    skip = {*RESULTS, *VARIED} - {"train_images", "test_images"}
    values = {name: sorted(set(frame[name].map(_text))) for name in frame.columns if name not in skip}
    return " ".join(f"{name}={','.join(texts)}" for name, texts in values.items() if len(texts) > 1)


def listing(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns a person looks for first, with powers as powers."""
    if frame.empty:
        return frame
    run = ["key", "model", "data", "train_images", "norm", "batch_size", "bn_batch_size", "base_lr", "epochs", "seed"]
    short = frame[[*run, "status", "score", "seconds"]]
    return short.assign(base_lr=short["base_lr"].map(format_power))
