"""Jobs in parallel processes of this machine, kept warm, one thread each, and each with a graphics card of its own."""

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from smallbatch.errors import SmallBatchError
from smallbatch.machine import devices
from smallbatch.signals import end_with
from smallbatch.surroundings import shut_out

PATIENCE = 60.0  # seconds that a new process waits for the place of one that is about to end
IDLE = 2.0  # seconds without a job after which a process that works for this one ends
_held: list[FileLock] = []  # this process's place, for its life: the operating system frees it however that ends


def in_parallel(job: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], n_jobs: int) -> list[Any]:
    """What a job returns for each of the arguments, which are made when a process is about to be free.

    Raises what a job raised, or joblib's error if a process was killed.
    """
    from joblib import Parallel, delayed, effective_n_jobs, parallel_config

    with parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        place = (os.getpid(), _folder(), effective_n_jobs(n_jobs), devices())
        returned: list[Any] = Parallel(batch_size=1)(delayed(_run)(place, job, each) for each in arguments)
    return returned


def apart(job: Callable[..., Any], *arguments: Any) -> Any:
    """What a job returns; where there are graphics cards, from another process, so that this one opens none.

    An open card has less memory for the processes that train, and none if it is set to take one process at a time.
    """
    return _other_process().submit(job, *arguments).result() if devices() else job(*arguments)


@cache
def _other_process() -> Any:
    from joblib.externals.loky import ProcessPoolExecutor

    return ProcessPoolExecutor(1, timeout=IDLE)


@cache
def _folder() -> Path:
    """The locks of this process's workers, gone when this process ends."""
    folder = tempfile.mkdtemp(prefix="smallbatch-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _run(place: tuple[int, Path, int, list[str]], job: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A job, in a process that has a card of its own from its first job on, which is before CUDA is opened in it."""
    parent, folder, places, cards = place
    end_with(parent)
    if os.getpid() != parent:
        shut_out()
    if cards and not _held and os.getpid() != parent:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[take_place(folder, places) % len(cards)]
    return job(*arguments)


def take_place(folder: Path, places: int) -> int:
    """The first place that no living process has, from now on this one's. Raises SmallBatchError if there is none."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for place in range(places):
            lock = FileLock(folder / f"{place}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            _held.append(lock)
            return place
        time.sleep(0.1)
    raise SmallBatchError(f"{folder}: none of its {places} places for processes is free")
