"""Price a grid before it is trained.

    python src/plan.py figure=fig09 scale=reduced   # one figure
    python src/plan.py figure=all                   # every figure, and all together
    python src/plan.py batch_size=2,8 base_lr=1/512 # any grid, as train.py -m would have it

The seconds of an update are measured on this machine, a few seconds for each network and batch size,
and kept in outputs/calibration.json. Nothing is downloaded or trained. `at most`: nothing diverges;
`expected`: with the divergences that the ended runs show. Runs that finished on this machine are held against
their price.
"""

from smallbatch import signals, surroundings

if __name__ == "__main__":
    surroundings.shut_out()  # before the imports below read the variables of other tools
    signals.at_once()  # while they take seconds

import platform
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from smallbatch import cli, store
from smallbatch.compose import parse_words
from smallbatch.data import describe, published
from smallbatch.data.sources import PUBLISHED
from smallbatch.ended import Ended
from smallbatch.errors import ConfigError
from smallbatch.grids.best_rates import best_rates
from smallbatch.grids.expand import Grid, Point, Rates, expand, figure_config, figure_names
from smallbatch.grids.price import Prices, expected_share, price_of, rest_of_search, words
from smallbatch.grids.progress import sizes
from smallbatch.grids.search import EXPECTED
from smallbatch.machine import processes


@dataclass
class Row:
    """What one figure costs, or all of them."""

    name: str
    runs: int = 0
    finished: int = 0
    updates: int = 0
    images: int = 0
    at_most: float = 0.0
    expected: float = 0.0
    checked: int = 0  # of the finished: those that ended here, with a known price
    took: float = 0.0
    priced: float = 0.0


def main() -> None:
    """Print the table; a wrong use is one line and exit status 1."""
    parser = cli.parser(__doc__)
    cli.add_words(parser, "+")
    arguments = parser.parse_intermixed_args()
    with cli.one_line_errors():
        words, cfg = cli.sort(arguments.words, arguments.config_dir)
        folders = Path(cfg.store)
        prices = Prices(folders.parent / "calibration.json", lambda line: print(line, file=sys.stderr))
        plan(words, Ended(store.ended(folders)), prices)


def plan(arguments: list[str], ended: Ended, prices: Prices) -> None:
    """A row a figure, and the total, in which runs that figures share count once. Raises ConfigError."""
    rows, total, seen = [], Row("all together"), set()
    grids = [(name, *_grid(line, ended)) for name, line in _lines(arguments)]  # what is wrong comes before measuring
    for name, grid, guessed in grids:
        row = Row(name + ("*" if guessed else ""))
        for point in sorted(grid.points, key=lambda point: point.run.key in ended.records):  # measured before checked
            entry = _price(point, ended, prices)
            _add(row, entry)
            if point.run.key not in seen:
                seen.add(point.run.key)
                _add(total, entry)
        expected, most = rest_of_search(grid, prices)
        for whole in (row, total):
            _add(whole, Row("", at_most=most, expected=expected))
        rows.append(row)
    _print([*rows, total] if len(rows) > 1 else rows)
    count = processes()
    print(f"\nTime of one process; with hydra/launcher=local {count} at a time: divide by {count}.")
    if total.checked:
        print(
            f"Check: finished runs that this machine trained: {total.checked}; they took {words(total.took)}, "
            f"priced at {words(total.priced)} (× {total.priced / total.took:.2f})."
        )
    for name, grid, _ in grids:
        if grid.open:
            print(
                f"{name}: a search, with {sizes(grid.sizes_open)} to go. Expected: {EXPECTED} η̃ for each; at most: "
                f"{grid.most} (search.points). Its runs are those that it has asked for so far."
            )
    _say_published(grids)
    if any(row.name.endswith("*") for row in rows):
        print("* takes the best η̃ of runs that are not there yet; any η̃ costs as much if nothing diverges.")


def _say_published(grids: list[tuple[str, Grid, bool]]) -> None:
    """Where a published data set has another size here."""
    whole = (point.images for _, grid, _ in grids for point in grid.points if point.run.data["train_size"] is None)
    for name, here in sorted({(images.name, images.train_size) for images in whole if images.name in PUBLISHED}):
        if here != PUBLISHED[name][2]:
            print(f"{name} has {here:,} training images here, of {PUBLISHED[name][2]:,} published.")


def _lines(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """The command line of each figure that trains something, or the one of a grid without figures."""
    given = parse_words(arguments)[0].get("figure", [])
    rest = [word for word in arguments if not word.startswith("figure=")]
    names = [name for name in figure_names(given) if figure_config(name).scales]
    if given and not names:
        raise ConfigError(f"{' '.join(arguments)} trains nothing, and so costs nothing")
    return [(name, [f"figure={name}", *rest]) for name in names] if given else [("grid", arguments)]


def _grid(arguments: list[str], ended: Ended) -> tuple[Grid, bool]:
    """A grid, and whether η̃ had to be guessed since the runs that tell it are missing."""
    guessed = False
    known = best_rates(ended, _describe(ended))

    def rates(asked: list[str], sizes: list[int]) -> dict[int, float]:
        nonlocal guessed
        try:
            return known(asked, sizes)
        except ConfigError:
            guessed = True
            return dict.fromkeys(sizes, 2.0**-9)

    found: Rates = rates
    return expand(arguments, _describe(ended), found, ended.look), guessed


def _describe(ended: Ended) -> Any:
    """The data as they are here, or as published, with the fingerprint that the runs know."""

    def description(data: dict[str, Any]) -> Any:
        return published(data, ended.fingerprints.get(data["name"], data["name"])) or describe(data)

    return description


def _price(point: Point, ended: Ended, prices: Prices) -> Row:
    run = point.run
    images = (point.images.test_size, point.images.shape, point.images.classes)
    if run.key in ended.records:
        row, result = Row("", runs=1, finished=1), ended.records[run.key].result
        machine = result.get("machine", {})
        here = machine.get("host") == platform.node() and "devices" not in machine and result["status"] == "finished"
        if here and prices.knows(run, point.images.shape):
            row.checked, row.took, row.priced = 1, result["seconds"], prices.work(run, point.updates, *images)
        return row
    share = expected_share(run, ended.alike(run))
    whole, part = (price_of(point, prices, s) for s in (1.0, share))
    return Row("", 1, 0, point.updates, point.updates * run.batch_size, whole, part)


def _add(row: Row, entry: Row) -> None:
    for item in fields(Row):
        if item.name != "name":
            setattr(row, item.name, getattr(row, item.name) + getattr(entry, item.name))


def _print(rows: list[Row]) -> None:
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}} {'runs':>6}{'finished':>10}{'updates':>16}{'images':>18}{'at most':>10}{'expected':>10}")
    for row in rows:
        print(
            f"{row.name:{width}} {row.runs:>6,}{row.finished:>10,}{row.updates:>16,}{row.images:>18,}"
            f"{words(row.at_most):>10}{words(row.expected):>10}"
        )


if __name__ == "__main__":
    main()
