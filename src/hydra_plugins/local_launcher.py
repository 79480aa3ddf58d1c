"""`hydra/launcher=local`: jobs in parallel processes of this machine, kept warm, one thread each, a GPU each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from smallbatch.ranges import FEW, check_ranges, within


@dataclass
class LocalLauncherConf:
    """`n_jobs`: processes at a time; -1 is `jobs_per_device` for each GPU, or where none is used one for each core."""

    _target_: str = f"{__name__}.LocalLauncher"
    n_jobs: int = within(FEW, -1, also=-1)
    jobs_per_device: int = within(FEW, 1)


class LocalLauncher(Launcher):
    """joblib's loky."""

    def __init__(self, n_jobs: int, jobs_per_device: int) -> None:
        self.n_jobs, self.jobs_per_device = n_jobs, jobs_per_device

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        check_numbers(config)
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from smallbatch.machine import processes
        from smallbatch.processes import in_parallel

        # Composed when a worker is about to be free, here, where there is nothing to do meanwhile.
        first, jobs = peek(compose_jobs(self.context, self.config, job_overrides, initial_job_idx))
        n_jobs = self.n_jobs
        if n_jobs == -1:
            n_jobs = processes(OmegaConf.select(first, "machine.accelerator", default="auto"), self.jobs_per_device)
        state = Singleton.get_state()
        return in_parallel(run, ((state, self.context, self.task, cfg) for cfg in jobs), n_jobs)


def check_numbers(config: DictConfig) -> None:
    """Raise ConfigError for a number of the launcher's settings that makes no sense."""
    asked: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    schema: Any = OmegaConf.get_type(config.hydra.launcher)
    check_ranges(schema, asked, where="hydra.launcher.")


def compose_jobs(
    context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> Iterator[DictConfig]:
    """The config of each job."""
    from smallbatch.quoting import of_point

    for index, overrides in enumerate(job_overrides, initial_job_idx):
        cfg = of_point(context.config_loader.load_sweep_config(config, list(overrides)))
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = f"{cfg.hydra.job.name}_{index}", index
        yield cfg


def peek(jobs: Iterator[DictConfig]) -> tuple[DictConfig, Iterator[DictConfig]]:
    """The first, which tells what they need, and all of them."""
    first = next(jobs)
    return first, chain([first], jobs)


def run(state: Any, context: HydraContext, task: TaskFunction, cfg: DictConfig) -> JobReturn:
    """One job, in a process that does not know of this one's resolvers and Hydra yet."""
    Singleton.set_state(state)
    return run_job(
        hydra_context=context,
        task_function=task,
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="smallbatch")
