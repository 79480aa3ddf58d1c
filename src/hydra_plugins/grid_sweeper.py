"""Hydra's door to the grid: `hydra/sweeper=grid`. Light, since Hydra imports it at every start."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

# Where conf/train.yaml has other sweepers write; Hydra would make it for ours too, and leave it empty.
OTHERS = "outputs"


class GridSweeper(Sweeper):
    """Hands a command line to `smallbatch.grids.sweep`, with the chosen launcher; `params`: words before its words."""

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params or {}
        self.launched = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.cfg = config
        self.nowhere = config.hydra.sweep.dir == OTHERS and not config.hydra.job.chdir
        if self.nowhere:
            config.hydra.sweep.dir = "."
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from smallbatch.compose import use_config
        from smallbatch.grids.sweep import ended_well, train_grid
        from smallbatch.settle import settle

        HydraConfig.instance().set_config(self.cfg)  # for ${hydra:…} in settings
        use_config(self.cfg.hydra.job.config_name)
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        helps = self.cfg.grid_since is not None  # the process that it was started by tells how the grid ended
        tell = _tell_nothing if helps else partial(_tell, self.cfg.margin)
        within = any(word.startswith(("settle=", "hours=")) for word in words)
        with ended_well():
            try:
                if within:
                    complete = settle(words, self._launch, self.cfg, tell)
                else:
                    complete = train_grid(self._launch, self.cfg, words, tell, helps)
            finally:
                if hasattr(self.launcher, "close"):
                    self.launcher.close(at_once=False)
            if not complete and not helps:
                sys.exit(1)

    def _launch(self, jobs: Sequence[Sequence[str]]) -> Any:
        """Raises what a job raised. Returns a launcher whose workers go on by themselves."""
        first, self.launched = self.launched, self.launched + len(jobs)
        more = ["hydra.sweep.dir=."] if self.nowhere else []
        for returned in self.launcher.launch([[*job, *more] for job in jobs], first):
            _ = returned.return_value
        return self.launcher if hasattr(self.launcher, "at_work") else None


def _tell_nothing(records: Any, folder: Path) -> list[str]:
    return []


def _tell(margin: float, records: Any, folder: Path) -> list[str]:
    from smallbatch.answer import tell_all  # matplotlib takes a second

    return tell_all(records, folder / "figures", margin)


ConfigStore.instance().store(
    group="hydra/sweeper", name="grid", node={"_target_": f"{__name__}.GridSweeper"}, provider="smallbatch"
)
