"""Masters & Luschi (2018), "Revisiting Small Batch Training for Deep Neural Networks", as a package."""

from importlib import import_module
from typing import Any

_WHERE = {
    **dict.fromkeys(("runs", "load", "train", "grid", "figure"), "smallbatch.api"),
    "add_config_dir": "smallbatch.compose",
    **dict.fromkeys(("SmallBatch", "ImageData"), "smallbatch.training.module"),
    **dict.fromkeys(("GhostBatchNorm", "GhostBatchNorm1d", "GhostBatchNorm2d"), "smallbatch.models.norm"),
}


def __getattr__(name: str) -> Any:
    """What scripts use, imported when it is first asked for: torch takes seconds."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
