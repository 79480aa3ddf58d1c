"""The parts of training that `src/train.py` puts together: Lightning's trainer, what an epoch leaves, the result."""

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Checkpoint

from smallbatch import store
from smallbatch.data import Images
from smallbatch.files import replacing
from smallbatch.machine import provenance
from smallbatch.run import Run
from smallbatch.store import Row
from smallbatch.training.module import SmallBatch
from smallbatch.training.score import score

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)


class KeepRun(Checkpoint):
    """After every epoch but the last: save the run, write its rows; `follow` gets the rows of all epochs.

    A Lightning `Checkpoint`, since those come after the module's own end of the epoch.
    """

    def __init__(self, path: Path, follow: Callable[[list[Row]], None]) -> None:
        self.path, self.follow = path, follow

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, SmallBatch)
        if len(module.rows) < module.run.epochs and not module.diverged:
            with replacing(self.path / store.CHECKPOINT) as temporary:
                trainer.save_checkpoint(temporary)
            store.write_rows(self.path, module.rows)
        self.follow(module.rows)


def fit(module: SmallBatch, keep: KeepRun, checkpoint: Path | None, cfg: DictConfig) -> None:
    """Train a module to its last epoch, from a checkpoint if there is one. Raises KeyboardInterrupt on Ctrl-C."""
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
            enable_progress_bar=cfg.progress and sys.stdout is not None and sys.stdout.isatty(),
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


def usable_checkpoint(path: Path, run: Run, say: Callable[[str], None]) -> Path | None:
    """The checkpoint in a run folder if it can be read whole and is this run's; a broken one is said and removed."""
    file = path / store.CHECKPOINT
    if not file.exists():
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        if state["smallbatch"]["key"] == run.key:
            return file
        say(f"{file}: is of another run; starting from the first epoch")
    except Exception as error:  # torch raises many kinds for a damaged file
        say(f"{file}: cannot be read ({type(error).__name__}); starting from the first epoch")
    file.unlink()
    return None


def result(run: Run, images: Images, rows: list[Row], status: str, cfg: DictConfig) -> dict[str, Any]:
    """What result.json says of a run that ended as `status`."""
    chance = 1 / images.classes
    scores = {"failed": None, "diverged": chance}
    return {
        "status": status,
        "score": scores[status] if status in scores else score([r["test_accuracy"] for r in rows], run.epochs, chance),
        "chance": chance,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "seconds": sum(row["train_seconds"] + row["eval_seconds"] for row in rows),
        "ended": store.timestamp(),
        "threads": cfg.machine.threads,
        **provenance(),
    }
