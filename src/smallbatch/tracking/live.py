"""Weights & Biases: every run as one W&B run under its key, and never at the cost of a run.

Run folders are the source of truth, and W&B gets the rows of epochs.csv. While a run trains, all calls into
wandb happen on one thread of ours, so that training only hands over and goes on; the first call that fails
or hangs ends tracking for the process with one line, and `python src/publish.py` uploads what is missing.
A note in the run folder, wandb.json, says where the run is in W&B and how far.
"""

import atexit
import json
import math
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from smallbatch import store
from smallbatch.config import is_trial
from smallbatch.errors import ConfigError, SmallBatchError, one_line
from smallbatch.files import parse_json, read_text, write_text
from smallbatch.record import Record, Row, fits
from smallbatch.run import Run
from smallbatch.store import NOTE

WAIT = 30.0  # seconds that W&B gets to take a run, and that the end of a process waits for it
INTERRUPTED = 255  # wandb's own exit code for Ctrl-C

Say = Callable[[str], None]


@contextmanager
def wandb_errors() -> Iterator[None]:
    """What W&B or the way to it raises, of many kinds, as a SmallBatchError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise SmallBatchError(f"W&B: {one_line(error)}") from None


@dataclass(frozen=True)
class Place:
    """Where runs go: `mode` online or offline; `folder` is the one that wandb makes its folder `wandb` in."""

    mode: str | None
    entity: str | None
    project: str
    group: str | None
    tags: tuple[str, ...]
    notes: str | None
    folder: Path

    @classmethod
    def of(cls, cfg: DictConfig) -> "Place":
        """As configured; `mode` is None while it is to be found out."""
        plain: Any = OmegaConf.to_container(cfg.wandb, enum_to_str=True)
        plain["mode"] = plain["mode"] or os.environ.get("WANDB_MODE")
        return cls(**plain | {"tags": tuple(plain["tags"]), "folder": Path(cfg.store).absolute().parent})

    @property
    def files(self) -> Path:
        """Where wandb keeps its files, one folder a run."""
        return self.folder / "wandb"

    @property
    def told(self) -> dict[str, Any]:
        """What W&B is told of it, and a note keeps."""
        return {name: getattr(self, name) for name in ("entity", "project", "group", "tags", "notes")}


# --- one run in W&B


@dataclass
class Page:
    """One run's page in W&B: opened, filled, closed, in this order, all with wandb's exceptions."""

    run: Run
    path: Path
    place: Place
    done: int = 0  # epochs that W&B has
    _wandb_run: Any = None

    def open(self) -> None:
        """Continue the W&B run that the note knows; without a note, replace what W&B has under the key.

        Offline it is always written whole: `wandb sync` replaces a run by each further folder of its key.
        """
        note = read_note(self.path)
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


def _wandb() -> Any:
    """wandb, which prints nothing."""
    # Not to W&B's own error reports: they print to the terminal when the server is away. Read at import.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


def open_run(place: Place, **arguments: Any) -> Any:
    """A W&B run of its own, whatever others this process has open, that looks at nothing but what it is given."""
    wandb = _wandb()
    place.files.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=place.files) as file:  # else wandb goes to the system's temporary folder
        file.write(b"x")
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


# --- while training


@contextmanager
def followed(run: Run, path: Path, cfg: DictConfig, say: Say) -> Iterator[Callable[[list[Row]], None]]:
    """Within it, call what it yields with all epochs so far; at its end W&B gets the result in the folder."""
    place = Place.of(cfg)
    if cfg.logger.name != "wandb" or is_trial(cfg) or place.mode == "disabled":
        yield lambda rows: None
        return
    page, worker = Page(run, path, place), _worker()

    def open_page() -> None:
        if not cfg.grid_point:  # the sweep has settled and said it
            page.place = settled(place, say)
        page.open()

    worker.do(open_page, say)
    try:
        yield lambda rows: worker.do(lambda rows=list(rows): page.add(rows), say)  # type: ignore[misc]
    finally:
        worker.do(lambda: page.close(store.read(path)), say)


@dataclass
class Worker:
    """The thread that talks to W&B: one job after the other, and none any more after the first that fails."""

    jobs: "queue.SimpleQueue[tuple[Callable[[], None], Say]]" = field(default_factory=queue.SimpleQueue)
    gave_up: bool = False

    def __post_init__(self) -> None:
        threading.Thread(target=self._work, daemon=True, name="wandb").start()
        atexit.register(self.drain)

    def do(self, job: Callable[[], None], say: Say) -> None:
        """Hand over a job; `say` gets the one line if it fails."""
        if not self.gave_up:
            self.jobs.put((job, say))
            self.say = say

    def drain(self) -> None:
        """Wait for the jobs handed over, but no longer than W&B may take."""
        done = threading.Event()
        self.jobs.put((done.set, print))
        if not self.gave_up and not done.wait(2 * WAIT):
            self._give_up(TimeoutError(f"no answer for {2 * WAIT:.0f} s"), self.say)

    def _work(self) -> None:
        first = True
        while True:
            job, say = self.jobs.get()
            try:
                if not self.gave_up:
                    job()
            except BaseException as error:  # wandb may even raise SystemExit
                self._give_up(error, say)
            if first:
                atexit.register(self.drain)  # again: before wandb's own, which is there since the first job
                first = False

    def _give_up(self, error: BaseException, say: Say) -> None:
        if self.gave_up:
            return
        self.gave_up = True
        reason = one_line(error)
        say(f"W&B: {reason}; not logged from here on, training is not affected. Later: python src/publish.py")


@cache
def _worker() -> Worker:
    """This process's only one."""
    return Worker()


# --- online or offline


def require_login(cfg: DictConfig) -> None:
    """Raises ConfigError if W&B is to be online for certain and cannot be."""
    if cfg.logger.name == "wandb" and not cfg.grid_point and Place.of(cfg).mode == "online":
        settled(Place.of(cfg), lambda line: None)


def settled(place: Place, say: Say) -> Place:
    """The place with a mode, which is said in one line. Raises ConfigError for online without a login."""
    mode, why = place.mode, ""
    if mode in (None, "online"):
        known, server = login()
        if not known and mode:
            raise ConfigError(f"wandb.mode=online: no login for {server}; say `wandb login`, or wandb.mode=offline")
        if not known:
            mode, why = "offline", f", no login for {server}"
        elif mode is None:
            mode, why = ("online", "") if answers() else ("offline", f", {server} does not answer")
    if mode == "offline":
        files = os.path.relpath(place.files)
        say(f"W&B: offline{why}; upload later with `wandb sync {files}/offline-run-*` or `python src/publish.py`")
    return replace(place, mode=mode)


def login() -> tuple[bool, str]:
    """Whether wandb would find credentials without asking, and the server they are for."""
    import requests

    settings = _wandb().setup().settings
    netrc = requests.utils.get_netrc_auth(settings.base_url)
    return bool(settings.api_key or settings.identity_token_file or netrc), settings.base_url


def answers() -> bool:
    """Whether the W&B server can be reached now."""
    import requests

    try:
        return requests.head(login()[1], timeout=5).status_code < 500
    except requests.RequestException:
        return False
