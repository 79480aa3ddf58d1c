"""Ranks 1 and up of a run: processes that train it together with the run's own, rank 0, and write nothing.

loky keeps them warm for the next run. They find each other by a file in a temporary folder: no port is fixed, and no
environment variable counts.
"""

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, Future, wait
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from smallbatch import signals, surroundings
from smallbatch.data import load_images
from smallbatch.errors import kind_and_line
from smallbatch.ranks import ALONE, RankError, Ranks, accelerator
from smallbatch.run import Run
from smallbatch.training import fit
from smallbatch.training.module import SmallBatch

IDLE = 300.0  # seconds that helpers wait for another run
PATIENCE = 10.0  # seconds that they get to end
# How long a rank waits for the others: until all are there, and at a step, as while rank 0 calls a slow callback.
START, STEP = timedelta(seconds=25), timedelta(hours=2)
# What a helper is told of a config: no callback, no logger, and nothing that prints.
SILENT: dict[str, Any] = {"callbacks": {}, "logger": {}, "progress": False}


@contextmanager
def together(cfg: DictConfig, run: Run, checkpoint: Path | None) -> Iterator[Ranks]:
    """Within it this process is rank 0 of `trainer.devices`, whose others train the run from the checkpoint too.

    Raises RankError if one of them dies or raises.
    """
    world = cfg.trainer.devices
    if world == 1:
        yield ALONE
        return
    told = SILENT | {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("data", "machine", "trainer")}
    on_cards = accelerator(cfg) == "gpu"
    me, *others = (Ranks(rank, world, f"cuda:{rank}" if on_cards else "cpu") for rank in range(world))
    with tempfile.TemporaryDirectory() as folder:
        helpers = _submit(others, told, run, checkpoint, os.getcwd(), sys.path, folder)
        try:
            _join(me, folder, helpers)
            yield me
            wait(helpers, PATIENCE)
            if cause := _cause(helpers):
                raise cause
        except RuntimeError as error:
            if not _is_loss(error):
                raise
            wait(helpers, PATIENCE, FIRST_EXCEPTION)
            raise _cause(helpers) or error from None
        finally:
            if not all(helper.done() and not helper.exception() for helper in helpers):
                _pool(len(helpers)).shutdown(kill_workers=True)
                _pool.cache_clear()
            _leave()


def _submit(others: list[Ranks], *told: Any) -> list["Future[None]"]:
    try:
        return [_pool(len(others)).submit(_help, other, *told) for other in others]
    except BrokenExecutor:  # a helper was killed while it waited
        _pool.cache_clear()
        return [_pool(len(others)).submit(_help, other, *told) for other in others]


def _help(
    ranks: Ranks, told: dict[str, Any], run: Run, checkpoint: Path | None, where: str, path: list[str], folder: str
) -> None:
    """Train a run as one of its ranks, in a process of loky's."""
    os.chdir(where)
    sys.path[:] = path
    cfg = OmegaConf.create(told)
    cfg.trainer.update(profiler=None, enable_model_summary=False)
    torch.set_num_threads(cfg.machine.threads)
    torch.set_flush_denormal(True)
    images = load_images(cfg)
    module = SmallBatch(run, *images.sizes)
    module.ranks = ranks
    settings = fit.trainer_settings(cfg, run, Path(folder)) | {"callbacks": [fit.Agree()]}
    try:
        _join(ranks, folder)
        fit.fit(module, images, checkpoint, **settings)
    finally:
        _leave()


def _join(ranks: Ranks, folder: str, helpers: Sequence["Future[None]"] = ()) -> None:
    """Make the process group, when all ranks are there."""
    store = dist.FileStore(f"{folder}/ranks", ranks.world)
    store.set(str(ranks.rank), "")
    while not store.check([str(rank) for rank in range(ranks.world)]):
        if any(helper.done() for helper in helpers) or not Path(folder).exists():
            raise RuntimeError("gloo: a rank ended before the run began")
        time.sleep(0.01)
    on_card = ranks.device != "cpu"
    device = torch.device(ranks.device) if on_card else None
    dist.init_process_group(
        "nccl" if on_card else "gloo",
        store=store, rank=ranks.rank, world_size=ranks.world, timeout=START, device_id=device,
    )  # fmt: skip
    dist.group.WORLD.set_timeout(STEP)  # type: ignore[union-attr]
    if on_card:  # where no connection breaks when a rank dies
        for helper in helpers:
            helper.add_done_callback(lambda ended: dist.group.WORLD.abort() if ended.exception() else None)  # type: ignore[union-attr]


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _cause(helpers: Sequence["Future[None]"]) -> RankError | None:
    """What ended a helper by itself, if something did: the others then only lose the connection."""
    for rank, error in enumerate((each.exception() for each in helpers if each.done()), 1):
        if isinstance(error, BrokenExecutor):
            codes = "".join(re.findall(r" \{.*\}", str(error)))  # loky tells them
            return RankError(f"one of {len(helpers) + 1} ranks was killed, or crashed{codes}")
        if error and not _is_loss(error):
            found = RankError(f"rank {rank} of {len(helpers) + 1}: {kind_and_line(error)}")
            found.__cause__ = error
            return found
    return None


def _is_loss(error: BaseException) -> bool:
    """Whether it says no more than that a rank no longer answers."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("gloo", "nccl", "timeout"))


@cache
def _pool(count: int) -> Any:
    """Processes for so many helpers, which end with this one and leave signals to it."""
    from joblib.externals.loky import ProcessPoolExecutor  # takes a moment

    return ProcessPoolExecutor(count, timeout=IDLE, initializer=_follow, initargs=(os.getpid(),))


def _follow(parent: int) -> None:
    surroundings.shut_out()
    for number in signals.ASKS:
        signal.signal(number, signal.SIG_IGN)
    signals.end_with(parent)
