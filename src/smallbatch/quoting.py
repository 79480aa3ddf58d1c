"""Values that reach a config as they are, whatever letters they have: of YAML files, paths, points of a grid."""

import json
import os
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from smallbatch.config import schema

PATHS = ("data.path", "data.root", "store")  # settings that name files, which may have any letter


def point_word(settings: dict[str, Any]) -> str:
    """What a launcher is told of a point: all its settings as one JSON value, of which Hydra reads and resolves none.

    JSON has no names but texts: what has others, such as numbers, is a list of pairs beside an empty name.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(one) for one in value]
        if not isinstance(value, dict):
            return value
        pairs = [[name, plain(one)] for name, one in value.items()]
        return dict(pairs) if all(isinstance(name, str) and name for name in value) else {"": pairs}

    return "grid_point=" + quoted(json.dumps(plain(settings)).replace("$", "\\u0024"))


def of_point(cfg: DictConfig) -> DictConfig:
    """The config of a grid's point that has been told so by `point_word`; another as it is."""
    if not str(cfg.get("grid_point")).startswith("{"):
        return cfg

    def with_pairs(read: dict[str, Any]) -> dict[Any, Any]:
        return dict(read[""]) if "" in read else read

    made = OmegaConf.merge(schema(), json.loads(cfg.grid_point, object_hook=with_pairs))
    assert isinstance(made, DictConfig)
    if "hydra" in cfg:
        OmegaConf.set_struct(made, False)  # a schema's own
        made.hydra = cfg.hydra
    OmegaConf.set_struct(made, True)
    return made


def quoted(value: str) -> str:
    """A text as Hydra's grammar takes any: backslashes count as such unless a quote follows.

    >>> print(quoted("it's a\\\\b\\\\"))
    'it\\'s a\\b\\\\'
    """
    text = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"


def as_text(value: str) -> str:
    """A text as a config has it, in which ${…} would stand for something."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)


def from_yaml(value: Any) -> str:
    """A value of a YAML file as the grammar of words reads it: as that value, whatever letters a text has.

    >>> from_yaml([0.5, None, True]), from_yaml("1/512"), from_yaml("a=b, c"), from_yaml({"k": "8"})
    ('[0.5,null,true]', '1/512', "'a=b, c'", "{k:'8'}")
    """
    if isinstance(value, str):
        read = parsed(f"key={value}")
        as_it_is = read and not read.is_sweep_override() and type(read.value()) is str and read.value() == value
        return value if as_it_is else quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(from_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{from_yaml(name)}:{from_yaml(one)}' for name, one in value.items())}}}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def whole_paths(words: list[str]) -> list[str]:
    """The words of a command line, with quotes around paths that Hydra's grammar would not read as such.

    These are those it cannot read, as `data.path=run(1).npz`, and those that it takes for something else, as
    `data.path=a,b.npz`, where such a file is there.
    """
    roots = ["", "data", *(word.partition("=")[2] for word in words if word.startswith("data.root="))]

    def there(path: str) -> bool:
        return any(os.path.lexists(os.path.join(root, path)) for root in roots)

    def whole(word: str) -> str:
        key, equals, value = word.partition("=")
        if key not in PATHS or not equals:
            return word
        read = parsed(word)
        as_it_is = read and not read.is_sweep_override() and read.value() == value
        if as_it_is or (read and not there(value)):
            return word
        parts = value.split(",")
        if there(value) or not all(map(there, parts)):
            parts = [value]
        return f"{key}={','.join(map(quoted, parts))}"

    return [whole(word) for word in words]


def parsed(word: str) -> Override | None:
    """A word as Hydra's grammar reads it, None if it cannot."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None
