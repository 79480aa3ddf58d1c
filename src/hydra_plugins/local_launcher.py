"""`hydra/launcher=local`: jobs in parallel processes of this machine, kept warm, one thread each."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class LocalLauncherConf:
    """`n_jobs`: processes at a time; -1 is as many as this process may use cores."""

    _target_: str = f"{__name__}.LocalLauncher"
    n_jobs: int = -1


class LocalLauncher(Launcher):
    """joblib's loky."""

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from joblib import Parallel, delayed, parallel_config

        state = Singleton.get_state()
        # Composed here, when a worker is about to be free, which has nothing to do meanwhile.
        jobs = (
            delayed(_run)(os.getpid(), state, self.context, self.task, self._compose(list(overrides), index))
            for index, overrides in enumerate(job_overrides, initial_job_idx)
        )
        with parallel_config("loky", n_jobs=self.n_jobs, inner_max_num_threads=1):
            returned: list[JobReturn] = Parallel(batch_size=1)(jobs)
        return returned

    def _compose(self, overrides: list[str], index: int) -> DictConfig:
        cfg = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = f"{cfg.hydra.job.name}_{index}", index
        return cfg


def _run(parent: int, state: Any, context: HydraContext, task: TaskFunction, cfg: DictConfig) -> JobReturn:
    """One job, in a process that does not know of this one's resolvers and Hydra yet."""
    from smallbatch.signals import end_with

    end_with(parent)
    Singleton.set_state(state)
    return run_job(
        hydra_context=context,
        task_function=task,
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="smallbatch")
