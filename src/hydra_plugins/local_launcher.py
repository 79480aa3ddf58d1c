"""`hydra/launcher=local`: points in parallel processes of this machine, kept warm, one thread each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class LocalLauncherConf:
    """`n_jobs`: processes at a time; -1 is as many as this process may use cores."""

    _target_: str = f"{__name__}.LocalLauncher"
    n_jobs: int = -1


class LocalLauncher(Launcher):
    """joblib's loky. A point reports through its run folder, so nothing comes back."""

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from joblib import Parallel, delayed, parallel_config

        # Composed here, when a worker is about to be free, so that workers need no Hydra.
        jobs = (delayed(self.task)(self._compose(list(overrides))) for overrides in job_overrides)
        with parallel_config("loky", n_jobs=self.n_jobs, inner_max_num_threads=1):
            Parallel(batch_size=1)(jobs)
        return []

    def _compose(self, overrides: list[str]) -> Any:
        cfg = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="smallbatch")
