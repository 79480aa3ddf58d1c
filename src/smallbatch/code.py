"""The user's own code that a run names: a changed network gives other numbers under the same key."""

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

from smallbatch.run import Run


def digests(run: Run) -> dict[str, str]:
    """A hash of the file of each class or function of the user's own that a run names, by that name."""
    named = [part.get("_target_") for part in (run.model, run.optimizer, run.loss, vars(run.schedule))]
    files = {name: source(name) for name in named if name}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for name, file in files.items() if file}


def changed(run: Run, before: dict[str, str]) -> str:
    """The files that differ from those of these digests, as text; "" if none is known to."""
    names = [name for name, digest in digests(run).items() if before.get(name, digest) != digest]
    return ", ".join(dict.fromkeys(str(source(name)) for name in names))


@lru_cache
def source(path: str) -> Path | None:
    """The file that defines what a `_target_` names, if that is the user's own; nothing of it is run."""
    module = path.rpartition(".")[0]
    if path.startswith(("smallbatch.", "torch.", "torchvision.")):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a class within a class, or not there
        return None
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None
