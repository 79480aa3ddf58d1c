"""A claim of the paper: its words, and the tests on figures that decide it."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from smallbatch.claims.cells import PILOT
from smallbatch.claims.statistics import Part

SMALL = 32  # the largest batch size that the paper's title and conclusion call small
LARGE = 128  # the smallest of common practice then; 64, between the two, is called neither
WIDE = 16  # a "wide range" of batch sizes: largest over smallest

NO_BN = ("fig01", "fig02", "fig03")
RESNET_BN = ("fig07", "fig08", "fig09")

Function = TypeVar("Function", bound=Callable[..., Iterator[Part]])


@dataclass(frozen=True)
class Test:
    """What a claim asks of one figure, or of several that it compares.

    `criterion` in words; `run` takes the cells of each figure, then `given`, and yields the parts that it finds;
    `reliability`: whether it asks which cells train reliably; `own_seeds`: whether figures go without common seeds;
    `first`: the seed from which on it counts runs. A criterion that is changed after its verdicts were looked at takes
    fresh ones, beyond those looked at.
    """

    figures: tuple[str, ...]
    criterion: str
    run: Callable[..., Iterator[Part]]
    given: dict[str, Any]
    reliability: bool
    own_seeds: bool
    first: int


@dataclass(frozen=True)
class Claim:
    """A claim in the paper's words, and its tests."""

    id: str
    text: str
    tests: list[Test] = field(default_factory=list)

    def test(
        self,
        *figures: str | tuple[str, ...],
        reliability: bool = False,
        own_seeds: bool = False,
        first: int = PILOT + 1,
        **given: Any,
    ) -> Callable[[Function], Function]:
        """Make a function a test of this claim on each figure, or on each tuple of figures that it compares.

        Its docstring is the criterion. It gets the cells of its figures and what else is `given`.
        """

        def add(function: Function) -> Function:
            criterion = " ".join(inspect.cleandoc(function.__doc__ or "").split())
            for named in figures:
                columns = (named,) if isinstance(named, str) else named
                self.tests.append(Test(columns, criterion, function, given, reliability, own_seeds, first))
            return function

        return add
