"""What a script or a notebook calls. Settings are those of the command line, as `batch_size=8` or `**{"data.root": …}`.

>>> import numpy, smallbatch, tempfile
>>> store = tempfile.mkdtemp()
>>> record = smallbatch.train(data="digits16", model="resnet8", epochs=1, store=store, save_weights=True)
>>> record.result["status"]
'finished'
>>> smallbatch.load(record.run.key, store).logits(numpy.zeros((2, 16, 16, 1), "uint8")).shape
torch.Size([2, 10])
>>> smallbatch.runs(store, batch_size=32)["key"].tolist() == [record.run.key]
True
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from smallbatch import machine
from smallbatch import store as folders
from smallbatch.code import changed
from smallbatch.compose import add_config_dir, compose, config_dirs, parse_settings
from smallbatch.ended import Ended
from smallbatch.errors import ConfigError, SmallBatchError
from smallbatch.processes import in_parallel
from smallbatch.quoting import PATHS, quoted, whole_paths
from smallbatch.store import Record
from smallbatch.surroundings import kept_out
from smallbatch.table import select, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

STORE = "outputs/runs"


@dataclass(frozen=True)
class Trained:
    """A trained network in evaluation mode, and its record: the run, a row an epoch, the result with its score.

    The network takes images (N, C, H, W) less `mean`, by `std`, which are (C,), of training pixels from 0 to 255.
    """

    network: "nn.Module"
    record: Record
    mean: "Tensor"
    std: "Tensor"

    def logits(self, images: Any) -> "Tensor":
        """(N, classes) for images (N, H, W, C) as they are in a file, uint8; none is cropped or resized."""
        import torch

        weight = next(self.network.parameters())
        with torch.inference_mode():
            x = (torch.as_tensor(images).to(weight) - self.mean) / self.std
            logits: Tensor = self.network(x.movedim(-1, 1))
        return logits


def runs(store: str | Path = STORE, **settings: Any) -> pd.DataFrame:
    """The ended runs of a store that have these settings: a row a run; none where no run has ended.

    Raises ConfigError for what is no setting of these runs.
    """
    frame = table(folders.ended(Path(store)).values())
    return select(frame, parse_settings(_words(settings))) if settings and len(frame) else frame


def load(key: str, store: str | Path = STORE) -> Trained:
    """A run's trained network. Raises ConfigError if there is none, or its weights were not kept; DamagedRun."""
    path = Path(store) / key
    record = folders.read(path)
    if record is None:
        raise ConfigError(f"{path}: no ended run; `python src/runs.py list` names those there are")
    if not (path / folders.WEIGHTS).exists():
        raise ConfigError(f"{path}: its weights were not kept; train it again with save_weights=true overwrite=true")
    import torch

    from smallbatch.training.fit import load_checked
    from smallbatch.training.module import SmallBatch

    if load_checked(path / folders.WEIGHTS)["smallbatch"]["key"] != key:
        raise folders.DamagedRun(f"{path / folders.WEIGHTS}: is of another run")
    if files := changed(record.run, record.result.get("code", {})):
        warnings.warn(f"{files} has changed since {record.run.label} ({path}) was trained", stacklevel=2)
    module = SmallBatch.load_from_checkpoint(path / folders.WEIGHTS, map_location="cpu", weights_only=True)
    network = module.network.eval()
    mean, std = torch.tensor(module.pixels).to(next(network.parameters()))
    return Trained(network, record, mean, std)


def train(**settings: Any) -> Record:
    """Train one run unless its store has it. Raises ConfigError for wrong settings, and if the run fails."""
    from smallbatch.training.train import train

    with kept_out():
        record, _ = train(compose(["progress=false", *_words(settings)]), print)
    if record.result["status"] == "failed":
        raise SmallBatchError(f"{record.run.label}: {record.result['error']}")
    return record


def grid(words: Sequence[str] = (), processes: int = -1, **settings: Any) -> pd.DataFrame:
    """Train a grid, whose axes are lists, as with `-m` and `hydra/launcher=local`; its ended runs, a row a run.

    `processes`: at a time; -1 is as many as there are GPUs, or where none is used as there are cores. Raises
    SmallBatchError if a point has no result.
    """
    from smallbatch.data import describe
    from smallbatch.grids.best_rates import best_rates
    from smallbatch.grids.expand import expand, stages
    from smallbatch.grids.sweep import sweep

    words = [*whole_paths(list(words)), *_words(settings)]
    ours = ("store=", "overwrite=", "wait=", "logger=", "wandb.", "machine.accelerator=", "trainer.")
    cfg = compose([word for word in words if word.startswith(ours)])

    def launch(jobs: Sequence[Sequence[str]]) -> None:
        count = machine.processes(cfg.machine.accelerator) if processes == -1 else processes
        in_parallel(_train_point, ((list(job), config_dirs()) for job in jobs), count)

    try:
        with kept_out():
            sweep(words, launch, cfg)
    except SystemExit as stop:
        raise SmallBatchError(f"the grid is not whole: {stop.code}") from None
    ended = Ended(folders.ended(Path(cfg.store)))
    rates = best_rates(ended, describe)
    keys = {point.run.key for stage in stages(words) for point in expand(stage, describe, rates, ended.look).points}
    frame = table(ended.records.values())
    return frame[frame["key"].isin(keys)]


def _train_point(words: list[str], folders: list[str]) -> None:
    from smallbatch.training.train import train

    for folder in folders:
        add_config_dir(folder)
    train(compose(words), print)


def figure(
    name: str, scale: str = "paper", store: str | Path = STORE, **settings: Any
) -> "tuple[Figure, pd.DataFrame]":
    """A figure of the paper from a store's runs, and these runs. Raises ConfigError, also if there are none."""
    from smallbatch.figures import draw
    from smallbatch.figures.collect import Asked, gather

    asked = Asked([name], [scale], _words(settings), by_name=True)
    gathered, problems = gather(asked, scale, Ended(folders.ended(Path(store))))
    if problems:
        raise problems[0]
    found = gathered[name]
    parts = [gathered[part] for part in found.of if not gathered[part].frame.empty]
    if found.frame.empty and not parts:
        raise ConfigError(f"{name} has no runs at scale {scale} in {store}")
    return draw.draw(found, parts), found.frame


def _words(settings: dict[str, Any]) -> list[str]:
    """Settings as the command line has them: a list is an axis.

    >>> _words({"batch_size": [2, 8], "save_weights": True, "bn_batch_size": None, "base_lr": "2**-9"})
    ['batch_size=2,8', 'save_weights=true', 'bn_batch_size=null', 'base_lr=2**-9']
    """
    return [f"{name}={_word(name, value)}" for name, value in settings.items()]


def _word(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(_word(name, one) for one in value)
    if name in PATHS and value is not None:
        return quoted(str(value))
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
