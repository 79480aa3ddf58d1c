"""`hydra/launcher=ray`: each job a task of a Ray cluster, which starts it again if its worker or its machine dies."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.local_launcher import compose_jobs, peek, run


@dataclass
class RayLauncherConf:
    """`address`: of a cluster to join, as `ray start` prints it, or auto; null: RAY_ADDRESS, or one of our own, here.

    Of one run: `num_cpus`, null is machine.threads; `num_gpus`, null is 1 where the cluster has some and the
    accelerator is not cpu; how often a run whose worker or machine died is started again, -1 is always.
    """

    _target_: str = f"{__name__}.RayLauncher"
    address: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    max_retries: int = 3


class RayLauncher(Launcher):
    """Ray's tasks."""

    def __init__(self, address: str | None, num_cpus: float | None, num_gpus: float | None, max_retries: int) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS") or "local"
        self.num_cpus, self.num_gpus, self.max_retries = num_cpus, num_gpus, max_retries

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from smallbatch.errors import ConfigError

        if not find_spec("ray"):
            raise ConfigError("hydra/launcher=ray: Ray is not installed: pip install '.[ray]'")
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra_plugins._ray_tasks import join, needs, run_all

        first, jobs = peek(compose_jobs(self.context, self.config, job_overrides, initial_job_idx))
        join(self.address)
        threads = self.num_cpus or OmegaConf.select(first, "machine.threads", default=1)
        accelerator = OmegaConf.select(first, "machine.accelerator", default="auto")
        asked = needs(threads, self.num_gpus, accelerator, self.address)
        state = Singleton.get_state()
        every = ((state, self.context, self.task, cfg) for cfg in jobs)
        return run_all(run, every, max_retries=self.max_retries, **asked)


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayLauncherConf, provider="smallbatch")
