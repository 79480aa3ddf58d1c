"""Hydra's door to the grid: `hydra/sweeper=grid`. Light, since Hydra imports it at every start."""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(Sweeper):
    """Hands a command line to `smallbatch.grid.sweep`, with the chosen launcher."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.cfg = config
        self.launch = (
            Plugins.instance()
            .instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)
            .launch
        )

    def sweep(self, arguments: list[str]) -> Any:
        from smallbatch.compose import use_config
        from smallbatch.grid.sweep import sweep

        use_config(self.cfg.hydra.job.config_name)
        sweep(arguments, lambda jobs: self.launch(jobs, 0), self.cfg)


ConfigStore.instance().store(
    group="hydra/sweeper", name="grid", node={"_target_": f"{__name__}.GridSweeper"}, provider="smallbatch"
)
