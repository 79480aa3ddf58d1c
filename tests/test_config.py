"""What is accepted, what is refused, and the rules of a run's key."""

import copy
import hashlib
import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from smallbatch.compose import compose, plain_errors
from smallbatch.config import Norm, Schedule
from smallbatch.errors import ConfigError
from smallbatch.powers import format_power, parse_power
from smallbatch.run import Run, make_run

BASE = Run(
    model={"_target_": "smallbatch.models.alexnet.AlexNet", "name": "alexnet"},
    data={"name": "digits", "fingerprint": "0123456789abcdef", "train_size": None, "test_size": None, "augment": False},
    norm=Norm(),
    optimizer={"_target_": "torch.optim.SGD", "name": "sgd", "momentum": 0.0, "nesterov": False},
    schedule=Schedule(),
    batch_size=8,
    base_lr=2.0**-9,
    bn_batch_size=None,
    epochs=10,
    weight_decay=5e-4,
    seed=0,
    precision="32-true",
)


def changed(run: Run, path: str, value: Any) -> Run:
    """A copy of the run with one value, at a dotted path, replaced."""
    stored = copy.deepcopy(run.to_dict())
    *parents, last = path.split(".")
    node = stored
    for name in parents:
        node = node[name]
    node[last] = value
    return Run.from_dict(stored)


def made(root, *overrides: str) -> Run:
    return make_run(compose([f"data.root={root}", *overrides]))


# Powers


@given(st.integers(-1074, 1023))
def test_a_power_of_two_is_shown_and_read_back_exactly(exponent):
    value = math.ldexp(1.0, exponent)
    assert format_power(value) == f"2^{exponent}"
    assert parse_power(format_power(value).replace("^", "**")) == value
    assert parse_power(repr(value)) == parse_power(value) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_is_read_back_exactly(value):
    assert parse_power(value) == parse_power(repr(value)) == value


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_fraction_is_its_quotient(a, b):
    assert parse_power(f"{a}/{b}") == parse_power(f" {a} / {b} ") == a / b


@pytest.mark.parametrize("text", ["0.001953125", "1/512", "2**-9", "2.0 ** -9", "1e0/5.12e2", ".001953125", 2.0**-9])
def test_every_way_to_write_a_value_gives_the_same_float(text):
    assert parse_power(text) == 2.0**-9


def test_what_is_no_power_of_two_is_shown_as_a_decimal():
    assert [format_power(v) for v in (0.003, 3.0, 1.5, 0.0)] == ["0.003", "3", "1.5", "0"]


@pytest.mark.parametrize(
    "text", ["abc", "", "1/", "/2", "1/2/3", "1//2", "2**", "2^-9", "1/0", "2**99999", "0x10", "nan", "inf",
             "__import__('os')", "1+1", True, None, "-2**0.5"],
)  # fmt: skip
def test_what_is_no_number_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"^base_lr=.*1/512"):
        parse_power(text)


# Keys

GOLDEN = {
    "alexnet": (BASE, "1b3a7d860f0c3694"),
    "resnet32, batch norm, augmented": (
        replace(
            BASE,
            model={"_target_": "smallbatch.models.resnet.ResNet", "name": "resnet32", "depth": 32},
            data=BASE.data | {"augment": True},
            norm=Norm("batch"),
            weight_decay=1e-4,
            epochs=82,
        ),
        "28700e608179c5d4",
    ),
    "ghost batch norm in convolutions, three seeds on": (
        replace(BASE, norm=Norm("batch", layers="conv"), batch_size=64, bn_batch_size=4, seed=3),
        "6bee2db03b842bdb",
    ),
    "group norm, momentum": (
        replace(
            BASE,
            norm=Norm("group", groups=4),
            optimizer=BASE.optimizer | {"name": "momentum", "momentum": 0.9},
        ),
        "daf99e6549be8382",
    ),
    "adamw, cosine with warm-up, a subset": (
        replace(
            BASE,
            data=BASE.data | {"train_size": 1024, "test_size": 300},
            optimizer={"_target_": "torch.optim.AdamW", "name": "adamw", "betas": [0.9, 0.99], "eps": 1e-8},
            schedule=Schedule("cosine", warmup=0.05),
            base_lr=0.003,
        ),
        "aec18defe447fea4",
    ),
    "a network of one's own, in float64": (
        replace(
            BASE,
            model={"_target_": "mine.Net", "name": "net", "widths": [8, 16], "dropout": 0.5, "bias": None},
            precision="64-true",
            weight_decay=0.0,
        ),
        "cabaa444c7c54353",
    ),
}


# A key that changes here has changed in every store: raise PROTOCOL, and only then write the new ones in.
@pytest.mark.parametrize(("run", "key"), GOLDEN.values(), ids=GOLDEN.keys())
def test_keys_stay_what_they_were(run, key):
    assert run.key == key


def test_a_key_is_the_hash_of_what_differs_from_the_defaults():
    """Written out once by hand, so that this text is the definition."""
    text = (
        '{"base_lr":"0x1.0000000000000p-9","batch_size":8,"data":{"fingerprint":"0123456789abcdef"},"epochs":10,'
        '"model":{"_target_":"smallbatch.models.alexnet.AlexNet"},"optimizer":{"_target_":"torch.optim.SGD"},'
        '"protocol":1,"seed":0,"weight_decay":"0x1.0624dd2f1a9fcp-11"}'
    )
    assert BASE.key == hashlib.sha256(text.encode()).hexdigest()[:16]


def leaves(stored: dict, prefix: str = "") -> list[str]:
    return [p for k, v in stored.items() for p in (leaves(v, f"{prefix}{k}.") if isinstance(v, dict) else [prefix + k])]


NORMALISED = replace(BASE, norm=Norm("batch"))
NAMES = {"model.name", "data.name", "optimizer.name"}
OTHER_WORDS = {"norm.kind": "group", "norm.layers": "conv", "schedule.kind": "cosine"}


@pytest.mark.parametrize("path", [p for p in leaves(NORMALISED.to_dict()) if p not in NAMES])
def test_every_scientific_field_changes_the_key(path):
    value = NORMALISED.to_dict()
    for name in path.split("."):
        value = value[name]
    if value is None or path in OTHER_WORDS:
        other: Any = OTHER_WORDS.get(path, 4)
    elif isinstance(value, bool):
        other = not value
    elif isinstance(value, list):
        other = [*value, 0.875]
    else:
        other = value + "x" if isinstance(value, str) else value + 1
    assert changed(NORMALISED, path, other).key != NORMALISED.key


@pytest.mark.parametrize("path", sorted(NAMES))
def test_what_things_are_called_does_not_change_the_key(path):
    assert changed(NORMALISED, path, "another name").key == NORMALISED.key


def test_a_field_at_its_default_is_left_out_so_that_new_fields_keep_old_keys():
    """As if runs had been made before `layers`, `groups`, `nesterov`, `warmup` … existed."""
    stored = NORMALISED.to_dict()
    for group in ("norm", "optimizer", "schedule", "data"):
        for name in stored[group].keys() - {"kind", "_target_", "name", "fingerprint"}:
            older = {k: v for k, v in stored[group].items() if k != name}
            assert Run.from_dict(stored | {group: older}).key == NORMALISED.key, f"{group}.{name}"


def test_settings_of_an_absent_norm_do_not_matter():
    assert changed(BASE, "norm.eps", 0.5).key == changed(BASE, "norm.layers", "conv").key == BASE.key


def test_a_run_comes_back_from_json_with_its_key():
    for run, _ in GOLDEN.values():
        again = Run.from_dict(json.loads(json.dumps(run.to_dict())))
        assert again == run
        assert again.key == run.key
    with pytest.raises(TypeError):
        Run.from_dict(BASE.to_dict() | {"unknown": 1})
    for name in ("seed", "norm"):
        with pytest.raises(TypeError):
            Run.from_dict({k: v for k, v in BASE.to_dict().items() if k != name})


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [("norm.kind", "layer", ValueError), ("norm.layers", None, ValueError), ("schedule.kind", 3, ValueError),
     ("norm", "batch", TypeError), ("norm", {"unknown": 1}, TypeError), ("schedule", [0.5], TypeError)],
)  # fmt: skip
def test_a_run_that_somebody_else_stored_is_not_believed(path, value, error):
    with pytest.raises(error):
        changed(BASE, path, value)


def test_what_is_stored_is_plain():
    """Enums as words: as JSON has them, and pandas and W&B."""
    stored = BASE.to_dict()
    assert type(stored["norm"]["kind"]) is type(stored["norm"]["layers"]) is type(stored["schedule"]["kind"]) is str
    assert list(stored["norm"].items()) == [
        ("kind", "none"), ("layers", "all"), ("eps", 1e-5), ("memory", 1280), ("groups", 8)
    ]  # fmt: skip


def test_keys_differ_in_the_last_bit_of_base_lr_and_weight_decay():
    assert len({replace(BASE, base_lr=v).key for v in (0.1, math.nextafter(0.1, 1), 0.2)}) == 3
    assert len({replace(BASE, weight_decay=v).key for v in (0.1, math.nextafter(0.1, 1), 0.0)}) == 3


# From a command line to a run


@pytest.mark.trains
def test_one_value_has_one_key_however_it_was_written(root):
    keys = {made(root, f"base_lr={text}").key for text in ("2**-9", "1/512", "0.001953125", "1.953125e-3")}
    assert len(keys) == 1
    assert made(root, "weight_decay=0.0005", "schedule.drops=[0.50,0.750]").key == made(root).key
    assert made(root, "optimizer=momentum").key == made(root, "optimizer.momentum=0.9").key != made(root).key
    assert made(root, "model=resnet20").key == made(root, "model=resnet8", "model.depth=20").key
    assert made(root, "model=resnet50") == made(root, "model=torchvision", "model.network=resnet50")


def test_a_bn_batch_equal_to_the_batch_is_as_good_as_unset(root):
    whole = made(root, "norm=batch", "batch_size=8")
    assert made(root, "norm=batch", "batch_size=8", "bn_batch_size=8") == whole
    assert made(root, "norm=batch", "batch_size=8", "bn_batch_size=4").key != whole.key


def test_a_subset_of_everything_is_as_good_as_none(root):
    assert made(root, "data.train_size=1437", "data.test_size=360") == made(root)
    assert made(root, "data.train_size=1436").key != made(root).key


@pytest.mark.parametrize(
    "override",
    ["store=elsewhere", "machine.threads=7", "machine.workers=7", "machine.accelerator=gpu", "progress=false",
     "overwrite=true"],
)  # fmt: skip
def test_where_and_how_it_runs_is_not_in_the_key(root, override):
    assert made(root, override) == made(root)


def test_where_the_images_lie_is_not_in_the_key(root, tmp_path):
    digits = made(root, "epochs=5")
    (tmp_path / "copy.npz").write_bytes((root / "digits.npz").read_bytes())
    assert made(tmp_path, "data=arrays", "data.path=copy.npz", "epochs=5").key == digits.key


@pytest.mark.parametrize(
    "override",
    ["model=resnet8", "data=cifar10", "data.augment=true", "data.train_size=1024", "data.test_size=100", "norm=group",
     "norm.layers=conv", "norm.eps=1e-3", "norm.memory=128", "optimizer=adamw", "optimizer.momentum=0.9",
     "optimizer.nesterov=true", "schedule=cosine", "schedule.drops=[0.5]", "schedule.drop_factor=0.2",
     "schedule.warmup=0.05", "schedule.warmup_start=0.5", "batch_size=16", "base_lr=1/512", "bn_batch_size=4",
     "epochs=11", "weight_decay=0", "seed=1", "precision=64-true", "loss.label_smoothing=0.1", "stop=early_stopping",
     "schedule._target_=math.dist"],
)  # fmt: skip
def test_every_scientific_setting_reaches_the_key(root, override):
    base = {"norm": "norm=batch", "batch_size": "batch_size=32", "epochs": "epochs=10"}
    other = base | {override.partition("=")[0]: override}
    assert made(root, *other.values()).key != made(root, *base.values()).key


def test_the_defaults_are_the_paper_s(root):
    run = made(root)
    assert run.optimizer["momentum"] == 0
    assert (run.schedule.drops, run.schedule.drop_factor) == ([0.5, 0.75], 0.1)
    assert (run.weight_decay, made(root, "model=resnet8").weight_decay) == (5e-4, 1e-4)
    assert made(root, "data=cifar10").epochs == 82
    assert {f.name for f in fields(Run)} - {"loss", "stop"} == BASE.to_dict().keys()


def test_a_run_s_dictionary_has_what_came_later_only_where_it_is_set(root):
    """So that the files and checksums of older runs stay as they are."""
    later = made(root, "loss.label_smoothing=0.1", "stop=early_stopping", "schedule._target_=math.dist")
    plain = later.to_dict()
    assert plain["stop"] == {"monitor": "test_loss", "mode": "min", "patience": 5, "min_delta": 0.0}
    assert (plain["loss"]["label_smoothing"], plain["schedule"]["_target_"]) == (0.1, "math.dist")
    assert Run.from_dict(json.loads(json.dumps(plain))).key == later.key
    assert "_target_" not in BASE.to_dict()["schedule"]


# What is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=0"], "batch_size=0"),
        (["batch_size=-4"], "batch_size=-4"),
        (["batch_size=1438"], "batch_size=1438.*1437 images"),
        (["batch_size=200", "data.train_size=128"], "batch_size=200.*128 images"),
        (["norm=batch", "batch_size=12", "bn_batch_size=5"], "bn_batch_size=5.*1, 2, 3, 4, 6, 12"),
        (["norm=batch", "batch_size=8", "bn_batch_size=16"], "bn_batch_size=16.*1, 2, 4, 8"),
        (["norm=batch", "batch_size=8", "bn_batch_size=0"], "bn_batch_size=0"),
        (["norm=batch", "batch_size=8", "bn_batch_size=-2"], "bn_batch_size=-2"),
        (["batch_size=8", "bn_batch_size=4"], "bn_batch_size=4 needs norm=batch"),
        (["norm=group", "batch_size=8", "bn_batch_size=4"], "bn_batch_size=4 needs norm=batch"),
        (["base_lr=0"], "base_lr=0"),
        (["base_lr=-1/512"], "base_lr=-1/512"),
        (["base_lr=1e999"], "base_lr"),
        (["base_lr=fast"], "base_lr=fast"),
        (["base_lr=-2**0.5"], "base_lr"),
        (["epochs=0"], "epochs=0"),
        (["seed=-1"], "seed=-1"),
        (["weight_decay=-1e-4"], "weight_decay=-0.0001"),
        (["weight_decay=nan"], "weight_decay=nan"),
        (["norm=batch", "norm.memory=0"], "norm.memory=0"),
        (["norm=group", "norm.groups=0"], "norm.groups=0"),
        (["norm=batch", "norm.eps=nan"], "norm.eps=nan"),
        (["optimizer.momentum=nan"], "optimizer.momentum=nan"),
        (["schedule.drop_factor=inf"], "schedule.drop_factor=inf"),
        (["schedule.warmup_start=nan"], "schedule.warmup_start=nan"),
        (["schedule.drops=[0.75,0.5]"], "schedule.drops"),
        (["schedule.drops=[0,0.5]"], "schedule.drops"),
        (["schedule.drops=[0.5,1]"], "schedule.drops"),
        (["schedule.drops=[nan]"], "schedule.drops"),
        (["schedule.warmup=1"], "schedule.warmup=1"),
        (["schedule.warmup=-0.1"], "schedule.warmup=-0.1"),
        (["data.train_size=0"], "data.train_size=0"),
        (["data.train_size=9"], "data.train_size=9"),
        (["data.train_size=1438"], "data.train_size=1438"),
        (["data.test_size=361"], "data.test_size=361"),
        (["data=arrays", "data.path=absent.npz"], "data.path=absent.npz"),
        (["data=arrays"], "data.path.*must be given"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_bad_value_is_refused_in_one_line_naming_it(root, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        made(root, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    ["batchsize=4", "data.train_siz=3", "optimizer.momentm=0.9", "norm.group=4", "model.depth=8", "schedul=steps",
     "batch_size=abc", "batch_size=2.5", "batch_size=true", "batch_size=null", "batch_size=[2]", "epochs=ten",
     "seed=1.5", "weight_decay=much", "base_lr=[1]", "base_lr=null", "data.augment=maybe", "data.train_size=all",
     "norm.kind=layer", "norm.eps=small", "schedule.drops=0.5", "schedule.drops=[half]", "precision=16",
     "optimizer.betas=[0.9,0.99]", "machine.threads=many"],
)  # fmt: skip
def test_a_misspelt_key_or_a_wrong_type_is_refused_naming_it(override):
    with pytest.raises(ConfigError, match=override.split("=")[0].replace(".", r"\.")) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["model=alexnett", "data=mnist", "norm=layer", "optimizer=sdg", "figure=fig99"])
def test_a_misspelt_choice_is_refused_listing_the_right_ones(override):
    group = override.partition("=")[0]
    message = f"^{override}: there is no such {group}; (did you mean .*)?choose .*,"
    with pytest.raises(ConfigError, match=message) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


def test_several_values_without_m_are_told_of_it():
    with pytest.raises(ConfigError, match=r"^batch_size=2,4: several values are a grid: add -m"):
        compose(["batch_size=2,4"])


def test_a_file_that_is_no_yaml_is_refused_in_one_line_that_says_where(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: [mine\ntitle: x\n")
    message = r"mine\.yaml, line 2: no YAML: expected"
    with pytest.raises(ConfigError, match=message) as caught, plain_errors(), path.open() as file:
        yaml.safe_load(file)
    assert "\n" not in str(caught.value)
