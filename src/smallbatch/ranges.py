"""The range of each numeric setting, which stands beside its type in a dataclass, and the check of values by it."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache, partial
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from smallbatch.errors import ConfigError
from smallbatch.powers import parse_power

COUNT = "[1, 2147483647]"  # of images, groups, …: what 32 bits hold
FEW = "[1, 1024]"  # of cores, processes, devices
SHARE = "(0, 1]"
RATE = "(0, 1e6]"  # a learning rate


def within(interval: str, default: Any = MISSING, share: bool = False, also: int | None = None) -> Any:
    """A dataclass's field whose numbers lie in an interval, written as `[0, 1)`; of a list each of them.

    `share`: a number with a point is a share of the whole instead. `also`: a number that has a meaning of its own.
    """
    metadata = {"interval": interval, "share": share, "also": also}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def one_of(*schemas: type) -> Any:
    """A dataclass's field for a group of settings: of one of these, or a user's own."""
    return field(default=MISSING, metadata={"schemas": schemas})


@dataclass(frozen=True)
class Range:
    """What a numeric setting takes; `target`: the `_target_` that it is a setting of."""

    interval: str
    share: bool
    also: int | None
    types: tuple[type, ...]
    optional: bool
    listed: bool
    target: str

    def __contains__(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, list):
            return self.listed and all(isinstance(each, int | float) and self._has(each) for each in value)
        if isinstance(value, str):
            with suppress(ConfigError):
                return str in self.types and self._has(parse_power(value))
            return False
        return self._has(value)

    def _has(self, number: float) -> bool:
        is_share = self.share and isinstance(number, float)
        return number == self.also or _lies_in(number, SHARE if is_share else self.interval)

    def __str__(self) -> str:
        whole = float not in self.types or self.share
        what = ("whole numbers" if whole else "numbers") if self.listed else "a whole number" if whole else "a number"
        also = "" if self.also is None else f" or {self.also}"
        share = f", or a share in {SHARE} of all" if self.share else ""
        written = ", such as 1/512 or 2**-9" if str in self.types else ""
        return f"must be {what} in {self.interval}{also}{share}{written}{', or null' if self.optional else ''}"


def _lies_in(number: float, interval: str) -> bool:
    low, high = _ends(interval)
    above = number > low if interval[0] == "(" else number >= low
    below = number < high if interval[-1] == ")" else number <= high
    return above and below


@lru_cache
def _ends(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


@lru_cache
def ranges(schema: type) -> dict[str, Range | None]:
    """The numeric settings of a schema and of those within it, by their dotted names; None for one without a range."""
    return dict(_ranges(schema, ""))


def _ranges(schema: type, target: str) -> Iterator[tuple[str, Range | None]]:
    types = get_type_hints(schema)
    for item in fields(schema):
        kinds = _kinds(types[item.name])
        within = [*item.metadata.get("schemas", ()), *filter(is_dataclass, kinds)]
        for part in within:
            inner = _ranges(part, getattr(part, "_target_", None) or "")
            yield from ((f"{item.name}.{name}", found) for name, found in inner)
        numeric = tuple(kind for kind in kinds if kind in (int, float, str))
        if {int, float} & {*numeric}:
            found = partial(Range, types=numeric, optional=type(None) in kinds, listed=list in kinds, target=target)
            yield item.name, found(**item.metadata) if item.metadata else None


def _kinds(hint: Any) -> set[Any]:
    """The types that a hint is made of.

    >>> _kinds(list[float] | None) == {list, float, type(None)}
    True
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is None:
        return {hint}
    return set() if origin is dict else set().union(*map(_kinds, parts), () if origin is UnionType else {origin})


def refused(schema: type, name: str, value: Any) -> str:
    """What a numeric setting takes, as an error about this value says it; nothing for other settings."""
    found = ranges(schema).get(name)
    return f"{name}={shown(value)}: {found}" if found else ""


def shown(value: Any) -> str:
    """A value as it is typed."""
    return {True: "true", False: "false", None: "null"}.get(value, str(value)) if _plain(value) else str(value)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def check_ranges(schema: type, values: dict[str, Any], words: tuple[str, ...] = (), where: str = "") -> None:
    """Raise ConfigError for the first number of nested settings that is out of its range, or not finite.

    What is not there is not looked at. `words` are no numbers, and may stand for some; `where` the settings lie.
    """
    for name, allowed in ranges(schema).items():
        *groups, last = name.split(".")
        node: Any = values
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node or allowed is None:
            continue
        value = node[last]
        if isinstance(value, str) and (value in (*words, MISSING) or "${" in value):
            continue
        if _is_of(allowed, node, name, value) and value not in allowed:
            raise ConfigError(f"{where}{name}={shown(value)}: {allowed}")
    for name, number in _numbers(values, ""):
        if not math.isfinite(number):
            raise ConfigError(f"{name}={number}: must be finite")


def _is_of(allowed: Range, node: dict[str, Any], name: str, value: Any) -> bool:
    """Whether a range is of this setting; those of our optimizers are of the numbers of others by their names."""
    if allowed.target in ("", MISSING, node.get("_target_")):
        return True
    kinds = (list,) if allowed.listed else (int, float)
    return name.startswith("optimizer.") and isinstance(value, kinds)


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every number with a point in nested settings, with its name."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(part, name)
    elif isinstance(value, float):
        yield name, value
