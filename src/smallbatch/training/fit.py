"""The parts of training that `src/train.py` puts together: Lightning's trainer, what an epoch leaves, the result."""

import inspect
import logging
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, DeviceStatsMonitor, LearningRateMonitor
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.nn.parameter import is_lazy

from smallbatch import store
from smallbatch.code import digests
from smallbatch.data import Images
from smallbatch.errors import ConfigError, one_line
from smallbatch.files import add_checksum, checksum_fits, replacing, timestamp
from smallbatch.machine import provenance
from smallbatch.ranks import accelerator
from smallbatch.run import Run
from smallbatch.store import DamagedRun, Row
from smallbatch.targets import check_call, locate
from smallbatch.training.module import ImageData, SmallBatch
from smallbatch.training.score import score

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)


class Agree(Checkpoint):
    """Let all ranks stop after an epoch if one is told to, as by a callback, which rank 0 alone has.

    A Lightning `Checkpoint`, since those come last, after the module's own end of the epoch.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, SmallBatch)
        (trainer.should_stop,) = module.ranks.agree(trainer.should_stop)


class KeepRun(Agree):
    """After every epoch but the last: save the run, write its rows; `follow` is told.

    `say` hears if what the first checkpoint holds could never be loaded again: then there are none.
    """

    def __init__(self, path: Path, follow: Callable[[], None], say: Callable[[str], None]) -> None:
        self.path, self.follow, self.say = path, follow, say
        self.loads: bool | None = None  # not tried yet

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, SmallBatch)
        if not module.ended and self.loads is not False:
            file = self.path / store.CHECKPOINT
            _save(trainer, file)
            if self.loads is None:
                self.loads = self._try_to_load(file, module.run)
        if not module.ended:
            store.write_rows(self.path, module.rows)
            self.follow()
        super().on_train_epoch_end(trainer, module)

    def _try_to_load(self, file: Path, run: Run) -> bool:
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # an UnpicklingError, if not a user's own
            found = re.search(r"GLOBAL (\S+)", str(error))
            what = f"a {found[1]}" if found else one_line(error)
            self.say(
                f"{run.label}: its checkpoint cannot be loaded again, for it holds {what}, which is no tensor, number "
                "or text; so it has none, and if it is cut off it starts again"
            )
            file.unlink()
            return False
        return True


def _save(trainer: pl.Trainer, path: Path, weights_only: bool = False) -> None:
    """Save a checkpoint with a checksum behind its end, in one step."""
    with replacing(path) as temporary:
        trainer.save_checkpoint(temporary, weights_only)
        add_checksum(temporary)


def trainer_settings(cfg: DictConfig, run: Run, folder: Path) -> dict[str, Any]:
    """What the config says to Lightning's Trainer, beside the run itself; its files go below `folder`.

    Raises ConfigError for a callback or a logger that cannot be made. Writes nothing.
    """
    settings: Any = OmegaConf.to_container(cfg.trainer)
    del settings["devices"]  # of the run, which `ranks` of Trainers share
    callbacks = [_callback(name, node) for name, node in cfg.callbacks.items()]
    logger = _logger(cfg.logger, run, folder)
    for name, callback in zip(cfg.callbacks, callbacks, strict=True):
        if isinstance(callback, LearningRateMonitor | DeviceStatsMonitor) and not logger:
            raise ConfigError(f"callbacks.{name}: writes to a logger of Lightning's; add one, such as logger=csv")
    if settings["deterministic"] is None and torch.cuda.is_available():
        settings["deterministic"] = "warn"  # on the CPU one thread is, and the switch makes every new tensor be filled
    _check_trainer(accelerator(cfg), settings | {"precision": run.precision})
    return settings | {
        "max_epochs": run.epochs,
        "accelerator": accelerator(cfg),
        "callbacks": callbacks,
        "logger": logger,
        "default_root_dir": folder,
        "enable_progress_bar": cfg.progress and sys.stdout is not None and sys.stdout.isatty(),
    }


def _check_trainer(accelerator: str, settings: dict[str, Any]) -> None:
    """Raise ConfigError for what Lightning refuses, since no run has failed by that."""
    quiet: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "devices": 1}
    for where, asked in ((f"machine.accelerator={accelerator}", {}), ("trainer", settings)):
        try:
            with warnings.catch_warnings(action="ignore"):
                pl.Trainer(accelerator=accelerator, plugins=[LightningEnvironment()], **quiet, **asked)
        except Exception as error:  # of many kinds
            raise ConfigError(f"{where}: {one_line(error)}") from None


def _callback(name: Any, node: DictConfig) -> pl.Callback:
    try:
        made = instantiate(node)
    except (HydraException, ImportError) as error:
        raise ConfigError(f"callbacks.{name}: {one_line(error.__cause__ or error)}") from None
    if not isinstance(made, pl.Callback):
        raise ConfigError(f"callbacks.{name}: is no callback of Lightning; name one in its _target_")
    return made


def _logger(node: DictConfig, run: Run, folder: Path) -> Logger | bool:
    """Lightning's logger; False where there is none, and for W&B, which is ours."""
    settings: Any = OmegaConf.to_container(node, resolve=True)
    if "_target_" not in settings:
        return False
    target, name = locate(settings.pop("_target_"), "logger"), settings.pop("name", "logger")
    # MLflow refuses the folder that Lightning's logger would write to by itself.
    own = {
        "save_dir": str(folder),
        "name": name,
        "run_name": run.label,
        "tracking_uri": f"sqlite:///{folder}/{name}.db",
    }
    named = inspect.signature(target).parameters  # what a ** takes goes elsewhere: TensorBoard's to its writer
    arguments = {k: v for k, v in own.items() if k in named} | settings
    check_call(target, arguments, "logger")
    try:
        made: Logger = target(**arguments)
    except ImportError as error:
        raise ConfigError(f"logger={name}: {one_line(error)}") from None
    if not isinstance(made, Logger):
        raise ConfigError(f"logger={name}: is no logger of Lightning; name one in its _target_")
    return made


def fit(module: SmallBatch, images: Images, checkpoint: Path | None = None, **settings: Any) -> None:
    """Train a module, from a checkpoint if there is one; `settings` are the Trainer's.

    Raises KeyboardInterrupt on Ctrl-C.
    """
    with warnings.catch_warnings():
        # Lightning's advice on DataLoader workers, on saving and on srun does not apply to blocks from memory.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric\.plugins\.environments")
        # The variables of srun, torchrun, … count copies of this command, each of which has runs of its own.
        ranks = module.ranks
        rank_zero_only.rank = ranks.rank  # type: ignore[attr-defined]
        settings |= {"devices": 1 if ranks.device == "cpu" else [ranks.rank], "plugins": [LightningEnvironment()]}
        trainer = pl.Trainer(precision=module.run.precision, num_sanity_val_steps=0, **settings)  # type: ignore[arg-type]
        if trainer.loggers:
            Path(trainer.default_root_dir).mkdir(parents=True, exist_ok=True)
        try:
            trainer.fit(module, ImageData(module.run, images, ranks), ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # Lightning's answer to Ctrl-C, after its clean-up
            raise KeyboardInterrupt from None


def check_ended(module: SmallBatch) -> None:
    """Raise ConfigError if the run is not over: something that is no part of it ended it."""
    if not module.ended:
        raise ConfigError(
            f"a callback ended the run after epoch {len(module.rows)} of {module.run.epochs}, which changes its "
            "result; to have that say stop=early_stopping, which is part of the run"
        )


def save_weights(module: SmallBatch, path: Path) -> None:
    """Keep the trained network in a run folder, for `smallbatch.load` or `SmallBatch.load_from_checkpoint`."""
    _save(module.trainer, path / store.WEIGHTS, weights_only=True)


def load_checked(file: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. Raises DamagedRun; those of older versions have CRCs of their parts."""
    try:
        fits = checksum_fits(file)
        has_own = fits is not None
        if not has_own:  # of an older version
            with zipfile.ZipFile(file) as archive:
                fits = archive.testzip() is None
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True) if fits else {}
        if not fits or state["smallbatch"].get("checksum", False) > has_own:
            raise DamagedRun(f"{file}: does not match its checksum")
        return state
    except DamagedRun:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise DamagedRun(f"{file}: cannot be read ({type(error).__name__})") from None


def usable_checkpoint(path: Path, module: SmallBatch, say: Callable[[str], None]) -> Path | None:
    """The checkpoint in a run folder if it can be read whole and fits the module; another is said and removed."""
    file = path / store.CHECKPOINT
    if not file.exists():
        return None
    try:
        state = load_checked(file)
        if state["smallbatch"]["key"] != module.run.key:
            raise DamagedRun(f"{file}: is of another run")
        if not _fit_together(state["state_dict"], module.state_dict()):
            raise DamagedRun(f"{file}: is of a network with other layers")
        return file
    except DamagedRun as damage:
        say(f"{damage}; starting from the first epoch")
    except (KeyError, TypeError, AttributeError):
        say(f"{file}: is no checkpoint of ours; starting from the first epoch")
    file.unlink()
    return None


def _fit_together(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states have tensors of the same names and shapes; a lazy layer has no shape yet."""

    def shape(value: Any) -> Any:
        return value.shape if isinstance(value, Tensor) and not is_lazy(value) else None

    shapes = [(shape(one[name]), shape(other[name])) for name in one.keys() & other.keys()]
    return one.keys() == other.keys() and all(a == b for a, b in shapes if None not in (a, b))


def result(run: Run, images: Images, rows: list[Row], status: str, cfg: DictConfig) -> dict[str, Any]:
    """What result.json says of a run that ended as `status`."""
    chance = 1 / images.classes
    scores = {"failed": None, "diverged": chance}
    code = digests(run)
    return {
        "status": status,
        "score": scores[status] if status in scores else score([r["test_accuracy"] for r in rows], len(rows), chance),
        "chance": chance,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "seconds": sum(row["train_seconds"] + row["eval_seconds"] for row in rows),
        "ended": timestamp(),
        "threads": cfg.machine.threads,
        **({"code": code} if code else {}),
        **provenance(cfg.machine.accelerator, cfg.trainer.devices),
    }
