"""`hydra/launcher=ray`: each job a task of a Ray cluster, which starts it again if its worker or its machine dies."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.local_launcher import check_numbers, compose_jobs, peek, run
from smallbatch.ranges import within


@dataclass
class RayLauncherConf:
    """`address`: of a cluster to join, as `ray start` prints it, or auto; null: RAY_ADDRESS, or one of our own, here.

    Of one run: `num_cpus`, null is machine.threads; `num_gpus`, null is 1 where the cluster has some and the
    accelerator is not cpu; how often a run whose worker or machine died is started again, -1 is always.
    """

    _target_: str = f"{__name__}.RayLauncher"
    address: str | None = None
    num_cpus: float | None = within("[0, 1024]", None)
    num_gpus: float | None = within("[0, 1024]", None)
    max_retries: int = within("[0, 1000]", 3, also=-1)


class RayLauncher(Launcher):
    """Ray's tasks."""

    def __init__(self, address: str | None, num_cpus: float | None, num_gpus: float | None, max_retries: int) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS") or "local"
        self.num_cpus, self.num_gpus, self.max_retries = num_cpus, num_gpus, max_retries

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from smallbatch.errors import ConfigError

        if not find_spec("ray"):
            raise ConfigError("hydra/launcher=ray: Ray is not installed: pip install '.[ray]'")
        check_numbers(config)
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra_plugins._ray_tasks import join, machines, run_all

        first, jobs = peek(compose_jobs(self.context, self.config, job_overrides, initial_job_idx))
        join(self.address)
        asked = needs(first, self.num_cpus, self.num_gpus, machines())
        check(asked, machines(), grows=self.address != "local")
        state = Singleton.get_state()
        every = ((state, self.context, self.task, cfg) for cfg in jobs)
        return run_all(run, every, max_retries=self.max_retries, num_cpus=asked["CPU"], num_gpus=asked["GPU"])


def needs(
    cfg: DictConfig, num_cpus: float | None, num_gpus: float | None, machines: list[dict[str, float]]
) -> dict[str, float]:
    """What a run takes of a machine, in Ray's words."""
    from smallbatch.machine import USES_GPU

    accelerator = OmegaConf.select(cfg, "machine.accelerator", default="auto")
    if num_gpus is None:
        some = accelerator != "auto" or any(machine.get("GPU") for machine in machines)
        num_gpus = 1.0 if accelerator in USES_GPU and some else 0.0
    if num_cpus is None:
        num_cpus = OmegaConf.select(cfg, "machine.threads", default=1)
    return {"CPU": float(num_cpus), "GPU": num_gpus}


def check(asked: dict[str, float], machines: list[dict[str, float]], grows: bool) -> None:
    """Say that no machine has what a run takes. Raises ConfigError if no other machine will come."""
    from smallbatch.errors import ConfigError

    if any(all(machine.get(kind, 0) >= least for kind, least in asked.items()) for machine in machines):
        return
    cpus, gpus = asked["CPU"], asked["GPU"]
    has = ", ".join(f"{machine.get('CPU', 0):g} and {machine.get('GPU', 0):g}" for machine in machines)
    text = f"hydra/launcher=ray: no machine has num_cpus={cpus:g} and num_gpus={gpus:g}; there are {has}"
    if not grows:
        raise ConfigError(text)
    print(f"{text}; waiting for one that has", file=sys.stderr)


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayLauncherConf, provider="smallbatch")
