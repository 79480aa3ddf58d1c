"""Numbers as people write learning rates: 0.002, 1/512, 2**-9."""

import math
import re
from contextlib import suppress

from smallbatch.errors import ConfigError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_POWER = re.compile(rf"\s*({_NUMBER})\s*(?:(/|\*\*)\s*({_NUMBER})\s*)?")


def parse_power(value: float | str, name: str = "base_lr") -> float:
    """A number written as a float, a fraction or a power. Raises ConfigError for anything else, naming the setting.

    >>> parse_power("1/512") == parse_power("2**-9") == parse_power(0.001953125)
    True
    """
    with suppress(ArithmeticError, TypeError):  # the latter of a complex root
        if match := _POWER.fullmatch(str(value)):
            left, operator, right = match.groups()
            if operator == "/":
                return float(left) / float(right)
            return float(float(left) ** float(right)) if operator else float(left)
    raise ConfigError(f"{name}={value}: not a number; write it as 0.002, 1/512 or 2**-9")


def format_power(value: float) -> str:
    """A power of two as one, else the shortest decimal that reads back equal.

    >>> format_power(1 / 512), format_power(0.003)
    ('2^-9', '0.003')
    """
    mantissa, exponent = math.frexp(value)
    return f"2^{exponent - 1}" if mantissa == 0.5 else repr(float(value)).removesuffix(".0")
