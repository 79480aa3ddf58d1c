"""One run's page in W&B, under the run's key, and the note in its folder (wandb.json) that says where and how far."""

import json
import math
import shutil
import tempfile
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smallbatch import store
from smallbatch.files import parse_json, read_text, write_text
from smallbatch.record import Record, Row, fits
from smallbatch.run import Run
from smallbatch.store import NOTE
from smallbatch.tracking.place import Place, library

WAIT = 30.0  # seconds that W&B gets to open a run, and to take what it was given of one
INTERRUPTED = 255  # wandb's own exit code for Ctrl-C


@dataclass
class Page:
    """One run's page in W&B: opened, filled, closed, in this order, all with wandb's exceptions."""

    run: Run
    path: Path
    place: Place
    done: int = 0  # epochs that W&B has
    _wandb_run: Any = None

    def open(self, afresh: bool = False) -> None:
        """Continue the W&B run that the note knows; without a note, or `afresh`, replace what W&B has under the key.

        Offline it is always written whole: `wandb sync` replaces a run by each further folder of its key.
        """
        note = {} if afresh else read_note(self.path)
        resumes = self.place.mode == "online" and _same_place(note, self.place) and note["offline"] is None
        for old in self.place.files.glob(f"offline-run-*-{self.run.key}"):
            shutil.rmtree(old)
        self._wandb_run = open_run(
            self.place,
            id=self.run.key,
            name=self.run.label,
            job_type="train",
            config=_config(self.run),
            resume="allow" if resumes else None,
        )
        self._wandb_run.define_metric("epoch")
        self._wandb_run.define_metric("*", step_metric="epoch")
        if resumes:
            # What the server has counts; a server that does not tell has what we know to have arrived.
            self.done = self._wandb_run.step - 1 if self._wandb_run.resumed else note["rows"]
        self._write_note(None)

    def add(self, rows: list[Row]) -> None:
        """Log the epochs that W&B does not have."""
        for row in rows:
            if row["epoch"] > self.done:
                self._wandb_run.log(dict(row), step=row["epoch"], commit=True)
                self.done = int(row["epoch"])

    def close(self, record: Record | None) -> None:
        """Log the result, None if there is none yet, and wait until W&B has everything."""
        if record:
            self.add(record.rows)
            self._wandb_run.summary.update(_summary(record))
        failed = record is not None and record.result["status"] == "failed"
        self._wandb_run.finish(exit_code=int(failed) if record else INTERRUPTED)
        self._write_note(store.seal(record) if record else None)

    def _write_note(self, seal: str | None) -> None:
        offline = Path(self._wandb_run.settings.sync_dir).name if self.place.mode == "offline" else None
        note = self.place.told | {
            "entity": self._wandb_run.entity or self.place.entity,
            "rows": 0 if offline else self.done,  # epochs known to have arrived
            "sha256": seal,  # of the result that W&B has
            "offline": offline,  # the folder that is still to be uploaded
        }
        write_text(self.path / NOTE, json.dumps(note, indent=1, ensure_ascii=False) + "\n")


@dataclass
class _Note:
    """What wandb.json has."""

    project: str
    entity: str | None
    group: str | None
    tags: list[str]
    notes: str | None
    rows: int
    sha256: str | None
    offline: str | None


def read_note(path: Path) -> dict[str, Any]:
    """What is known of a run folder's place in W&B; empty if nothing is, or the note is damaged."""
    with suppress(OSError, ValueError):
        note: dict[str, Any] = parse_json(read_text(path / NOTE))
        fits(_Note, note, NOTE)
        return note
    return {}


def _same_place(note: dict[str, Any], place: Place) -> bool:
    return bool(note) and note["project"] == place.project and place.entity in (None, note["entity"])


def is_uploaded(path: Path, record: Record, place: Place) -> bool:
    """Whether W&B has this very result, uploaded while training, by `publish` or by `wandb sync`."""
    note = read_note(path)
    if not _same_place(note, place) or note["sha256"] != store.seal(record):
        return False
    return note["offline"] is None or any((place.files / note["offline"]).glob("*.wandb.synced"))


def noted_place(path: Path, place: Place, given: Container[str]) -> Place:
    """`place`, but as the run was logged before in all that is not `given`."""
    note = read_note(path)
    return replace(place, **{name: note[name] for name in place.told if name in note and name not in given})


def open_run(place: Place, **arguments: Any) -> Any:
    """A W&B run of its own, whatever others this process has open, that looks at nothing but what it is given."""
    place.files.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=place.files) as file:  # else wandb goes to the system's temporary folder
        file.write(b"x")
    with library() as wandb:
        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,  # a remote's address can hold a password
            symlink=False,  # `wandb sync` would take latest-run for one more run
            init_timeout=WAIT,
            finish_timeout=WAIT,
            finish_timeout_raises=True,
            x_disable_meta=True,  # command line, host, user, packages: result.json has what matters
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        return wandb.init(
            **place.told,
            dir=str(place.folder),
            mode=place.mode,
            reinit="create_new",
            settings=settings,
            **arguments,
        )


def _config(run: Run) -> dict[str, Any]:
    """What to filter and group by; `run` is the run exactly, which numbers on their way through W&B may not be."""
    plain = run.to_dict()
    return plain | {
        "bn_batch_size": run.bn_batch_size or run.batch_size,
        "log2_base_lr": math.log2(run.base_lr),
        "log2_batch_size": math.log2(run.batch_size),
        "label": run.label,
        "run": json.dumps(plain, ensure_ascii=False),
    }


def _summary(record: Record) -> dict[str, Any]:
    best = max(record.rows, key=lambda row: row["test_accuracy"], default=None)
    found = {"best_epoch": best["epoch"], "best_test_accuracy": best["test_accuracy"]} if best else {}
    machine = {k: v for k, v in record.result.get("machine", {}).items() if k != "host"}  # W&B gets no machine's name
    return record.result | {"machine": machine} | found
