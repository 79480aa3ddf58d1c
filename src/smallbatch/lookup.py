"""Ended runs found by what they are, and the best η̃ among them.

Without pandas or torch, since grids look here before they train.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from smallbatch.config import NotYet, Run, setting
from smallbatch.data import Description, describe, published
from smallbatch.data.folders import preparation
from smallbatch.data.sources import PUBLISHED
from smallbatch.grid import Compose, Describe, Point, Rates, expand
from smallbatch.store import Record


class Ended:
    """Ended runs, found by what they are whatever their seed."""

    def __init__(self, records: dict[str, Record]) -> None:
        self.records = records
        self.by_cell: dict[str, list[Record]] = defaultdict(list)
        self.by_setting: dict[str, list[Record]] = defaultdict(list)
        for record in records.values():
            self.by_cell[cell(record.run)].append(record)
            self.by_setting[setting(record.run)].append(record)
        seen = Counter((record.run.data["name"], record.run.data["fingerprint"]) for record in records.values())
        self.fingerprints = {name: fingerprint for (name, fingerprint), _ in reversed(seen.most_common())}
        self.kinds = Counter(name for name, _ in seen)
        self.full = {
            name: {split: self._full(name, split) for split in ("train", "test")} for name in self.fingerprints
        }

    def _full(self, name: str, split: str) -> int:
        """How many images a data set has, where a run used them all; else more than any."""
        for record in self.records.values():
            data = record.run.data
            if data["fingerprint"] == self.fingerprints[name] and data[f"{split}_size"] is None:
                return int(record.result.get(f"{split}_images", sys.maxsize))
        return sys.maxsize

    def describe(self, data: dict[str, Any]) -> Description:
        """What the data of a config are, as the runs know it: no image is read, and none downloaded.

        Where a name does not tell (your own files; runs of one name that saw different images, or of none) and the
        images are here, they are looked at; else those seen by the most runs are meant. Raises ConfigError.
        """
        if ("path" in data and data["name"] not in PUBLISHED) or self._unsure(data):
            return describe(data)
        full = self.full.get(data["name"], {"train": sys.maxsize, "test": sys.maxsize})
        sizes = (data["train_size"] or full["train"], data["test_size"] or full["test"])
        fingerprint = self.fingerprints.get(data["name"], data["name"])
        whole = (full["train"], full["test"])
        return Description(data["name"], Path(), fingerprint, 0, *sizes, whole, preparation(data))

    def _unsure(self, data: dict[str, Any]) -> bool:
        """Whether the runs leave open which images a name means, and looking would download none."""
        seen = self.kinds[data["name"]]
        if seen > 1:
            return published(data, "") is None
        return not seen and (Path(data["root"]) / f"{data['name']}.npz").exists()

    def alike(self, run: Run) -> list[Record]:
        """The runs of a run's setting, whatever their batch sizes, η̃ and seed."""
        return self.by_setting.get(setting(run), [])

    def of(self, points: Iterable[Point], any_seed: bool) -> tuple[list[Record], list[Run]]:
        """The records of some points, and the points that have none; with `any_seed` a cell's other seeds count."""
        asked: dict[str, list[Run]] = defaultdict(list)
        for point in points:
            asked[cell(point.run)].append(point.run)
        found, missing = [], []
        for name, runs in asked.items():
            there = self.by_cell.get(name, [])
            if not any_seed:
                there = [self.records[run.key] for run in runs if run.key in self.records]
            found += there
            lacking = [run for run in runs if run.key not in self.records]
            missing += lacking[: max(0, len(runs) - len(there))]
        return found, missing


def cell(run: Run) -> str:
    """The run's key but for the seed."""
    return replace(run, seed=0).key


def best_rates(ended: Ended, compose: Compose, describe: Describe) -> Rates:
    """What `base_lr: best` stands for (paper, figs 13, 14).

    The η̃ of the highest mean score over all seeds, ties to the smaller. Raises ConfigError, saying what to train,
    if a point of the sweep has no run.
    """

    def rates(words: list[str], sizes: list[int]) -> dict[int, float]:
        asked = [*words, f"batch_size={','.join(map(str, sizes))}"]
        grid = expand(asked, compose, describe)
        found, missing = ended.of(grid.points, any_seed=True)
        if missing:
            raise NotYet(
                f"the best η̃ of {words[0]} is not known yet: {len(missing)} of {len(grid.points)} runs are missing; "
                f"first train: python src/train.py -m {' '.join(asked)} (or give base_lr=…)"
            )
        return {m: best_rate([r for r in found if r.run.batch_size == m]) for m in sizes}

    return rates


def best_rate(records: Iterable[Record]) -> float:
    """The η̃ of the highest mean score, ties to the smaller."""
    scores: dict[float, list[float]] = defaultdict(list)
    for record in records:
        scores[record.run.base_lr].append(record.result["score"])
    return max(sorted(scores), key=lambda rate: fmean(scores[rate]))
