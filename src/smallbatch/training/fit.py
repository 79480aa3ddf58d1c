"""From a run to a finished run folder: claim, resume, train, record."""

import logging
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint

from smallbatch import lock, store
from smallbatch.data import Images, describe, load
from smallbatch.files import replacing
from smallbatch.lock import Claim
from smallbatch.machine import provenance
from smallbatch.run import Run
from smallbatch.store import DamagedRun, Record, Row
from smallbatch.tracking import live
from smallbatch.training.module import SmallBatch, trial
from smallbatch.training.score import score

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Outcome:
    """A run's record, and whether it was there already."""

    record: Record
    skipped: bool


def train(run: Run, cfg: DictConfig, say: Callable[[str], None]) -> Outcome:
    """Make sure that the run is in the store: skip it if it ended, resume it if it was cut off.

    `say` gets one-line notices. A training error is a record with status `failed`. Raises ConfigError
    before anything is written, Busy if another process has the run, KeyboardInterrupt on Ctrl-C.
    """
    path = store.folder(Path(cfg.store), run)
    known = None if cfg.overwrite else _known(path, say)
    if known:
        store.tidy(path)
        return Outcome(known, skipped=True)
    torch.set_num_threads(cfg.machine.threads)
    torch.set_flush_denormal(True)  # a dying network's tiny numbers would slow every step many times
    images = load(describe(OmegaConf.to_container(cfg.data, resolve=True)), cfg.machine.workers)  # type: ignore[arg-type]
    trial(run, images)
    live.require_login(cfg)
    with Claim(path) as claim:
        known = None if cfg.overwrite else _known(path, lambda line: None)  # it may have ended while we claimed
        if known:
            return Outcome(known, skipped=True)
        store.clear(path, ".*")  # what a killed process left half-written
        if cfg.overwrite or _is_damaged(path):
            store.clear(path)
        with live.followed(run, path, cfg, say) as follow:
            return Outcome(_train_claimed(run, images, path, claim, cfg, say, follow), skipped=False)


def _known(path: Path, say: Callable[[str], None]) -> Record | None:
    try:
        record = store.read(path)
    except DamagedRun as damage:
        say(f"damaged, training it again: {damage}")
        return None
    return record if record and record.result["status"] in store.ENDED else None


def _is_damaged(path: Path) -> bool:
    try:
        store.read(path)
    except DamagedRun:
        return True
    return False


def _train_claimed(
    run: Run,
    images: Images,
    path: Path,
    claim: Claim,
    cfg: DictConfig,
    say: Callable[[str], None],
    follow: Callable[[list[Row]], None],
) -> Record:
    store.write_config(path, run)
    checkpoint = _usable_checkpoint(path / store.CHECKPOINT, run, say)
    # Not taken over from the last attempt: `failed` says how this one ended.
    (path / "result.json").unlink(missing_ok=True)
    (path / "traceback.txt").unlink(missing_ok=True)
    module, error = None, None
    try:
        module = SmallBatch(run, images)
        _fit(module, KeepRun(path, claim, follow), checkpoint, cfg)
    except lock.Busy:
        raise
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}".splitlines()[0]
        (path / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
    rows = module.rows if module else []
    result = _result(run, images, rows, "diverged" if module and module.diverged else "finished", cfg)
    if error:
        result |= {"status": "failed", "score": None, "error": error}
    store.write_result(path, run, rows, result)
    if not error:
        (path / store.CHECKPOINT).unlink(missing_ok=True)
    return Record(run, rows, result)


class KeepRun(Checkpoint):
    """After every epoch but the last: check that the run is still ours, save it, write the rows; `follow` gets all.

    A Lightning `Checkpoint`, since those come after the module's own end of the epoch.
    """

    def __init__(self, path: Path, claim: Claim, follow: Callable[[list[Row]], None]) -> None:
        self.path, self.claim, self.follow = path, claim, follow

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, SmallBatch)
        if not self.claim.is_held():
            raise lock.Busy(f"{self.path}: another process took the run over while this one was asleep")
        if len(module.rows) < module.run.epochs and not module.diverged:
            with replacing(self.path / store.CHECKPOINT) as temporary:
                trainer.save_checkpoint(temporary)
            store.write_rows(self.path, module.rows)
        self.follow(module.rows)


def _fit(module: SmallBatch, keep: KeepRun, checkpoint: Path | None, cfg: DictConfig) -> None:
    module.network.to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        # Lightning's advice on DataLoader workers and on saving does not apply to blocks from memory.
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer = pl.Trainer(
            max_epochs=module.run.epochs,
            accelerator=cfg.machine.accelerator,
            devices=1,
            precision=module.run.precision,  # type: ignore[arg-type]
            logger=False,
            callbacks=[keep],
            enable_progress_bar=cfg.progress and sys.stdout.isatty(),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            # On the CPU one thread is deterministic already, and the switch makes every new tensor be filled.
            deterministic="warn" if torch.cuda.is_available() else None,
        )
        try:
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # Lightning's answer to Ctrl-C, after its clean-up
            raise KeyboardInterrupt from None


def _usable_checkpoint(path: Path, run: Run, say: Callable[[str], None]) -> Path | None:
    """The checkpoint if it can be read whole and is this run's; a broken one is reported and not used."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["smallbatch"]["key"] == run.key:
            return path
        say(f"{path}: is of another run; starting from the first epoch")
    except Exception as error:  # torch raises many kinds for a damaged file
        say(f"{path}: cannot be read ({type(error).__name__}); starting from the first epoch")
    path.unlink()
    return None


def _result(run: Run, images: Images, rows: list[store.Row], status: str, cfg: DictConfig) -> dict[str, Any]:
    chance = 1 / images.classes
    return {
        "status": status,
        "score": chance if status == "diverged" else score([row["test_accuracy"] for row in rows], run.epochs, chance),
        "chance": chance,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "seconds": sum(row["train_seconds"] + row["eval_seconds"] for row in rows),
        "ended": store.timestamp(),
        "threads": cfg.machine.threads,
        **provenance(),
    }
