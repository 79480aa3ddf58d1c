"""Compose a config without `hydra.main`, for the commands that train nothing themselves."""

from copy import deepcopy
from functools import lru_cache
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from smallbatch.config import register

CONF = Path(__file__).resolve().parents[2] / "conf"


def compose(overrides: list[str]) -> DictConfig:
    """The config of one command line, as `python src/train.py` would have it. Raises Hydra's errors."""
    return deepcopy(_composed(tuple(overrides)))


@lru_cache(maxsize=512)
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """Kept, since figures share most of their choices and one composition takes Hydra 0.1 s."""
    if not GlobalHydra.instance().is_initialized():
        register()
        initialize_config_dir(str(CONF), version_base="1.3")
    return hydra_compose("train", list(overrides))
