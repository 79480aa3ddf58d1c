"""What a command tells its user in one line."""

import sys
from functools import cache


class SmallBatchError(Exception):
    """What a command tells its user in one line: what, where, what to do."""


class ConfigError(SmallBatchError):
    """A mistake in what the user asked for. Its text is one line: what, where, what to do."""


def one_line(error: BaseException) -> str:
    """The first line of what an exception says, with what follows if it is a heading; its kind if it says nothing."""
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    except Exception:  # of a class of a user's
        lines = []
    if not lines or isinstance(error, KeyError | SystemExit):  # which say a key or number alone
        return ": ".join([type(error).__name__, *lines[:1]])
    is_pydantic = "validation error" in lines[0]  # the field stands before the reason
    return " ".join(lines[: 3 if is_pydantic else 2 if lines[0].endswith(":") else 1])


def kind_and_line(error: BaseException) -> str:
    """`ValueError: what it says`."""
    kind, line = type(error).__name__, one_line(error)
    return line if line.startswith(kind) else f"{kind}: {line}"


def tell(notice: str) -> None:
    """Print a line that is no result."""
    print(notice, file=sys.stderr)


@cache
def tell_once(notice: str) -> None:
    """Print what each point of a grid would say again."""
    tell(notice)


class Undefined(ConfigError):
    """Values that are right by themselves but do not go together: a single run is refused, a grid leaves it out."""


class NotYet(ConfigError):
    """What depends on runs that are not there."""


class TrainsNothing(ConfigError):
    """The figures asked for are drawn from other runs, or computed."""
