"""Train one run, or a grid of runs with -m. See README.md, or `python src/train.py --help`.

The story of a run is in `src/smallbatch/training/train.py`.
"""

from smallbatch import signals, surroundings

if __name__ == "__main__":
    surroundings.shut_out()  # before the imports below read the variables of other tools
    signals.at_once()  # while they take seconds

import os
import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf

from smallbatch import lock, store
from smallbatch.cli import one_line_errors
from smallbatch.compose import VERSION_BASE, check_names, check_values, plain_errors
from smallbatch.config import SEARCH, is_trial, register
from smallbatch.errors import ConfigError, SmallBatchError, tell, tell_once
from smallbatch.files import disk_error
from smallbatch.powers import format_power
from smallbatch.quoting import of_point, whole_paths
from smallbatch.run import make_run
from smallbatch.store import Record
from smallbatch.training.train import train

register()


@hydra.main(config_path="../conf", config_name="train", **VERSION_BASE)
def main(cfg: DictConfig) -> float | None:
    """One run, alone or as a job of a sweep: its score, which sweepers that optimise ask for.

    A point of our grid only leaves its record. A job of another sweep raises SmallBatchError, and the others go on.
    """
    cfg = of_point(cfg)
    of_grid, of_sweep = bool(cfg.grid_point), _is_job()
    try:
        check_names(cfg)
        check_values(cfg)
        _refuse_grids(cfg)
        _settle(cfg, of_grid or of_sweep)
        in_turn = (of_sweep or _is_copy()) and not of_grid and cfg.wait
        record, before = _train_in_turn(cfg, in_turn)
    except OSError as error:  # of the store: it is full, or belongs to someone else
        sys.exit(f"error: {disk_error(error, Path(cfg.store))}")
    except KeyboardInterrupt:
        if of_grid or of_sweep:
            raise
        print("interrupted: the same command goes on after the last whole epoch", file=sys.stderr)
        sys.exit(signals.status())
    except SmallBatchError as error:
        if of_grid and isinstance(error, lock.Busy | store.NotOurs):
            return None  # the grid comes back to it, and says what it left alone
        if of_sweep and not of_grid:
            raise
        sys.exit(f"error: {error}")
    if not of_grid:
        _tell(cfg, record, before, of_sweep)
    return record.result["score"]


def _train_in_turn(cfg: DictConfig, wait: bool) -> tuple[Record, bool]:
    """Train; with `wait`, as a sweeper or srun may ask for one run twice at a time, when nobody else does any more."""
    while True:
        try:
            return train(cfg, say=tell_once if _is_job() else tell)
        except lock.Busy:
            if not wait:
                raise
            time.sleep(1)


def _is_job() -> bool:
    """Whether a sweeper launched this, be it ours or another."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def _is_copy() -> bool:
    """Whether srun, torchrun or mpirun started several of this command."""
    return any(os.environ.get(count, "1") != "1" for count in ("SLURM_NTASKS", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"))


def _settle(cfg: DictConfig, of_many: bool) -> None:
    """Give values to what depends on how Hydra runs this. Raises ConfigError."""
    if cfg.save_weights is None:
        cfg.save_weights = not of_many
    cfg.progress &= not of_many  # bars of processes in parallel would overwrite each other
    if HydraConfig.initialized() and HydraConfig.get().job.chdir:  # paths stay those of where the command was given
        for key in ("store", "data.root", "data.path"):
            if path := OmegaConf.select(cfg, key):
                OmegaConf.update(cfg, key, to_absolute_path(path))
    if cfg.grid_point and make_run(cfg).key != cfg.grid_point:
        raise ConfigError("a setting written as ${…} has another value in each process: write the value itself")


def _tell(cfg: DictConfig, record: Record, before: bool, of_sweep: bool) -> None:
    """Print how a run ended. If it failed: exit status 1, or for a sweep SmallBatchError."""
    print(store.trial_summary(record) if is_trial(cfg) else store.summary(record, Path(cfg.store), before))
    if record.result["status"] == "diverged":
        less = format_power(record.run.base_lr / 4).replace("^", "**")
        print(f"diverged: the learning rate is too high for this network and batch size; try base_lr={less}")
    if record.result["status"] == "failed":
        if of_sweep:
            raise SmallBatchError(f"{record.run.label}: {record.result['error']}")
        sys.exit(1)


def _refuse_grids(cfg: DictConfig) -> None:
    if cfg.figure:
        name = cfg.figure.name
        if name != "all" and not cfg.figure.scales:
            raise ConfigError(f"figure={name} trains nothing: python src/figures.py figure={name}")
        raise ConfigError(f"figure={name} is a grid: python src/train.py -m figure={name}")
    if cfg.base_lr == SEARCH:
        raise ConfigError("base_lr=search is a grid: python src/train.py -m base_lr=search …")
    if cfg.scale.name != "paper":
        raise ConfigError(f"scale={cfg.scale.name} belongs to figures: python src/train.py -m figure=… scale=…")


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what is wrong with the command line instead of printing it at length
    # For launchers that start Python anew, as some of Hydra's do: they do not know of this script's folder.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH"))))
    sys.argv[1:] = whole_paths(sys.argv[1:])
    with one_line_errors(printed=False), plain_errors(sys.argv[1:]):
        main()
