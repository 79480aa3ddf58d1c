"""Every numeric setting has a range, and says it: generated from the schema."""

from copy import deepcopy
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.local_launcher import LocalLauncherConf, check_numbers
from hydra_plugins.ray_launcher import RayLauncherConf
from hydra_plugins.slurm_launcher import SlurmLauncherConf
from smallbatch import compose as composing
from smallbatch.compose import compose, parse_words
from smallbatch.config import Config
from smallbatch.errors import ConfigError, kind_and_line, one_line
from smallbatch.grids.expand import _set, expand
from smallbatch.ranges import check_ranges, ranges
from smallbatch.run import make_run

LAUNCHERS = (LocalLauncherConf, SlurmLauncherConf, RayLauncherConf)
NUMERIC = ranges(Config)
# What has to be chosen for a setting to be there.
NEEDS = {
    "model.depth": "model=resnet8",
    "optimizer.betas": "optimizer=adamw",
    "optimizer.eps": "optimizer=adamw",
    **dict.fromkeys(("stop.patience", "stop.min_delta"), "stop=early_stopping"),
    **{f"data.{name}": "data=imagenet" for name in ("side", "resize", "test_resize", "mean", "std")},
}
WRONG = ("-1", "-0.5", "nan", "inf", "-inf", "text", "true", "{a: 1}", "[[1]]", "''")
HUGE = ("1e300", f"{10**40}")
OPEN = {"schedule.drop_factor", "stop.min_delta", "grid_since"}  # any finite number has a meaning


@pytest.fixture(scope="module")
def base():
    """A config for each choice."""
    return {words: compose(words.split()) for words in {"", *NEEDS.values()}}


def refusal(cfg: DictConfig, word: str) -> str | None:
    """What is said of a word that changes a config, as in a grid."""
    try:
        _set(cfg, word)
        composing.check_values(cfg)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("schema", [Config, *LAUNCHERS], ids=lambda schema: schema.__name__)
def test_no_number_is_without_a_range(schema):
    assert ranges(schema)
    assert [name for name, allowed in ranges(schema).items() if allowed is None] == []


@pytest.mark.parametrize("name", NUMERIC)
def test_what_makes_no_sense_is_refused_with_the_setting_the_value_and_the_range(base, name):
    allowed: Any = NUMERIC[name]
    from_zero = allowed.interval.startswith("[0") and not allowed.listed
    wrong = [*WRONG, *(() if name in OPEN else HUGE), *(() if from_zero else ("0",))]
    wrong += [] if allowed.optional else ["null"]
    for value in wrong:
        said = refusal(deepcopy(base[NEEDS.get(name, "")]), f"{name}={value}")
        assert said is not None, f"{name}={value} is taken"
        assert said.startswith(f"{name}=")
        assert said.endswith(f": {allowed}")
        assert allowed.interval in said
        assert "\n" not in said
    for value in {"null", "0"} - {*wrong}:
        assert refusal(deepcopy(base[NEEDS.get(name, "")]), f"{name}={value}") is None


@pytest.mark.parametrize("name", NUMERIC)
def test_so_it_is_on_the_command_line_of_one_run(name):
    with pytest.raises(ConfigError) as refused:
        compose([*NEEDS.get(name, "").split(), f"{name}=nan"])
    assert str(refused.value) == f"{name}=nan: {NUMERIC[name]}"


@pytest.mark.parametrize("schema", LAUNCHERS, ids=lambda schema: schema.__name__)
def test_so_are_the_numbers_of_launchers(schema):
    for name, allowed in ranges(schema).items():
        for value in (-2, 10**6, *([] if allowed.interval.startswith("[0") else [0])):
            asked = OmegaConf.create({"hydra": {"launcher": OmegaConf.structured(schema(**{name: value}))}})
            with pytest.raises(ConfigError) as refused:
                check_numbers(asked)
            assert str(refused.value) == f"hydra.launcher.{name}={allowed.types[0](value)}: {allowed}"
    check_numbers(OmegaConf.create({"hydra": {"launcher": OmegaConf.structured(schema())}}))


def test_an_optimizer_of_ones_own_has_the_ranges_of_ours_and_finite_numbers():
    def asked(**settings: Any) -> dict[str, Any]:
        return {"optimizer": {"_target_": "torch.optim.RMSprop", **settings}}

    for settings, said in (
        ({"momentum": 1.5}, r"optimizer\.momentum=1\.5: must be a number in \[0, 1\)"),
        ({"alpha": float("inf")}, r"optimizer\.alpha=inf: must be finite"),
        ({"deep": {"er": [1, float("nan")]}}, r"optimizer\.deep\.er=nan: must be finite"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_ranges(Config, asked(**settings))
    check_ranges(Config, asked(momentum=0.5, eps=[None, 1e-3], betas="none", alpha=7.0))
    check_ranges(Config, {"model": {"_target_": "mine.Net", "depth": 0}})


def test_a_whole_number_of_blocks_or_a_share_of_them():
    allowed: Any = NUMERIC["trainer.limit_train_batches"]
    assert [value for value in (2, 1, 0.5, 1.0, 0, 0.0, 1.5, -1) if value in allowed] == [2, 1, 0.5, 1.0]
    assert str(allowed) == "must be a whole number in [1, 2147483647], or a share in (0, 1] of all, or null"


@pytest.mark.parametrize("node", [{}, ["a"], "text", {"name": "x"}, {"_target_": None}, {"_target_": 3}])
def test_a_file_of_ones_own_without_a_target_is_told_what_it_needs(root, node):
    cfg = compose([f"data.root={root}"])
    OmegaConf.set_struct(cfg, False)
    cfg.model = node
    with pytest.raises(ConfigError, match=r"^model=.*: its file in conf/model/ needs a _target_"):
        make_run(cfg)


@pytest.mark.parametrize(("name", "ours"), [("lr", "base_lr"), ("weight_decay", "weight_decay")])
def test_an_optimizer_has_no_rate_or_decay_beside_ours(root, name, ours):
    with pytest.raises(ConfigError, match=rf"^optimizer\.{name}=0\.1: leave it out, and set {ours}$"):
        make_run(compose([f"data.root={root}", f"+optimizer.{name}=0.1"]))


@pytest.mark.trains
@pytest.mark.parametrize(
    "words",
    [["machine.accelerator=foo"], ["schedule._target_=math.nope"], ["schedule._target_=math.sin"],
     ["+logger._target_=torch.nn.Identity"], ["optimizer._target_=torch.optim.LBFGS"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_what_no_run_can_have_is_told_before_one_is_touched(root, tmp_path, words):
    from smallbatch.training.train import train

    small = ["data=digits16", "model=resnet8", "epochs=1", "data.train_size=64", "data.test_size=40", "progress=false"]
    with pytest.raises(ConfigError) as refused:
        train(compose([*small, f"data.root={root}", f"store={tmp_path / 'runs'}", *words]), print)
    assert words[0].lstrip("+").partition(".")[0] in str(refused.value)
    assert [path.name for path in tmp_path.glob("runs/*") if path.name != ".refused"] == []


@pytest.mark.parametrize("word", ["store=", "data.root=", "wandb.project=", "machine.accelerator="])
def test_a_name_is_not_empty(word):
    with pytest.raises(ConfigError, match=f"^{word}: must not be empty$"):
        compose([word])


SAYS = {
    "~batch_size": "~batch_size: a setting cannot be taken away; give it another value, as key=value",
    "~machine.threads": "~machine.threads: a setting cannot be taken away; give it another value, as key=value",
    "+batch_size=8": "+batch_size: is a setting already; write batch_size=… without +",
    "++batch_size=0": f"batch_size=0: {NUMERIC['batch_size']}",
    "scale=[]": "scale=[]: is chosen by the name of a file, such as stop=none",
    "overwrite=maybe": "overwrite=maybe: choose false, true or changed",
    "machine=3": "machine=3: is chosen by the name of a file, such as stop=none",
    "stop.patience=3": "stop.patience: there is no stop; add stop=early_stopping",
}


@pytest.mark.parametrize("word", SAYS)
def test_what_hydra_says_at_length_is_one_line_with_what_to_write(word):
    with pytest.raises(ConfigError) as refused:
        compose([word])
    assert str(refused.value) == SAYS[word]


@pytest.mark.parametrize("word", ["batch_size=range(2,8,0)", "batch_size=range(8,2)", "batch_size=interval(1,2)"])
def test_an_axis_that_is_none_says_what_to_write(word):
    with pytest.raises(ConfigError, match=r"^batch_size=.*list the values$"):
        parse_words([word])


@pytest.mark.parametrize("word", ["seeds=0", "seeds=10001", "seeds=x", "seeds=3,5"])
def test_seeds_are_a_number_of_them(word):
    with pytest.raises(ConfigError, match=f"^{word}: is how many seeds"):
        parse_words([word])
    assert parse_words(["seeds=null", "seed=4"])[0] == {"seed": ["4"]}


def test_what_an_exception_says_is_a_line_that_helps():
    class Silent(Exception):
        def __str__(self) -> str:
            raise TypeError

    heading = "Error(s) in loading state_dict for Net:\n\tsize mismatch for a.weight\nmore"
    pydantic = "1 validation error for Settings\nproject\n  String should have at most 128 characters"
    assert one_line(RuntimeError(heading)) == "Error(s) in loading state_dict for Net: size mismatch for a.weight"
    assert one_line(ValueError(pydantic)).endswith("project String should have at most 128 characters")
    assert one_line(ValueError("\nfirst\nsecond")) == "first"
    assert one_line(KeyError("width")) == kind_and_line(KeyError("width")) == "KeyError: 'width'"
    assert one_line(Silent()) == kind_and_line(AssertionError()).replace("AssertionError", "Silent") == "Silent"


def test_a_value_that_is_known_late_is_checked_late(root):
    with pytest.raises(ConfigError, match=r"machine\.threads=0: must be a whole number in \[1, 1024\]"):
        expand([f"data.root={root}", "machine.threads=${seed}"])
