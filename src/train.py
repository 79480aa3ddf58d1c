"""Train one run, or a grid of runs with -m. See README.md, or `python src/train.py --help`."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from smallbatch import lock, store
from smallbatch.cli import keep_interrupts
from smallbatch.compose import plain_errors
from smallbatch.config import ConfigError, register
from smallbatch.run import make_run

register()
keep_interrupts()


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """One run, alone or as a point of a grid; a point only leaves its record."""
    alone = not cfg.grid_point
    try:
        if cfg.figure:
            name = cfg.figure.name
            if name != "all" and not cfg.figure.scales:
                raise ConfigError(f"figure={name} trains nothing: python src/figures.py figure={name}")
            raise ConfigError(f"figure={name} is a grid: python src/train.py -m figure={name}")
        if cfg.scale.name != "paper":
            raise ConfigError(f"scale={cfg.scale.name} belongs to figures: python src/train.py -m figure=… scale=…")
        run = make_run(cfg)
        from smallbatch.training import fit  # heavy, and of no use to a wrong config

        outcome = fit.train(run, cfg, say=lambda line: print(line, file=sys.stderr))
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        if not alone:
            raise
        sys.exit("interrupted: the same command goes on after the last whole epoch")
    except lock.Busy as busy:
        if alone:
            sys.exit(f"error: {busy}")
        return
    if alone:
        print(store.summary(outcome.record, Path(cfg.store), outcome.skipped))
        sys.exit(1 if outcome.record.result["status"] == "failed" else 0)


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what is wrong with the command line instead of printing it at length
    try:
        with plain_errors():
            main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
