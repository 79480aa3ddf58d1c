"""This machine: processor, device, cores, and the versions and commit of the code."""

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any


def processes() -> int:
    """How many runs `hydra/launcher=local` has at a time."""
    from joblib import cpu_count  # knows the limits of containers too

    return int(cpu_count())


@lru_cache
def provenance(accelerator: str, devices: int = 1) -> dict[str, Any]:
    """Versions, commit and machine of what trains on `devices` of an accelerator, by Lightning's word for it."""
    packages = ("torch", "torchvision", "pytorch-lightning", "numpy")
    machine = {"host": platform.node(), "device": device_name(accelerator), "cores": os.cpu_count()}
    machine |= {"devices": devices} if devices > 1 else {}
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": commit(),
        "machine": machine | {"system": platform.platform()},
    }


def device_name(accelerator: str = "auto") -> str:
    """What runs train on: the graphics card, or the processor."""
    import torch  # heavy

    on_card = accelerator != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_card else processor()


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of this code, `+changes` behind it if files differ; None outside a checkout."""
    here = Path(__file__).parents[2]
    if not (here / "conf").is_dir():  # installed, perhaps within a checkout of something else
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
