"""One grammar: a word key=value is a setting in every command, and choosing by a result has its own option."""

import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import figures
import plan
import publish
import report
import runs
from smallbatch import cli, store
from smallbatch.api import _words
from smallbatch.compose import parse_words
from smallbatch.config import NormKind
from smallbatch.errors import ConfigError
from smallbatch.grids.expand import expand
from smallbatch.quoting import PATHS, as_text, from_yaml, of_point, point_word, quoted, whole_paths
from smallbatch.training.speed import Rate

GRID = ["figure=fig01", "scale=smoke", "batch_size=2,8", "base_lr=2**-9,2**-8"]
COMMANDS = {"figures": (figures, []), "plan": (plan, []), "publish": (publish, []), "report": (report, []),
            "list": (runs, ["list"]), "export": (runs, ["export", "file.jsonl"])}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four runs of figure 1 with scores 0.5 to 0.8, and one of no figure."""
    path = tmp_path_factory.mktemp("runs")
    points = [*expand(GRID).points, *expand(["batch_size=4", "base_lr=2**-9", "epochs=3", "data.test_size=50"]).points]
    for i, point in enumerate(points):
        row = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy", "updates", "epoch"), 1)
        result = {"status": "finished", "score": 0.5 + i / 10, "chance": 0.1, "seconds": 3.0}
        result |= {"train_images": point.images.train_size, "test_images": point.images.test_size}
        place = store.folder(path, point.run)
        place.mkdir()
        store.write_result(place, point.run, [row], result)
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        status: object = 0
        try:
            module.main()
        except SystemExit as stop:
            status = stop.code or 0
        return status, capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_store_and_says_in_one_line_that_there_is_nothing(name, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, first = COMMANDS[name]
    if name == "plan":
        monkeypatch.setattr("smallbatch.grids.price.measure", lambda run, shape, classes: Rate(1e-3, 1e-4))
        assert command(plan, *GRID, f"store={tmp_path / 'none'}", "batch_size=2,8")[0] == 0
        return
    status, _ = command(module, *first, f"store={tmp_path / 'none'}", "wandb.mode=offline")
    assert "none" in str(status)
    assert "\n" not in str(status)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_what_is_no_setting(name, command, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(publish, "settled", lambda place, say: place)
    monkeypatch.setattr(report, "login", lambda: (False, "http://here"))
    module, first = COMMANDS[name]
    figure = ["figure=fig01", "scale=smoke"] if name in ("plan", "report") else []
    status, _ = command(module, *first, *figure, f"store={folder}", "batchsize=2")
    assert "batchsize" in str(status)
    assert "did you mean batch_size?" in str(status)
    assert "\n" not in str(status)


def listed(command, folder, *words):
    status, output = command(runs, "list", f"store={folder}", *words)
    return output.count("finished") if status == 0 else status


def test_words_are_settings_that_runs_have(command, folder):
    assert listed(command, folder) == 5
    assert listed(command, folder, "model=alexnet", "batch_size=2,8") == 4
    assert listed(command, folder, "base_lr=1/512", "data.augment=false", "data.test_size=null") == 2
    assert listed(command, folder, "machine.threads=3", "progress=false") == 5  # no part of a run


def test_a_word_that_chooses_nothing_is_refused(command, folder):
    assert listed(command, folder, f"++store={folder}") == 5
    assert listed(command, folder, "schedule.drops=[0.5,0.75]") == 5
    for word in ("+new=3", "~model"):
        assert listed(command, folder, word) == f"error: {word}: runs are chosen by key=value"
    assert "write store=… without +" in str(listed(command, folder, "+store=x"))


def test_words_that_name_figures_mean_the_figures_runs(command, folder):
    assert listed(command, folder, "figure=fig01", "scale=smoke") == 4
    assert listed(command, folder, "figure=fig01", "scale=smoke", "batch_size=8") == 2


def test_where_chooses_by_any_column(command, folder):
    assert listed(command, folder, "--where", "score > 0.65") == 3
    assert listed(command, folder, "--where", "`data.test_size` == 50") == 1
    assert "a result, no setting; choose by --where" in str(listed(command, folder, "score=0.5"))


@pytest.mark.parametrize("query", ["score >", "nothing > 1", "score", "@sys"])
def test_a_query_that_cannot_be_is_one_line(command, folder, query):
    status = str(listed(command, folder, "--where", query))
    assert status.startswith(f"error: --where {query!r}: ")
    assert "\n" not in status


def test_words_are_sorted_into_runs_and_the_rest():
    words, cfg = cli.sort(
        ["batch_size=2", "store=x", "wandb.project=mine", "hydra/launcher=local", "machine.threads=7"], None
    )
    assert words == ["batch_size=2"]
    assert (cfg.store, cfg.wandb.project, cfg.machine.threads) == ("x", "mine", 7)
    with pytest.raises(ConfigError, match=r"wandb.projekt.*did you mean wandb.project\?"):
        cli.sort(["wandb.projekt=mine"], None)


ODD = [
    "a b",
    "a=b",
    "a,b",
    "run(1)",
    "it's",
    'say "x"',
    "a&b;c",
    "é日本",
    "[x]",
    "{y}",
    "#!^",
    "null",
    "3",
    "~x",
    "|<>",
]
ODD += ["'q'", "x'"]


def read(word: str):
    """What Hydra makes of a word's value."""
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize("name", [*ODD, "a\\b", "a\\", "a\\'b", "\\\\"])
def test_any_text_can_be_quoted(name):
    assert read(f"store={quoted(name)}") == name
    (axis,) = parse_words([f"store={quoted(name)}"])[0]["store"]
    assert read(f"store={axis}") == name


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("name", ODD)
def test_the_name_of_a_file_that_is_there_is_a_path_as_it_is(name, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    (word,) = whole_paths([f"{key}={name}"])
    assert read(word) == name
    assert whole_paths([word]) == [word]


def test_a_path_below_the_root_counts_as_there_and_a_list_of_paths_stays_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = f"data.root={tmp_path}/root"
    (tmp_path / "root").mkdir()
    assert whole_paths([root, "data.path=a,b"]) == [root, "data.path=a,b"]
    for name in ("a,b", "x(1)", "y=2"):
        (tmp_path / "root" / name).touch()
    assert whole_paths([root, "data.path=a,b"]) == [root, "data.path='a,b'"]
    assert whole_paths([root, "data.path=x(1),y=2"]) == [root, "data.path='x(1)','y=2'"]
    assert whole_paths(["data.path=absent(1)"]) == ["data.path='absent(1)'"]  # so that it is said to be absent
    untouched = [
        "data.path=plain.npz",
        "data.path='q,r'",
        "batch_size=2,4",
        "base_lr=2**-9",
        "-m",
        "data.path=",
        "data.path",
    ]
    assert whole_paths(untouched) == untouched


@pytest.mark.parametrize("value", [*ODD, "alexnet", "2**-9", "1/512", "${oc.env:E,1}", "8", "null", "a b", [0.5, "a,b"],
    [[1], []], {"k": ["1", 1e-5, None, True]}, 1e-17, -3])  # fmt: skip
def test_a_value_of_a_yaml_file_reaches_the_run_as_it_is(value):
    assert read(f"wandb.group={from_yaml(value)}") == value
    if value in ("alexnet", "2**-9", "1/512"):
        assert from_yaml(value) == value


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@settings(max_examples=50)
@given(
    st.recursive(
        VALUES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    )
)
def test_a_point_reaches_its_worker_as_it_is(value):
    plain = {"grid_point": "0", "callbacks": {"k": escaped(value)}}
    told = of_point(OmegaConf.create({"grid_point": read(point_word(plain))}))
    assert OmegaConf.to_container(told.callbacks, resolve=True) == {"k": value}
    assert (told.grid_point, type(told.norm.kind)) == ("0", NormKind)


def escaped(value):
    if isinstance(value, list):
        return [escaped(one) for one in value]
    if isinstance(value, dict):
        return {name: escaped(one) for name, one in value.items()}
    return as_text(value) if isinstance(value, str) else value


def test_python_gives_paths_as_they_are(tmp_path):
    assert _words({"data.path": ["a,b", tmp_path / "c=d"], "store": "run(1)", "batch_size": "2,4"}) == [
        f"data.path='a,b','{tmp_path}/c=d'", "store='run(1)'", "batch_size=2,4"
    ]  # fmt: skip
