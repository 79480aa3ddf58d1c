"""Compose a config without `hydra.main`, for the commands that train nothing themselves."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import __version__, initialize_config_dir
from hydra import compose as hydra_compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from smallbatch.config import BEST, SEARCH, Config, register
from smallbatch.errors import ConfigError, one_line
from smallbatch.quoting import of_point, parsed, quoted
from smallbatch.ranges import check_ranges, ranges, refused, shown

Axes = dict[str, list[str]]  # the values of each setting that varies
NAMED = ("store", "data.root", "data.path", "wandb.project", "machine.accelerator")
_HERE = Path(__file__).resolve()
CONF = next(path for path in (_HERE.parents[2] / "conf", _HERE.parent / "conf") if path.is_dir())  # or installed
# Without it Hydra 1.3 would behave as 1.1 did; 1.4 does not want it any more.
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if __version__.startswith("1.3") else {}
_SEEDS: Any = ranges(Config)["seeds"]
_primary = "train"
_folders: list[str] = []  # beside CONF, as Hydra's --config-dir adds one

_ONE_FILE = {f.name for f in fields(Config)} - {"callbacks"}  # groups that one file is chosen for
_BY_NAME = "is chosen by the name of a file, such as stop=none"


def compose(overrides: list[str]) -> DictConfig:
    """The config of one command line, as `python src/train.py` would have it. Raises ConfigError."""
    points = [word for word in overrides if word.startswith("grid_point=")]
    with plain_errors(overrides):
        cfg = deepcopy(_composed(_primary, tuple(word for word in overrides if word not in points)))
        for word in points:  # each is another, so that there is no use in keeping it
            cfg.grid_point = OverridesParser.create().parse_override(word).value()
    return of_point(cfg)


def use_config(name: str) -> None:
    """Compose from another file of `conf/` than train.yaml, as Hydra's `--config-name` asks for."""
    global _primary
    _primary = name


def add_config_dir(folder: str | Path) -> None:
    """Compose from a folder of your own too, laid out as `conf/`. Raises ConfigError if it is none."""
    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir {folder}: is no folder")
    if str(Path(folder).resolve()) not in _folders:
        _folders.append(str(Path(folder).resolve()))
        _composed.cache_clear()


def config_dirs() -> list[str]:
    """The folders that were added, for processes that are to know them too."""
    return list(_folders)


@lru_cache(maxsize=512)
def _composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """Kept, since figures share most of their choices and one composition takes Hydra 0.1 s."""
    _initialize()
    places = ",".join(quoted(f"file://{folder}") for folder in _folders)
    added = [f"hydra.searchpath=[{places}]"] if _folders else []
    cfg = hydra_compose(name, [*overrides, *added])
    check_names(cfg)
    check_values(cfg)
    return cfg


def _initialize() -> None:
    if not GlobalHydra.instance().is_initialized():
        register()
        initialize_config_dir(str(CONF), **VERSION_BASE)


@lru_cache
def chooses_files(key: str) -> bool:
    """Whether a key of a command line, as `model` or `+experiment`, chooses files, so that Hydra has to compose."""
    _initialize()
    return key.startswith("+") or bool(GlobalHydra.instance().config_loader().get_group_options(key))


def watched(cfg: DictConfig) -> bool:
    """Whether the config has callbacks or a logger of Lightning's, which see nothing of a run that is there."""
    return bool(cfg.callbacks) or "_target_" in cfg.logger


def check_names(cfg: DictConfig) -> None:
    """Raise ConfigError for what `+key=value` added where there is no such setting; networks, data … may take more."""
    if gone := [f.name for f in fields(Config) if f.name not in cfg]:
        raise ConfigError(f"~{gone[0]}: {_STAYS}")
    known = {f.name: OmegaConf.get_type(cfg, f.name) for f in fields(Config) if f.type is not Any} | {"": Config}
    for group, kind in known.items():
        if is_dataclass(kind):
            for name in set(cfg[group] if group else cfg) - {f.name for f in fields(kind)}:
                raise ConfigError(no_setting(f"{group}.{name}".lstrip("."), compose([])))
    if "_target_" not in cfg.logger and (more := set(cfg.logger) - {"name"}):
        raise ConfigError(f"logger.{min(more)}: logger={cfg.logger.name} has nothing to set")


def check_values(cfg: DictConfig) -> None:
    """Raise ConfigError for a value that makes no sense, or an empty name; ${…} is known when it is used."""
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    if plain["overwrite"] not in (False, True, "changed") and "${" not in str(plain["overwrite"]):
        raise ConfigError(f"overwrite={shown(plain['overwrite'])}: choose false, true or changed")
    check_ranges(Config, plain, (SEARCH, BEST))
    for key in NAMED:
        group, _, name = key.rpartition(".")
        node = plain.get(group) if group else plain
        if isinstance(node, dict) and node.get(name) == "":
            raise ConfigError(f"{key}=: must not be empty")


@contextmanager
def plain_errors(words: Sequence[str] = ()) -> Iterator[None]:
    """What Hydra has to say of a command line or a YAML file, in up to 35 lines, as a ConfigError of one."""
    for word, found in _read(words).items():
        if isinstance(found.value(), list) and found.key_or_group in _ONE_FILE and _is_group(found):
            raise ConfigError(f"{word}: {_BY_NAME}")
    try:
        yield
    except HydraException as error:
        raise ConfigError(_in_one_line(error)) from None
    except (ValueError, AssertionError, OmegaConfBaseException) as error:
        if not (told := _of_words(error, words)):
            raise
        raise ConfigError(told) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{mark.name}, line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{where}no YAML: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"a file in conf/ is no YAML: {' '.join(str(error).split())}") from None


def _of_words(error: Exception, words: Sequence[str]) -> str:
    """What is wrong with the words of which Hydra, or OmegaConf below it, raised this; nothing if it is not of them."""
    read = _read(words)
    if "Config group override must be" in str(error):
        wrong = [w for w, found in read.items() if not isinstance(found.value(), str | list) and _is_group(found)]
        return f"{wrong[0] if wrong else 'a group of settings'}: {_BY_NAME}"
    if "Unexpected type for root" in str(error):  # of a group that is null
        keys = [found.key_or_group for found in read.values() if found.key_or_group.partition(".")[0] in NULL]
        return no_setting(keys[0], compose([])) if keys else ""
    taken = [word for word, found in read.items() if found.is_delete()]
    return f"{taken[0]}: {_STAYS}" if taken and isinstance(error, OmegaConfBaseException) else ""


NULL = ("stop", "figure")  # groups that may be null
_STAYS = "a setting cannot be taken away; give it another value, as key=value"


def _read(words: Sequence[str]) -> dict[str, Override]:
    return {word: found for word in words if (found := parsed(word))}


def _is_group(found: Override) -> bool:
    return chooses_files(found.key_or_group)


def _in_one_line(error: HydraException) -> str:
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if (group, choice) == ("callbacks", "early_stopping"):
            return "callbacks=early_stopping: use stop=early_stopping, which is part of the run"
        options = [option for option in error.options if not option.startswith("_")]
        return f"{group}={choice}: there is no such {group}; {did_you_mean(choice, options)}choose {', '.join(options)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; write key=value, with quotes around anything but words and numbers"
    ambiguous = re.match(r"Ambiguous value for argument '(.+)'\n", str(error))
    if ambiguous:
        return f"{ambiguous[1]}: several values are a grid: add -m (or write one value)"
    if there := re.match(r"Could not append to config\. An item is already at '(.+)'", str(error)):
        return f"+{there[1]}: is a setting already; write {there[1]}=… without +"
    if "does not support deletion" in str(error.__cause__ or ""):
        return f"{str(error).partition('override ')[2]}: {_STAYS}"
    lines = [str(e).replace(":\n", ": ", 1).partition("\n")[0] for e in (error, error.__cause__) if e and str(e)]
    unknown = re.fullmatch(r"Could not override '(.+)'\.?", lines[0])
    if unknown:
        return no_setting(unknown[1], compose([]))
    told = ": ".join(lines).removeprefix("Error merging override ")
    wrong = re.fullmatch(r"(?:Error merging override )?\+*([\w.]+)=(.*)", lines[0])
    return (wrong and refused(Config, wrong[1], wrong[2])) or told


# What Lightning's Trainer takes and would change a run's numbers or its place, and the setting of ours for it.
_DEVICES = "use trainer.devices, of one machine; the same command on another machine trains other runs"
_EVERY_EPOCH = "every epoch is tested, as its row in epochs.csv says"
INSTEAD = {
    **dict.fromkeys(("max_epochs", "max_steps", "max_time"), "use epochs"),
    **dict.fromkeys(("min_epochs", "min_steps"), "use stop=early_stopping, whose patience is a number of epochs"),
    **dict.fromkeys(("num_nodes", "strategy", "sync_batchnorm", "use_distributed_sampler"), _DEVICES),
    **dict.fromkeys(("check_val_every_n_epoch", "val_check_interval", "num_sanity_val_steps"), _EVERY_EPOCH),
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm"), "use an optimizer of your own that clips"),
    "precision": "use precision",
    "accelerator": "use machine.accelerator",
    "accumulate_grad_batches": "use batch_size, and bn_batch_size for the groups that batch norm sees",
    "overfit_batches": "use data.train_size",
    "callbacks": "use callbacks",
    "logger": "use logger",
    "enable_progress_bar": "use progress",
    "enable_checkpointing": "use save_weights, or callbacks=model_checkpoint",
    "default_root_dir": "use store",
}


def no_setting(key: str, cfg: DictConfig) -> str:
    """That a config has no such key, and which is meant."""
    group, _, name = key.lstrip("+").partition(".")
    if group == "trainer" and name in INSTEAD:
        return f"{key}: {INSTEAD[name]}"
    if group in NULL and name and cfg.get(group) is None:
        return f"{key}: there is no {group}; add {group}={'early_stopping' if group == 'stop' else 'NAME'}"
    if key in ("lr", "learning_rate"):
        return f"{key}: use base_lr; the learning rate is base_lr × batch_size"
    top = [str(name) for name in cfg]
    names = top + [f"{name}.{k}" for name in top if OmegaConf.is_dict(cfg[name]) for k in cfg[name]]
    return f"there is no setting {key}; {did_you_mean(key, names)}`python src/train.py --help` lists the settings"


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """A question with the name that is nearest to a word, or nothing.

    >>> did_you_mean("batchsize", ["epochs", "batch_size"])
    'did you mean batch_size? '
    """
    close = get_close_matches(word, list(names), 1)
    return f"did you mean {close[0]}? " if close else ""


def parse_words(arguments: list[str]) -> tuple[Axes, list[str]]:
    """Axes by key, values as typed, and the overrides that are no axis (`+new=…`, `~gone`), by Hydra's grammar.

    `seeds=3` is the axis seed=1,2,3: seed 0, of pilots, is not among them. Raises ConfigError.

    >>> parse_words(["batch_size=2,4", "base_lr=1/512"])
    ({'batch_size': ['2', '4'], 'base_lr': ['1/512']}, [])
    """
    axes: Axes = {}
    plain = []
    with plain_errors():
        overrides = OverridesParser.create().parse_overrides(arguments)
    for override in overrides:
        new = override.is_add() or override.is_delete() or override.is_force_add()
        if new and not override.is_sweep_override():
            plain.append(override.input_line or "")
        else:
            axes[override.get_key_element()] = _values(override)
    if (number := axes.pop("seeds", ["null"])) != ["null"]:
        if "seed" in axes or len(number) > 1 or not number[0].isdecimal() or int(number[0]) not in _SEEDS:
            raise ConfigError(
                f"seeds={','.join(number)}: is how many seeds, {_SEEDS.interval}, in place of seed=…; usual are 3, 5, 8"
            )
        axes["seed"] = [str(seed) for seed in range(1, int(number[0]) + 1)]
    return axes, plain


def parse_settings(words: list[str]) -> Axes:
    """The settings that words choose runs by. Raises ConfigError, also for `+new=…` and `~gone`, which no run has."""
    axes, plain = parse_words(words)
    if plain:
        raise ConfigError(f"{plain[0]}: runs are chosen by key=value")
    return axes


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP or not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: a grid takes neither globs nor intervals; list the values")
    try:
        values = [str(value) for value in override.sweep_string_iterator()]
    except (ValueError, TypeError) as error:  # of range(…)
        raise ConfigError(f"{override.input_line}: {one_line(error)}; list the values") from None
    if not values:
        raise ConfigError(f"{override.input_line}: has no value; list the values")
    return values
