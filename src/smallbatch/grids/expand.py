"""From a command line to runs: the one expansion that training, planning and drawing use.

A command line (`model=alexnet batch_size=2,4 …`) is one product of axes. A figure is a union of such
products: settings come from the figure's `common`, the scale's `settings`, each product in the
figure's `scales[scale]` and the command line, the later ones replacing the earlier.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from smallbatch.compose import CONF, Axes, chooses_files, compose, no_setting, parse_words, plain_errors
from smallbatch.config import BEST, SEARCH, Config, Draw, Figure
from smallbatch.data import Description, describe
from smallbatch.errors import ConfigError, TrainsNothing, Undefined, one_line
from smallbatch.grids.search import Bounds, Look, searched
from smallbatch.quoting import from_yaml, point_word
from smallbatch.ranges import refused
from smallbatch.run import VARIED, Run, make_run

_ABSENT = object()

Describe = Callable[[dict[str, Any]], Description]
# The best η̃ for each of some batch sizes, from the runs of the grid that some words name.
Rates = Callable[[list[str], list[int]], dict[int, float]]


@dataclass(frozen=True)
class Point:
    """A run, the overrides that give it, its data, and all its settings as the config has them."""

    run: Run
    overrides: list[str]
    images: Description
    settings: dict[str, Any]

    def job(self, grid_since: int, wandb: dict[str, str], **told: Any) -> list[str]:
        """What a launcher is told: files, which a config may have to choose, since when, and all settings."""
        files = [word for word in self.overrides if word[0] not in "+~" and chooses_files(word.partition("=")[0])]
        told |= {"grid_since": grid_since, "grid_point": self.run.key, "wandb": self.settings["wandb"] | wandb}
        return [*files, f"grid_since={grid_since}", point_word(self.settings | told)]

    @property
    def updates(self) -> int:
        """SGD updates of the whole run, if nothing diverges."""
        return self.run.epochs * (self.images.train_size // self.run.batch_size)


@dataclass(frozen=True)
class Grid:
    """The runs of a command line, each once; `undefined`: (overrides, reason) of the points left out.

    Of a search, those that it has asked for so far; `kinds` are points at any η̃, one a batch size and seed, of which
    those that go on are `open`, up to `most` η̃ each; `notes` tell what ended others early.
    """

    points: list[Point]
    undefined: list[tuple[str, str]]
    figures: list[Figure]
    kinds: list[Point] = field(default_factory=list)
    open: list[Point] = field(default_factory=list)
    most: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def sizes_open(self) -> int:
        """How many batch sizes a search has not done with."""
        return len({replace(point.run, seed=0).key for point in self.open})


def expand(
    arguments: list[str], describe: Describe = describe, rates: Rates | None = None, look: Look = lambda run: None
) -> Grid:
    """Expand a command line into its grid.

    `rates` finds what `base_lr: best` of a figure stands for, `look` what is known of the runs of a search. Raises
    ConfigError for what is wrong with every point, or if no point is valid.
    """
    given, plain = parse_words(arguments)
    figures = [figure_config(name) for name in figure_names(given.pop("figure", []))]
    if "scale" in given and not figures:
        raise ConfigError(f"scale={','.join(given['scale'])} belongs to figures: add figure=…")
    scales = given.pop("scale", ["paper"])
    points: dict[str, Point] = {}
    undefined: list[tuple[str, str]] = []
    found = Grid([], undefined, figures)
    for whose, axes in _products(figures, scales, given, rates):
        try:
            product, bounds = _expand_product(axes, plain, describe, undefined)
        except ConfigError as error:
            raise ConfigError(f"{whose}{error}") from None
        runs = [(point, point.run) for point in product]
        if bounds:
            search = searched(runs, look, bounds)
            runs = search.runs
            found.kinds.extend(product)
            found.open.extend(point for point, _ in search.open)
            found.notes.extend(search.notes)
            found = replace(found, most=bounds.points)
        for point, run in runs:
            points.setdefault(run.key, _at(point, run))
    if figures and not any(figure.scales for figure in figures):
        raise TrainsNothing("; ".join(map(_trains_nothing, figures)))
    if not points:
        raise none_left(reason for _, reason in undefined)
    return replace(found, points=list(points.values()))


_PLACED = "base_lr=1/1024"  # any η̃, in place of one that a search finds


def _expand_product(
    axes: Axes, plain: list[str], describe: Describe, undefined: list[tuple[str, str]]
) -> tuple[list[Point], Bounds | None]:
    """The points of a product; of a search those at any one η̃, and its bounds. Raises ConfigError."""
    bounds = None
    search = SEARCH in axes.get("base_lr", [])
    if search:
        if len(axes["base_lr"]) > 1:
            raise ConfigError("base_lr=search: stands alone; search.lowest and search.highest bound it")
        axes = axes | {"base_lr": [_PLACED.partition("=")[2]]}
    points = []
    for overrides, cfg in _configs(axes, plain):
        try:
            points.append(_point(cfg, overrides, describe))
            bounds = Bounds.of(cfg.search) if search else None
        except Undefined as error:
            undefined.append((" ".join(w for w in overrides if not search or w != _PLACED), str(error)))
    return points, bounds


def _at(point: Point, run: Run) -> Point:
    """The point of a run that differs from a point's own in η̃ at most, where that is a placeholder."""
    if run.base_lr == point.run.base_lr:
        return point
    overrides = [f"base_lr={run.base_lr!r}" if word == _PLACED else word for word in point.overrides]
    return replace(point, run=run, overrides=overrides, settings=point.settings | {"base_lr": run.base_lr})


def none_left(reasons: Iterable[str]) -> ConfigError:
    """That no point of a grid is left, and why."""
    return ConfigError(f"no point of this grid can be trained: {'; '.join(sorted(set(reasons)))}")


def _configs(axes: Axes, plain: list[str]) -> Iterator[tuple[list[str], DictConfig]]:
    """Each point of a product: its overrides and its config, which is only good until the next one."""
    group_axes = {k: v for k, v in axes.items() if chooses_files(k)}
    leaf_axes = {k: v for k, v in axes.items() if k not in group_axes}
    for groups in _combinations(group_axes):
        cfg = compose(groups + plain)
        current: list[str] = []
        for leaves in _combinations(leaf_axes):
            for leaf in leaves:  # every point of a product sets the same ones: what is still set can stay
                if leaf not in current:
                    _set(cfg, leaf)
            current = leaves
            yield groups + leaves + plain, cfg


@lru_cache(maxsize=256)
def figure_config(name: str) -> Figure:
    """The figure's config by name; not to be changed, since it is kept. Raises ConfigError."""
    try:
        figure = OmegaConf.to_object(compose([f"figure={name}"]).figure)
    except OmegaConfBaseException as error:
        raise ConfigError(f"figure={name}: {one_line(error)}") from None
    assert isinstance(figure, Figure)
    if not figure.scales and not figure.of and figure.draw is not Draw.paths and name != "all":
        raise ConfigError(f"figure={name}: has no scales, and so no runs; write scales: {{paper: {{}}}} at least")
    for scale, given in figure.scales.items():
        if not all(isinstance(product, dict) for product in (given if isinstance(given, list) else [given])):
            raise ConfigError(
                f"figure={name}: scales.{scale} must be axes, as {{batch_size: [2, 8]}}, or a list of them"
            )
    return figure


def figure_names(given: list[str]) -> list[str]:
    """The names with `all` written out, each once, in order; none for `null`."""
    every = sorted({path.stem for path in (CONF / "figure").glob("*.yaml")} - {"all"})
    names = [n for name in given for n in (every if name == "all" else [name]) if n != "null"]
    return list(dict.fromkeys(names))


def stages(arguments: list[str]) -> list[list[str]]:
    """The command line cut into those to train one after the other: figures that need others' best η̃ come last.

    Raises TrainsNothing.
    """
    given, _ = parse_words(arguments)
    names = figure_names(given.get("figure", []))
    if not names:
        return [arguments]
    figures = [figure_config(name) for name in names]
    rest = [argument for argument in arguments if not argument.startswith("figure=")]
    first = [f.name for f in figures if f.scales and (f.rates_of is None or "base_lr" in given)]
    last = [f.name for f in figures if f.scales and f.name not in first]
    if not first and not last:
        raise TrainsNothing("; ".join(map(_trains_nothing, figures)))
    return [[f"figure={','.join(some)}", *rest] for some in (first, last) if some]


def _trains_nothing(figure: Figure) -> str:
    of = f" from the runs of {', '.join(figure.of)}" if figure.of else ""
    return f"figure={figure.name} trains nothing; it is drawn{of} by python src/figures.py figure={figure.name}"


def _products(figures: list[Figure], scales: list[str], given: Axes, rates: Rates | None) -> Iterator[tuple[str, Axes]]:
    """Each product, and whose it is, as an error says it."""
    if not figures:
        yield "", given
        return
    for scale, figure in itertools.product(scales, figures):
        if figure.scales and scale not in figure.scales:
            raise ConfigError(f"figure={figure.name} has no scale={scale}; it has {', '.join(figure.scales)}")
        settings = OmegaConf.to_container(compose([f"scale={scale}"]).scale.settings)
        assert isinstance(settings, dict)
        products = figure.scales.get(scale, [])
        for product in products if isinstance(products, list) else [products]:
            merged = {**figure.common, **settings, **product}
            axes = _axes({str(key): value for key, value in merged.items()}, given) | given
            for chosen in _with_best_rates(axes, figure, [f"scale={scale}", *_without_sweep(given)], rates):
                yield f"figure={figure.name} scale={scale}: ", chosen


def _without_sweep(given: Axes) -> list[str]:
    """The words of a command line, less those of axes that the runs behind a best η̃ have of their own."""
    return [f"{key}={','.join(values)}" for key, values in given.items() if key not in VARIED]


def _with_best_rates(axes: Axes, figure: Figure, words: list[str], rates: Rates | None) -> Iterator[Axes]:
    """The product itself, or one for each batch size at its best η̃."""
    if axes.get("base_lr") != [BEST]:
        yield axes
        return
    if rates is None or figure.rates_of is None:
        raise ConfigError(f"figure={figure.name} takes the best η̃ of {figure.rates_of}'s runs; give base_lr=…")
    best = rates([f"figure={figure.rates_of}", *words], [int(m) for m in axes["batch_size"]])
    for m, rate in best.items():
        yield axes | {"batch_size": [str(m)], "base_lr": [repr(rate)]}


def _axes(values: dict[str, Any], given: Axes) -> Axes:
    """Settings of a figure as axes: a list is the values of one, but of a list setting it is one value.

    An axis of a list setting is a list of lists.
    """
    choices = {key: value[:1] if isinstance(value, list) else [value] for key, value in values.items()} | given
    files = tuple(f"{key}={from_yaml(some[0])}" for key, some in choices.items() if some and chooses_files(key))
    axes = {}
    for key, value in values.items():
        is_one = not isinstance(value, list) or (
            not all(isinstance(one, list) for one in value or [None]) and _is_list(key, files)
        )
        axes[key] = [from_yaml(one) for one in ([value] if is_one else value)]
    return axes


@lru_cache(maxsize=256)
def _is_list(key: str, files: tuple[str, ...]) -> bool:
    """Whether a setting is a list by its schema, where these files are chosen."""
    group, _, name = key.rpartition(".")
    cfg = compose(list(files))
    node = OmegaConf.select(cfg, group) if group else cfg
    return (
        not chooses_files(key)
        and OmegaConf.is_dict(node)
        and isinstance(node._get_node(name, validate_access=False), ListConfig)
    )


def _combinations(axes: Axes) -> Iterator[list[str]]:
    for values in itertools.product(*axes.values()):
        yield [f"{key}={value}" for key, value in zip(axes, values, strict=True)]


@lru_cache(maxsize=4096)
def _parse_leaf(leaf: str) -> Override:
    with plain_errors():
        return OverridesParser.create().parse_override(leaf)


def _set(cfg: DictConfig, leaf: str) -> None:
    """Set one leaf in place. Raises ConfigError if there is no such setting or the value has a wrong type."""
    override = _parse_leaf(leaf)
    key = override.get_key_element()
    if not _has(cfg, key):
        raise ConfigError(f"{leaf}: {no_setting(key, cfg)}")
    try:
        OmegaConf.update(cfg, key, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(refused(Config, key, override.value()) or f"{leaf}: {one_line(error)}") from None


def _has(cfg: DictConfig, key: str) -> bool:
    """Whether there is such a setting, be it one that must still be given."""
    try:
        return OmegaConf.select(cfg, key, default=_ABSENT, throw_on_missing=True) is not _ABSENT
    except MissingMandatoryValue:
        return True


def _point(cfg: DictConfig, overrides: list[str], describe: Describe) -> Point:
    found: list[Description] = []

    def remember(data: dict[str, Any]) -> Description:
        found.append(describe(data))
        return found[-1]

    run = make_run(cfg, remember)
    settings: Any = OmegaConf.to_container(cfg, enum_to_str=True)
    return Point(run, overrides, found[-1], settings)
