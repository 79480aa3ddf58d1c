"""What a `_target_` names: found, and asked what arguments it takes."""

import inspect
import pkgutil
from typing import Any

from smallbatch.errors import ConfigError


def locate(path: str, where: str) -> Any:
    """The class or function that a `_target_` names. Raises ConfigError."""
    try:
        # Hydra's own get_object would log an error of its own beside ours.
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}._target_={path}: cannot be imported ({error})") from None
    if not callable(found):
        raise ConfigError(f"{where}._target_={path}: is no class or function")
    return found


def accepted(target: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that a callable takes."""
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {k: v for k, v in offered.items() if open_ended or k in parameters}


def check_call(target: Any, arguments: dict[str, Any], where: str, *positional: Any) -> None:
    """Raise ConfigError, naming what does not fit, unless `target` takes these arguments."""
    try:
        inspect.signature(target).bind(*positional, **arguments)
    except TypeError as error:
        raise ConfigError(f"{where}: {target.__module__}.{target.__qualname__}: {error}") from None
