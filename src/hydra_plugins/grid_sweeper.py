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


class GridSweeper(Sweeper):
    """Hands a command line to `smallbatch.grids.sweep`, with the chosen launcher; `params`: words before its words."""

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params or {}
        self.launched = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.cfg = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from smallbatch.compose import use_config
        from smallbatch.grids.sweep import ended_well, sweep

        HydraConfig.instance().set_config(self.cfg)  # for ${hydra:…} in settings
        use_config(self.cfg.hydra.job.config_name)
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        tell = partial(_tell, self.cfg.margin)
        if any(word.startswith(("settle=", "hours=")) for word in words):
            from smallbatch.settle import settle

            with ended_well():
                if not settle(words, self._launch, self.cfg, tell):
                    sys.exit(1)
        else:
            sweep(words, self._launch, self.cfg, tell)

    def _launch(self, jobs: Sequence[Sequence[str]]) -> None:
        """Raises what a job raised."""
        first, self.launched = self.launched, self.launched + len(jobs)
        for returned in self.launcher.launch(jobs, first):
            _ = returned.return_value


def _tell(margin: float, records: Any, folder: Path) -> list[str]:
    from smallbatch.answer import tell_all  # matplotlib takes a second

    return tell_all(records, folder / "figures", margin)


ConfigStore.instance().store(
    group="hydra/sweeper", name="grid", node={"_target_": f"{__name__}.GridSweeper"}, provider="smallbatch"
)
