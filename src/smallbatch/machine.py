"""This machine: processor, device, cores, and the versions and commit of the code."""

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

USES_GPU = ("auto", "cuda", "gpu")  # Lightning's words for what trains on a graphics card


def processes(accelerator: str = "auto", jobs_per_device: int = 1) -> int:
    """How many runs `hydra/launcher=local` has at a time: some on each graphics card, or one on each core."""
    cards = devices() if accelerator in USES_GPU else []
    return len(cards) * jobs_per_device or cores()


def cores() -> int:
    """How many cores this process may use."""
    from joblib import cpu_count  # knows the limits of containers too

    return int(cpu_count())


def devices() -> list[str]:
    """The graphics cards that this process may use, as CUDA_VISIBLE_DEVICES names them. Opens none of them."""
    import torch  # heavy

    return visible(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())


def visible(asked: str | None, count: int) -> list[str]:
    """The names of `count` cards that CUDA sees where CUDA_VISIBLE_DEVICES is as asked, or not set.

    Of several MIG instances CUDA shows a process one, whatever it lists: each process can be given another.

    >>> visible(None, 2), visible("2,0", 2), visible("GPU-5ea1, GPU-07", 2)
    (['0', '1'], ['2', '0'], ['GPU-5ea1', 'GPU-07'])
    >>> visible("MIG-1,MIG-2", 1), visible("", 0), visible("-1", 0)
    (['MIG-1', 'MIG-2'], [], [])
    """
    if asked is None:
        return [str(index) for index in range(count)]
    names = [name.strip() for name in asked.split(",")]
    if count and names[0].startswith("MIG-"):
        return [name for name in names if name.startswith("MIG-")]
    return names[:count]


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
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
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
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
