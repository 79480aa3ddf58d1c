"""Train one run, or a grid of runs with -m. See README.md, or `python src/train.py --help`.

The story of a run is in `src/smallbatch/training/train.py`.
"""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from smallbatch import lock, store
from smallbatch.cli import keep_interrupts
from smallbatch.compose import plain_errors
from smallbatch.config import ConfigError, format_power, is_trial, register
from smallbatch.files import disk_error
from smallbatch.training.train import train

register()
keep_interrupts()


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """One run, alone or as a point of a grid; a point only leaves its record."""
    alone = not cfg.grid_point
    try:
        _refuse_grids(cfg)
        if cfg.save_weights is None:
            cfg.save_weights = alone
        record, before = train(cfg, say=lambda line: print(line, file=sys.stderr))
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # of the store: it is full, or belongs to someone else
        sys.exit(f"error: {disk_error(error, Path(cfg.store))}")
    except KeyboardInterrupt:
        if not alone:
            raise
        sys.exit("interrupted: the same command goes on after the last whole epoch")
    except lock.Busy as busy:
        if alone:
            sys.exit(f"error: {busy}")
        return  # the grid comes back to it
    if alone:
        print(store.trial_summary(record) if is_trial(cfg) else store.summary(record, Path(cfg.store), before))
        if record.result["status"] == "diverged":
            less = format_power(record.run.base_lr / 4).replace("^", "**")
            print(f"diverged: the learning rate is too high for this network and batch size; try base_lr={less}")
        sys.exit(1 if record.result["status"] == "failed" else 0)


def _refuse_grids(cfg: DictConfig) -> None:
    if cfg.figure:
        name = cfg.figure.name
        if name != "all" and not cfg.figure.scales:
            raise ConfigError(f"figure={name} trains nothing: python src/figures.py figure={name}")
        raise ConfigError(f"figure={name} is a grid: python src/train.py -m figure={name}")
    if cfg.scale.name != "paper":
        raise ConfigError(f"scale={cfg.scale.name} belongs to figures: python src/train.py -m figure=… scale=…")


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what is wrong with the command line instead of printing it at length
    try:
        with plain_errors():
            main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
