"""`hydra/launcher=slurm`: an array of workers, each of which is the same command; they share the grid by the store.

No job is handed over: a worker expands the grid and trains what is free, as a second terminal does. So nothing is
pickled, points have no limit, and what a killed or requeued worker had is taken up at its last whole epoch.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.local_launcher import LocalLauncher
from smallbatch.ranges import FEW, within

PATIENCE = 60.0  # seconds for workers to end by themselves, and for Slurm to end those that are cancelled
POLL = 0.5


@dataclass
class SlurmLauncherConf:
    """What `sbatch` is told, in its words; null: as the cluster has it."""

    _target_: str = f"{__name__}.SlurmLauncher"
    workers: int = within("[1, 10000]", 4)  # tasks of the array
    cpus: int = within(FEW, 1)  # of a worker
    n_jobs: int | None = within(FEW, None)  # processes of a worker; null: one a CPU
    partition: str | None = None
    time: str | None = None  # 4:00:00, in a YAML file in quotes
    memory: str | None = None  # of a worker, such as 16G
    gres: str | None = None  # such as gpu:1
    account: str | None = None
    arguments: list[str] = field(default_factory=list)  # more of sbatch's, such as ['--qos=low','--exclude=n7']
    logs: str | None = None  # the folder of the workers' logs; null: slurm/ beside the store


class SlurmLauncher(LocalLauncher):
    """Has workers at work as long as there is something to train; within a worker it is the local launcher."""

    def __init__(
        self, workers: int, cpus: int, n_jobs: int | None, arguments: list[str], logs: str | None, **asked: str | None
    ) -> None:
        super().__init__(n_jobs or cpus, jobs_per_device=1)
        options = {"array": f"0-{workers - 1}", "cpus-per-task": cpus, "mem": asked.pop("memory"), **asked}
        self.options = [f"--{name}={value}" for name, value in options.items() if value is not None] + list(arguments)
        self.logs, self.time = logs, asked["time"]
        self.sbatch: subprocess.Popen[bytes] | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.is_worker = config.get("grid_since") is not None
        self.folder = Path(self.logs or Path(config.get("store", "")).parent / "slurm").absolute()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit workers unless some are at work, and return. Raises ConfigError with sbatch's reason."""
        if self.is_worker:
            return super().launch(job_overrides, initial_job_idx)
        if self.sbatch is None or self.sbatch.poll() is not None:
            try:
                self._submit(next((word for word in job_overrides[0] if word.startswith("grid_since=")), ""))
            except KeyboardInterrupt:
                self.close(at_once=True)
                raise
        return []

    def at_work(self) -> bool:
        """Whether workers wait or work. Raises RuntimeError with what they said last if they are gone."""
        if self.sbatch is None:  # this is a worker
            return False
        if self.sbatch.poll() is None or self._queue():
            return True
        raise RuntimeError(f"Slurm's array {self._array()} is over: {self._last_words()}")

    def close(self, at_once: bool) -> None:
        """See the workers gone: at once, or after what they have in hand. Those that have not begun never do."""
        while self.sbatch and not self._array() and self.sbatch.poll() is None:
            time.sleep(POLL)
        try:
            if self.sbatch and not at_once:
                self._cancel("--state=PENDING")
        finally:
            if self.sbatch:
                self._cancel()
            self._forget()

    def _submit(self, since: str) -> None:
        from smallbatch.errors import ConfigError

        if not since:
            raise ConfigError("hydra/launcher=slurm: has workers for our own grids; leave out hydra/sweeper=…")
        if (self.time or "").isdecimal():  # YAML reads 4:00:00 as a number of seconds, which sbatch takes for minutes
            raise ConfigError(f"hydra.launcher.time={self.time}: write hours:minutes:seconds, in a YAML file in quotes")
        self._forget()
        self.folder.mkdir(parents=True, exist_ok=True)
        logs = str(self.folder).replace("%", "%%")
        command = ["sbatch", "--parsable", "--wait", "--requeue", "--job-name=smallbatch", "--open-mode=append"]
        # Slurm goes elsewhere if a node has not this folder, and there workers would train what nobody looks for.
        script = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(same_command(self.config, since))}"
        command += [f"--output={logs}/%A_%a.log", *self.options, "--wrap", script]
        with tempfile.TemporaryFile() as errors:
            self.said = tempfile.TemporaryFile()  # noqa: SIM115, until all workers are gone
            try:  # in a session of its own: Ctrl-C is for us
                self.sbatch = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=self.said, stderr=errors, start_new_session=True
                )
            except FileNotFoundError:
                self.said.close()
                raise ConfigError("hydra/launcher=slurm: there is no sbatch here; use hydra/launcher=local") from None
            while not self._array():
                if self.sbatch.poll() is not None:
                    self._forget()
                    reason = "; ".join(_text(errors).replace("sbatch: error: ", "").splitlines())
                    raise ConfigError(f"hydra/launcher=slurm: sbatch refuses: {reason}")
                time.sleep(POLL / 10)
        print(f"submitted array {self._array()} of Slurm; its logs: {self.folder}", flush=True)

    def _forget(self) -> None:
        if self.sbatch:
            self.sbatch.kill()
            self.sbatch.wait()
            self.said.close()
            self.sbatch = None

    def _array(self) -> str:
        """The array's number, once sbatch has said it."""
        return _text(self.said).partition("\n")[0].partition(";")[0]

    def _cancel(self, *which: str) -> None:
        """Cancel tasks, and wait until all are gone, be they cancelled or not, but not for ever."""
        deadline = time.monotonic() + PATIENCE
        done = subprocess.run(["scancel", *which, self._array()], capture_output=True, text=True)
        while self._queue() and time.monotonic() < deadline:
            time.sleep(POLL)
        lost = done.returncode and "Invalid job id" not in done.stderr  # which it says of what has gone
        if not which and (lost or self._queue()):
            print(f"array {self._array()} may still be in the queue. {done.stderr.strip()}", file=sys.stderr)

    def _queue(self) -> str:
        """What is in the queue of the array; nothing also if Slurm does not know it any more."""
        return subprocess.run(["squeue", "-h", "-j", self._array()], capture_output=True, text=True).stdout

    def _last_words(self) -> str:
        """The newest log's last line, or the last that names an error, and where it is."""
        logs = sorted(self.folder.glob(f"{self._array()}_*.log"), key=lambda file: file.stat().st_mtime)
        if not logs:
            return f"there is no log of it in {self.folder}; its nodes may not have that folder"
        lines = logs[-1].read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if "error" in line.lower()] or lines or ["its log is empty"]
        return f"{said[-1].strip()} ({logs[-1]})"


def _text(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), 10_000, 0).decode(errors="replace")  # and leaves it where its writer is


def same_command(config: DictConfig, since: str) -> list[str]:
    """This process's command, with one word more; Hydra takes words only where there are others."""
    arguments = sys.orig_argv[1:]
    words = {*config.hydra.overrides.task, *config.hydra.overrides.hydra}
    first = next((place for place, argument in enumerate(arguments) if argument in words), len(arguments))
    return [sys.executable, *arguments[:first], since, *arguments[first:]]


ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmLauncherConf, provider="smallbatch")
