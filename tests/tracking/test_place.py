"""Where runs go: the config, then the environment, both checked before training."""

import os

import pytest
from omegaconf import OmegaConf

from smallbatch.compose import compose
from smallbatch.errors import ConfigError
from smallbatch.grids.expand import Grid
from smallbatch.grids.sweep import for_points
from smallbatch.tracking import place
from smallbatch.tracking.place import Place, checked


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")


def of(*words: str) -> tuple:
    found = Place.of(compose(["logger=wandb", *words]))
    return found.mode, found.project, found.entity


def test_the_config_comes_before_the_environment(monkeypatch):
    assert of() == (None, "smallbatch", None)
    for name, value in {"MODE": "offline", "PROJECT": "theirs", "ENTITY": "us"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert of() == ("offline", "theirs", "us")
    words = ("wandb.mode=disabled", "wandb.project=mine", "wandb.entity=me")
    assert of(*words) == ("disabled", "mine", "me")


WORDS = {"run": "online", "shared": "online", "dryrun": "offline", "": None}


@pytest.mark.parametrize(
    ("word", "mode"), [*WORDS.items(), *zip(*[("online", "offline", "disabled")] * 2, strict=True)]
)
def test_wandb_s_words_for_a_mode_are_understood(word, mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", word)
    assert of()[0] == mode


def test_a_grid_takes_dryrun_and_tells_its_points(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    monkeypatch.setenv("WANDB_ENTITY", "us")
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    told = OmegaConf.create(for_points(compose(["logger=wandb"]), Grid([], [], []), ["seed=1,2"]))
    assert (told.mode, told.entity, told.project, told.group) == ("offline", "us", "smallbatch", "seed=1,2")
    sweep, offline = capsys.readouterr().err.splitlines()
    assert sweep == "W&B: a run's id is its key, whatever WANDB_SWEEP_ID says, and it is no part of a W&B sweep"
    assert offline.startswith("W&B: offline; upload later with `wandb sync outputs/wandb/offline-run-*`")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("WANDB_MODE", "onlin", "WANDB_MODE=onlin: choose online, offline, disabled, dryrun, run, shared"),
        ("WANDB_BASE_URL", "nonsense", "WANDB_BASE_URL: Input should be a valid URL"),
        ("WANDB_BASE_URL", "https://wandb.ai", "WANDB_BASE_URL: Value error, https://wandb.ai is not a valid server"),
        ("WANDB_PROJECT", "a/b", "WANDB_PROJECT: Invalid project name 'a/b'"),
        ("WANDB_API_KEY", "secret ", "WANDB_API_KEY: API key cannot start or end with whitespace"),
    ],
)
def test_what_wandb_does_not_take_is_one_line_that_names_the_variable(name, value, told, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        checked(Place.of(compose(["logger=wandb"])), print)
    assert str(caught.value).startswith(told)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_setting_of_ours_is_named_as_such():
    with pytest.raises(ConfigError, match=r"^wandb.project: Invalid project name 'a/b'"):
        checked(Place.of(compose(["wandb.project=a/b"])), print)


def test_wandb_sees_the_server_and_the_login_of_the_environment_and_nothing_else(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "garbage")
    kept = {name: value for name, value in place.environment().items() if name.startswith("WANDB_")}
    assert kept == {"WANDB_BASE_URL": "http://127.0.0.1:1", "WANDB_API_KEY": "k"} | place.QUIET
    before = dict(os.environ)
    with place.library():
        assert "WANDB_INIT_TIMEOUT" not in os.environ
        assert os.environ["WANDB_API_KEY"] == "k"
    assert dict(os.environ) == before
