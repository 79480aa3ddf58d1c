"""Jobs as tasks of a Ray cluster: joined or started, quiet, with what a run needs, and ended by Ctrl-C."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

import ray
import ray._private.worker
from ray.exceptions import RayError, RayTaskError
from tqdm import tqdm

from smallbatch.errors import ConfigError, one_line
from smallbatch.machine import cores
from smallbatch.surroundings import shut_out

PATIENCE = 10.0  # seconds that a cluster's head has to answer, or a task to end by itself on Ctrl-C
STORE = 100 * 2**20  # bytes of memory for Ray's objects, which are small configs


def join(address: str) -> None:
    """Join the cluster at an address, unless this process has; `local` starts one that ends with this process.

    Raises ConfigError if there is none.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray._private.worker.print_to_stdstream = _say  # nothing public keeps Ray from printing at length
    own: dict[str, Any] = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": STORE}
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(
            address,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},  # as other machines do not know it
            log_to_driver=False,
            logging_level="ERROR",
            **(own if address == "local" else {}),
        )
    except Exception as error:  # Ray has many kinds for a cluster that is not there or is of another version
        raise ConfigError(f"hydra/launcher=ray: no cluster at {address}: {one_line(error)}") from None
    signal.signal(signal.SIGTERM, on_term)  # Ray put its own in the place


def _say(data: dict[str, Any], **settings: Any) -> None:
    """The first sentence of what Ray tells of its machines and workers."""
    for line in data["lines"]:
        if not line.startswith("Task _run failed"):  # as has been said of its worker
            tqdm.write(f"ray: {line.partition('. ')[0]}", file=sys.stderr)


def _knock(address: str) -> None:
    """Raise OSError if nobody answers at host:port, for which Ray would wait minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def machines() -> list[dict[str, float]]:
    """What each machine of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def run_all(job: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], **options: Any) -> list[Any]:
    """What a job returns for each of the arguments.

    Ray starts a task again whose worker or machine died, up to its option `max_retries`; one that died more often is
    raised as a RayError when the others have ended. What a job exits with is raised at once, and ends the others, as
    Ctrl-C does; so is, as ConfigError, what keeps a machine from starting a job.
    """
    task = ray.remote(**options)(_run)
    tasks: list[Any] = []
    try:
        for each in arguments:
            tasks.append(task.remote(os.getcwd(), job, each))
        _await(tasks)
    except (ConfigError, KeyboardInterrupt, SystemExit):
        _end(tasks)
        raise
    return list(ray.get(tasks))


def _run(folder: str, job: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A job, in the driver's folder. Its exit is returned, since Ray would take it for the worker's."""
    os.chdir(folder)
    shut_out()
    try:
        return job(*arguments)
    except SystemExit as stop:
        return stop


def _await(tasks: list[Any]) -> None:
    """Wait until all have ended, whether or not they could be had."""
    while tasks:
        (ended,), tasks = ray.wait(tasks)
        try:
            returned = ray.get(ended)
        except RayTaskError as error:  # of Ray before the job, such as an import: a job returns what it raised
            why = str(error.cause).strip().splitlines()[-1]
            raise ConfigError(f"hydra/launcher=ray: {why}; all machines need the same paths as this one") from None
        except RayError:
            continue  # told when the others have ended
        if isinstance(returned, SystemExit):
            raise returned


def _end(tasks: list[Any]) -> None:
    """End tasks: by an interrupt, so that a run can close what it has open, and by force if that takes too long."""
    for force, patience in ((False, PATIENCE), (True, 0.0)):
        for task in _left(tasks, 0.0):  # to cancel one that has ended can crash Ray 2.60
            ray.cancel(task, force=force)
        _left(tasks, patience)


def _left(tasks: list[Any], patience: float) -> list[Any]:
    """Those that have not ended after so many seconds."""
    return list(ray.wait(tasks, num_returns=len(tasks), timeout=patience)[1]) if tasks else []
