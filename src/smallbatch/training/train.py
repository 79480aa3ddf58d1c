"""The story of a run: config, run, data, network, training, record."""

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from smallbatch import lock, store
from smallbatch.compose import watched
from smallbatch.config import is_trial
from smallbatch.data import load_images, notice
from smallbatch.errors import ConfigError, kind_and_line
from smallbatch.files import write_text
from smallbatch.run import make_run
from smallbatch.store import Record


def train(cfg: DictConfig, say: Callable[[str], None]) -> tuple[Record, bool]:
    """See to it that the store has the run of a config. Its record, and whether it was there already.

    `say` gets one-line notices. An error in training is a record with status `failed`. A trial leaves nothing.
    Raises ConfigError before anything is written, Busy if another process trains the run, KeyboardInterrupt on Ctrl-C.
    """
    if not is_trial(cfg):
        return _train(cfg, Path(cfg.store), say)
    if cfg.grid_point:
        raise ConfigError("trainer.fast_dev_run and limit_*_batches are for a trial of one run, without -m")
    with tempfile.TemporaryDirectory() as nowhere:
        return _train(cfg, Path(nowhere), say)


def _train(cfg: DictConfig, folder: Path, say: Callable[[str], None]) -> tuple[Record, bool]:
    # The run is all of the config that decides its numbers. Its key names its folder.
    run = make_run(cfg)
    if (doubt := notice(cfg)) and not cfg.grid_point:  # a grid says it once
        say(doubt)
    path = store.folder(folder, run)
    if record := store.kept(path, cfg, say):
        store.tidy(path)
        if watched(cfg):
            say("this run was trained before, so callbacks and logger see nothing; overwrite=true trains it again")
        return record, True

    # These import torch, which takes seconds: wrong configs and finished runs do without.
    import torch

    from smallbatch.tracking import live
    from smallbatch.tracking.place import require
    from smallbatch.training import fit, helpers
    from smallbatch.training.module import SmallBatch
    from smallbatch.training.trial import trial

    torch.set_num_threads(cfg.machine.threads)
    torch.set_flush_denormal(True)  # a dying network's tiny numbers would slow every step many times

    # The images, whether the network takes them, and what is asked of Lightning.
    images = load_images(cfg)
    trial(run, images, folder, cfg.trainer.devices)
    settings = fit.trainer_settings(cfg, run, path / store.LIGHTNING)
    require(cfg, say)

    # From here on the run is ours, and nobody else touches its folder.
    with lock.hold(path):
        if record := store.kept(path, cfg, lambda line: None):  # it may have ended just now
            return record, True
        store.begin(path, run, afresh=bool(cfg.overwrite) and not store.is_of_grid(path / store.CHECKPOINT, cfg))

        # Lightning trains. After each epoch the checkpoint and the rows are saved, and W&B gets the rows.
        with live.followed(path, cfg, say) as follow:
            settings["callbacks"].append(fit.KeepRun(path, follow, say))
            module, error = None, ""
            try:
                module = SmallBatch(run, *images.sizes)
                checkpoint = fit.usable_checkpoint(path, module, say)
                with helpers.together(cfg, run, checkpoint) as module.ranks:
                    fit.fit(module, images, checkpoint, **settings)
                if not is_trial(cfg):
                    fit.check_ended(module)
            except Exception as caught:  # a user's network may raise what it likes: its run has failed, that is all
                error = kind_and_line(caught)
                write_text(path / store.TRACEBACK, traceback.format_exc())

            # The record: weights, rows, result. From then on the run is done, unless it failed.
            rows = module.rows if module else []
            status = "failed" if error else "diverged" if module and module.diverged else "finished"
            if module and status == "finished" and cfg.save_weights:
                fit.save_weights(module, path)
            result = fit.result(run, images, rows, status, cfg) | ({"error": error} if error else {})
            store.write_result(path, run, rows, result)
            if store.conclude(path, bool(error)):
                say(f"{path}: the run that was there before is back, since this one failed")
    return Record(run, rows, result), False
