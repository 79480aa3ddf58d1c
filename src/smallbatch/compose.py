"""Compose a config without `hydra.main`, for the commands that train nothing themselves."""

from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from smallbatch.config import register

CONF = Path(__file__).resolve().parents[2] / "conf"


def compose(overrides: list[str]) -> DictConfig:
    """The config of one command line, as `python src/train.py` would have it. Raises Hydra's errors."""
    if not GlobalHydra.instance().is_initialized():
        register()
        initialize_config_dir(str(CONF), version_base="1.3")
    return hydra_compose("train", overrides)
