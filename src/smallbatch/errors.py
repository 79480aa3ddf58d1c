"""What a command tells its user in one line."""

import sys
from functools import cache


class SmallBatchError(Exception):
    """What a command tells its user in one line: what, where, what to do."""


class ConfigError(SmallBatchError):
    """A mistake in what the user asked for. Its text is one line: what, where, what to do."""


def one_line(error: BaseException) -> str:
    """The first line of what an exception says, or its kind if it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


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
