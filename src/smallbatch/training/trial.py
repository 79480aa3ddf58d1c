"""One step before a run or a grid, to learn early what a user's code does wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from traceback import format_exception

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from smallbatch.data.arrays import Images
from smallbatch.errors import ConfigError, one_line
from smallbatch.files import write_text
from smallbatch.models import build
from smallbatch.models.norm import GhostBatchNorm
from smallbatch.run import Run
from smallbatch.training.schedule import make_schedule
from smallbatch.training.step import make_loss, make_optimizer


def trial(run: Run, images: Images, store: Path | None = None, devices: int = 1) -> None:
    """One whole step on one or two images, to learn early what a network, loss or optimizer refuses, or `devices`.

    Raises ConfigError that names the class, and the file in the store that has the traceback of what was raised.
    """
    try:
        _check_devices(run, devices)
        _step(run, images)
        if devices > 1:
            _check_norms(run, images, devices)
    except ConfigError as error:
        if store is None or error.__cause__ is None:
            raise
        file = store / ".refused" / f"{run.key}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(format_exception(error.__cause__)))
        raise ConfigError(f"{error} ({file})") from error.__cause__


def _step(run: Run, images: Images) -> None:
    m = min(run.bn_batch_size or run.batch_size, 2)
    height, width, channels = images.shape
    small = replace(run, batch_size=m, bn_batch_size=None)
    x, y = torch.zeros(m, channels, height, width), torch.arange(m) % images.classes
    network = f"model={run.model['name']} data={run.data['name']}: {run.model['_target_']}"
    with torch.random.fork_rng(devices=[]):
        with _blaming(f"{network} cannot take images of {height}×{width}"):
            model = build(small, images.channels, images.classes).train()
            logits = model(x)
        if not isinstance(logits, Tensor) or logits.shape != (m, images.classes):
            given = f"{tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ConfigError(f"{network} gives {given} instead of logits of shape ({m}, {images.classes})")
        with _blaming(f"schedule: {run.schedule._target_}"):
            float(make_schedule(run.schedule, 1)(0))
        with _blaming(f"loss: {run.loss['_target_']}"):
            loss = make_loss(run)(logits, y)
            loss.backward()
        with _blaming(f"optimizer: {run.optimizer['_target_']}"):
            make_optimizer(small, model.parameters()).step()


def _check_devices(run: Run, devices: int) -> None:
    if run.batch_size % devices:
        raise ConfigError(f"trainer.devices={devices}: does not divide batch_size={run.batch_size}")


def _check_norms(run: Run, images: Images, devices: int) -> None:
    """Raise ConfigError for batch norms that would not be what they are on one device."""
    share, where = run.batch_size // devices, f"trainer.devices={devices}: model={run.model['name']}:"
    for name, layer in build(run, images.channels, images.classes).named_modules():
        if isinstance(layer, GhostBatchNorm):
            b = layer.bn_batch_size
            if share % b and b % share:
                raise ConfigError(f"{where} groups of {b} neither divide a device's {share} images nor hold them whole")
        elif isinstance(layer, _BatchNorm):
            kind = type(layer).__name__
            raise ConfigError(f"{where} {name} is torch's {kind}, which would see one device's images; use norm(n)")


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Whatever a user's code raises, as a ConfigError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what}: {one_line(error)}") from error
