"""Ended runs, found by what they are whatever their seed."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from smallbatch.data import Description, describe, published
from smallbatch.data.folders import preparation
from smallbatch.data.sources import PUBLISHED
from smallbatch.run import Run, setting
from smallbatch.store import Record


class Ended:
    """Ended runs, found by what they are whatever their seed."""

    def __init__(self, records: dict[str, Record]) -> None:
        self.records = records
        self.by_cell: dict[str, list[Record]] = defaultdict(list)
        self.by_setting: dict[str, list[Record]] = defaultdict(list)
        # How many images a data set has, by its fingerprint, where a run used them all; else more than any.
        self.full: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("train", "test"), sys.maxsize))
        for record in records.values():
            self.by_cell[cell(record.run)].append(record)
            self.by_setting[setting(record.run)].append(record)
            data = record.run.data
            for split in ("train", "test"):
                if data[f"{split}_size"] is None:
                    self.full[data["fingerprint"]][split] = record.result.get(f"{split}_images", sys.maxsize)
        seen = Counter((record.run.data["name"], record.run.data["fingerprint"]) for record in records.values())
        self.fingerprints = {name: fingerprint for (name, fingerprint), _ in reversed(seen.most_common())}
        self.kinds = Counter(name for name, _ in seen)

    def look(self, run: Run) -> dict[str, Any] | None:
        """A run's result, if it has ended."""
        record = self.records.get(run.key)
        return record.result if record else None

    def describe(self, data: dict[str, Any]) -> Description:
        """What the data of a config are, as the runs know it: no image is read, and none downloaded.

        Where a name does not tell (your own files; runs of one name that saw different images, or of none) and the
        images are here, they are looked at; else those seen by the most runs are meant. Raises ConfigError.
        """
        if ("path" in data and data["name"] not in PUBLISHED) or self._unsure(data):
            return describe(data)
        fingerprint = self.fingerprints.get(data["name"], data["name"])
        train, test = self.full[fingerprint].values()
        sizes = (data["train_size"] or train, data["test_size"] or test)
        return Description(data["name"], Path(), fingerprint, 0, *sizes, (train, test), preparation(data))

    def _unsure(self, data: dict[str, Any]) -> bool:
        """Whether the runs leave open which images a name means, and looking would download none."""
        seen = self.kinds[data["name"]]
        if seen > 1:
            return published(data, "") is None
        return not seen and (Path(data["root"]) / f"{data['name']}.npz").exists()

    def alike(self, run: Run) -> list[Record]:
        """The runs of a run's setting, whatever their batch sizes, η̃ and seed."""
        return self.by_setting.get(setting(run), [])

    def of_kinds(self, kinds: list[Run], any_seed: bool) -> list[Record]:
        """The runs that differ from one of these in η̃ at most; with `any_seed` in the seed too."""

        def kind(run: Run) -> str:
            return replace(run, base_lr=1.0, seed=0 if any_seed else run.seed).key

        wanted = {kind(run) for run in kinds}
        near = [record for name in {setting(run) for run in kinds} for record in self.by_setting.get(name, [])]
        return [record for record in near if kind(record.run) in wanted]

    def of(self, runs: Iterable[Run], any_seed: bool) -> tuple[list[Record], list[Run]]:
        """The records of some runs, and the runs that have none; with `any_seed` a cell's other seeds count."""
        asked: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            asked[cell(run)].append(run)
        found, missing = [], []
        for name, some in asked.items():
            there = self.by_cell.get(name, [])
            if not any_seed:
                there = [self.records[run.key] for run in some if run.key in self.records]
            found += there
            lacking = [run for run in some if run.key not in self.records]
            missing += lacking[: max(0, len(some) - len(there))]
        return found, missing


def cell(run: Run) -> str:
    """The run's key but for the seed."""
    return replace(run, seed=0).key
