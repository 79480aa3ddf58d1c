"""`conf/` shows what there is to set: its YAML and the dataclasses that type it say the same."""

from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import MISSING as ASKED

from smallbatch import config

CONF = Path(__file__).parents[1] / "conf"
FILES = {
    config.AlexNet: ["model/alexnet"],
    config.ResNet: ["model/resnet8", "model/resnet20", "model/resnet32"],
    config.Torchvision: ["model/torchvision"],
    config.Norm: ["norm/none", "norm/batch", "norm/group"],
    config.Data: ["data/cifar10", "data/cifar100"],
    config.ArraysData: ["data/arrays"],
    config.DigitsData: ["data/digits"],
    config.FolderData: ["data/folder"],
    config.SGD: ["optimizer/sgd", "optimizer/momentum"],
    config.AdamW: ["optimizer/adamw"],
    config.Schedule: ["schedule/steps", "schedule/constant", "schedule/cosine"],
    config.CrossEntropy: ["loss/cross_entropy"],
    config.EarlyStopping: ["stop/early_stopping"],
    config.Trainer: ["trainer/default"],
    config.Machine: ["machine/default"],
}
OF_THEIR_OWN = {"data/digits16", "data/imagenet", "model/resnet50", "stop/none"}  # say what differs, or nothing
ELSEWHERE = {
    *("model", "data", "norm", "optimizer", "schedule", "loss", "stop", "figure", "scale"),
    *("machine", "trainer", "callbacks", "logger", "grid_point", "grid_since"),
}


def shown(name: str) -> dict[str, Any]:
    """The settings that a file of a group has, beside those that it brings to the top level."""
    text = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return {k: v for k, v in text.get(name.partition("/")[0], text).items() if k != "defaults"}


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def defaults(schema: type) -> dict[str, Any]:
    """What each field is if nobody says otherwise; `???` for what has to be said."""
    found = {}
    for item in fields(schema):
        value = item.default if item.default_factory is MISSING else item.default_factory()
        found[item.name] = plain(value)
    return found


@pytest.mark.parametrize("schema", FILES, ids=lambda schema: schema.__name__)
def test_every_field_is_shown_with_its_default_and_nothing_else_is(schema):
    values: dict[str, list[Any]] = {}
    for name in FILES[schema]:
        for key, value in shown(name).items():
            values.setdefault(key, []).append(value)
    typed = defaults(schema)
    assert values.keys() == typed.keys()
    for key, default in typed.items():
        if default != ASKED:
            # 1e-5 without a point is text to plain YAML, and a number to OmegaConf.
            there = [type(default)(v) if isinstance(default, float) else v for v in values[key]]
            assert default in there, f"{key}: {schema.__name__} has {default}, {FILES[schema]} show {there}"


def test_no_file_of_a_group_is_forgotten():
    groups = {name.partition("/")[0] for names in FILES.values() for name in names}
    files = {f"{path.parent.name}/{path.stem}" for group in groups for path in (CONF / group).glob("*.yaml")}
    assert files == {name for names in FILES.values() for name in names} | OF_THEIR_OWN


def test_the_top_level_shows_every_setting_with_its_default():
    text = yaml.safe_load((CONF / "train.yaml").read_text())
    typed = defaults(config.Config)
    assert {k for k in text if k not in ("defaults", "hydra")} == typed.keys() - ELSEWHERE
    for key in ("bn_batch_size", "seed", "precision", "save_weights", "store", "overwrite", "progress", "wait"):
        assert text[key] == typed[key], key
    assert text["wandb"] == defaults(config.Wandb)


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_a_file_brings_to_the_top_level_has_a_comment(path):
    """`# @package _global_` reaches beyond the file's own group: nobody should have to guess it."""
    for line in path.read_text().splitlines():
        if line.startswith(("weight_decay:", "epochs:", "schedule:")):
            assert "#" in line, f"{path.name}: {line}"
