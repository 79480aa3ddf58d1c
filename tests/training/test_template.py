"""What Lightning's users expect of a run: trials, callbacks, loggers, early stopping, weights, noticed changes."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

import smallbatch
from smallbatch import store
from smallbatch.compose import compose
from smallbatch.data import load_images
from smallbatch.errors import ConfigError
from smallbatch.run import make_run
from smallbatch.training.fit import trainer_settings
from smallbatch.training.train import train
from smallbatch.training.trial import trial

pytestmark = pytest.mark.trains

WORDS = ["data=digits16", "model=resnet8", "batch_size=8", "data.train_size=64", "data.test_size=40", "epochs=3"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def now(root, tmp_path):
    """Overrides → the record, whether it was there, and what was said; in a store of the test's own."""

    def run(*overrides: str, **groups) -> tuple:
        quiet = ["progress=false", "machine.accelerator=cpu", f"data.root={root}", f"store={tmp_path / 'runs'}"]
        cfg = compose([*WORDS, *quiet, *overrides])
        for name, node in groups.items():
            cfg[name] = node
        said: list[str] = []
        return *train(cfg, said.append), said

    return run


def test_a_trial_leaves_nothing_and_asks_nothing_of_what_is_there(now, tmp_path):
    now("epochs=1")
    before = sorted(tmp_path.rglob("*"))
    for word in ("trainer.fast_dev_run=true", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"):
        record, there, _ = now("epochs=1", word, "callbacks=model_checkpoint", "logger=csv")
        assert not there
        assert len(record.rows) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_callbacks_and_loggers_change_no_number_and_write_below_the_run(now, tmp_path):
    plain, *_ = now()
    seen = ["callbacks=[lr_monitor,model_checkpoint]", "logger=csv"]
    _, there, said = now(*seen)
    assert there
    assert said == ["this run was trained before, so callbacks and logger see nothing; overwrite=true trains it again"]
    watched, there, _ = now(*seen, "overwrite=true")
    assert not there
    assert plain.run.key == watched.run.key
    for name in ("train_loss", "test_loss", "test_accuracy"):
        assert [row[name] for row in plain.rows] == [row[name] for row in watched.rows]
    below = tmp_path / "runs" / plain.run.key / store.LIGHTNING
    with (below / "csv" / "version_0" / "metrics.csv").open() as file:
        logged = [float(row["test_accuracy"]) for row in csv.DictReader(file) if row["test_accuracy"]]
    assert logged == pytest.approx([row["test_accuracy"] for row in watched.rows])
    assert list(below.rglob("best.ckpt"))
    assert not [path for path in tmp_path.iterdir() if path.name != "runs"]


@pytest.mark.parametrize(
    ("words", "groups", "message"),
    [
        (["trainer.max_epochs=3"], {}, "trainer.max_epochs: use epochs"),
        (["trainer.num_nodes=2"], {}, "trainer.num_nodes: use trainer.devices"),
        ([], {"callbacks": {"mine": {"_target_": "nowhere.Mine"}}}, "callbacks.mine: "),
        ([], {"callbacks": {"mine": {"_target_": "collections.OrderedDict"}}}, "callbacks.mine: is no callback"),
        ([], {"logger": {"_target_": "nowhere.Mine"}}, "logger._target_=nowhere.Mine: cannot be imported"),
        (["stop=early_stopping", "stop.monitor=loss"], {}, "stop.monitor=loss"),
        (["overwrite=perhaps"], {}, "overwrite=perhaps: choose false, true or changed"),
        (["callbacks=[model_checkpoint,lr_monitor]"], {}, "callbacks.lr_monitor: writes to a logger"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_written(now, tmp_path, words, groups, message):
    with pytest.raises(ConfigError) as refused:
        now(*words, **groups)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    for file in (tmp_path / "runs").rglob("*.txt"):  # what was raised is kept, and nothing else is
        assert str(file) in str(refused.value)
        assert file.read_text().startswith("Traceback")
        assert "own_network.py" in file.read_text() or "torch" in file.read_text()


def test_early_stopping_is_part_of_the_run_and_a_callback_that_stops_is_not(now):
    words = ["stop=early_stopping", "stop.monitor=train_loss", "stop.patience=1", "stop.min_delta=100", "epochs=4"]
    record, *_ = now(*words)
    assert record.result["status"] == "finished"
    assert len(record.rows) == 2  # the second is no better by so much
    assert record.result["score"] == record.rows[-1]["test_accuracy"]
    assert now("epochs=4")[0].run.key != record.run.key
    early = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "train_loss", "min_delta": 100}
    failed, *_ = now("epochs=4", "overwrite=true", callbacks={"mine": early | {"patience": 1}})
    assert failed.result["status"] == "failed"
    assert "a callback ended the run after epoch 2 of 4" in failed.result["error"]
    assert "stop=early_stopping" in failed.result["error"]


def test_a_run_that_is_trained_again_and_fails_leaves_what_was_there(now, tmp_path, root):
    words = ["epochs=3", "save_weights=true", "callbacks=model_checkpoint"]
    first, *_ = now(*words)
    folder = tmp_path / "runs" / first.run.key
    (folder / "wandb.json").write_text("{}")
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    early = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "train_loss", "min_delta": 100}
    failed, _, said = now(*words, "overwrite=true", callbacks={"mine": early | {"patience": 1}})
    assert failed.result["status"] == "failed"
    assert said == [f"{folder}: the run that was there before is back, since this one failed"]
    traceback, note = folder / "traceback.txt", folder / "wandb.json"  # W&B has the failed run
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path != traceback} == {
        path: text for path, text in files.items() if path != note
    }
    assert "a callback ended the run" in traceback.read_text()
    assert now(*words)[1]

    again, there, _ = now(*words, "overwrite=true", "logger=csv")
    assert not there
    assert not list(folder.glob(".*"))
    assert (folder / store.LIGHTNING / "csv").is_dir()
    assert [row["train_loss"] for row in again.rows] == [row["train_loss"] for row in first.rows]


def test_what_is_put_aside_lasts_until_there_is_a_result(now, tmp_path):
    first, *_ = now()
    folder = tmp_path / "runs" / first.run.key
    store.begin(folder, first.run, afresh=True)  # killed here, once and again
    store.begin(folder, first.run, afresh=True)
    assert store.read(folder) is None
    assert (folder / store.BEFORE / "result.json").exists()
    assert not now()[1]
    assert not (folder / store.BEFORE).exists()


def test_the_network_is_kept_where_asked_for_and_else_one_line_says_how(now, tmp_path):
    record, *_ = now("norm=batch", "save_weights=true")
    kept = smallbatch.load(record.run.key, tmp_path / "runs")
    assert kept.record == record or repr(kept.record) == repr(record)
    images = load_images(compose([*WORDS, f"data.root={tmp_path}"]))
    pixels = images.test.images[images.test.index].astype(float)
    x = torch.from_numpy((pixels - images.mean) / images.std).permute(0, 3, 1, 2).float()
    right = kept.network(x).argmax(1).numpy() == images.test.labels[images.test.index]
    assert right.mean() == record.rows[-1]["test_accuracy"]
    torch.testing.assert_close(kept.logits(images.test.images[images.test.index]), kept.network(x))
    other, *_ = now("seed=1")
    with pytest.raises(ConfigError, match="its weights were not kept; train it again with save_weights=true"):
        smallbatch.load(other.run.key, tmp_path / "runs")
    with pytest.raises(ConfigError, match="no ended run"):
        smallbatch.load("0" * 16, tmp_path / "runs")
    file = store.folder(tmp_path / "runs", record.run) / store.WEIGHTS
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    with pytest.raises(store.DamagedRun, match="does not match its checksum"):
        smallbatch.load(record.run.key, tmp_path / "runs")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module of the user's own, with the given body of a network's constructor function."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body: str) -> dict:
        (tmp_path / "own_network.py").write_text(f"from torch import nn\n\ndef net(classes):\n    {body}\n")
        sys.modules.pop("own_network", None)
        return {"_target_": "own_network.net", "name": "own"}

    return write


LAZY = "return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.{}(), nn.Linear(8, classes))"


def test_changed_code_is_said_and_trained_again_only_when_asked(now, own, tmp_path):
    first, *_ = now(model=own(LAZY.format("ReLU")))
    assert first.result["status"] == "finished"
    assert list(first.result["code"]) == ["own_network.net"]
    assert now(model=own(LAZY.format("ReLU")))[1:] == (True, [])
    record, there, said = now(model=own(LAZY.format("Tanh")))
    assert there
    assert record.rows == first.rows
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / 'own_network.py'} has changed since own digits16 m=8")
    again, there, _ = now("overwrite=changed", "save_weights=true", model=own(LAZY.format("Tanh")))
    assert not there
    own(LAZY.format("ReLU"))
    with pytest.warns(UserWarning, match="has changed since own digits16 m=8"):
        smallbatch.load(first.run.key, tmp_path / "runs")
    own(LAZY.format("Tanh"))
    assert again.rows[-1]["train_loss"] != first.rows[-1]["train_loss"]
    assert now("overwrite=changed", model=own(LAZY.format("Tanh")))[1:] == (True, [])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise OSError('no such weights')", "cannot take images of 16×16: no such weights"),
        ("return nn.Linear(3, classes)", "cannot take images of 16×16: mat1 and mat2 shapes cannot be multiplied"),
        ("return nn.LSTM(16, classes)", "cannot take images of 16×16: LSTM"),
        ("return nn.Flatten()", "gives (2, 256) instead of logits of shape (2, 10)"),
        (
            "return type('Two', (nn.Module,), {'forward': lambda self, x: (x, None)})()",
            "gives a tuple instead of logits",
        ),
    ],
)
def test_whatever_a_network_does_wrong_is_one_line_that_names_it(now, own, tmp_path, body, message):
    with pytest.raises(ConfigError) as refused:
        now(model=own(body))
    assert "own_network.net " in str(refused.value)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    for file in (tmp_path / "runs").rglob("*.txt"):  # what was raised is kept, and nothing else is
        assert str(file) in str(refused.value)
        assert file.read_text().startswith("Traceback")
        assert "own_network.py" in file.read_text() or "torch" in file.read_text()


@pytest.mark.parametrize(
    ("group", "node", "message"),
    [
        ("optimizer", {"_target_": "torch.optim.LBFGS"}, "optimizer: torch.optim.LBFGS: .*'closure'"),
        ("optimizer", {"_target_": "torch.optim.SGD", "foreach": True}, "optimizer: torch.optim.SGD: .*fused.*foreach"),
        ("loss", {"_target_": "torch.nn.MSELoss"}, "loss: torch.nn.MSELoss: "),
        ("loss", {"_target_": "torch.nn.CrossEntropyLoss", "smoothing": 1}, "loss: .*unexpected keyword"),
        ("loss", {"_target_": "torch.nn.functional.mse_loss", "smoothing": 1}, "loss: .*unexpected keyword"),
    ],
)
def test_so_is_what_an_optimizer_or_a_loss_does_wrong(root, group, node, message):
    cfg = compose([*WORDS, f"data.root={root}", "weight_decay=0"])
    cfg[group] = node
    with pytest.raises(ConfigError, match=message):
        trial(make_run(cfg), load_images(cfg))


def test_the_functions_of_the_package_do_what_the_commands_do(root, tmp_path):
    folder = str(tmp_path / "runs")
    settings = {"data": "digits16", "model": "resnet8", "epochs": 1, "data.train_size": 64, "data.test_size": 40}
    settings |= {"data.root": str(root), "store": folder}
    frame = smallbatch.grid(batch_size=[8, 16], processes=2, **settings)
    assert frame["batch_size"].tolist() == [8, 16]
    assert smallbatch.runs(folder, batch_size=16)["key"].tolist() == frame["key"].tolist()[1:]
    record = smallbatch.train(batch_size=8, **settings)
    assert json.loads((Path(folder) / record.run.key / "result.json").read_text())["score"] == record.result["score"]
    with pytest.raises(ConfigError, match="fig01 has no runs at scale smoke"):
        smallbatch.figure("fig01", scale="smoke", store=folder)
    with pytest.raises(ConfigError, match="did you mean batch_size"):
        smallbatch.train(batchsize=8)


class Writer(CSVLogger):
    """Takes the rest for something else, as TensorBoard's does."""

    def __init__(self, save_dir: str, **rest: object) -> None:
        super().__init__(save_dir, name="writer")
        self.rest = rest


def test_a_logger_is_given_what_it_names_and_no_more(root):
    cfg = compose([*WORDS, f"data.root={root}"])
    cfg.logger = {"_target_": f"{__name__}.Writer"}
    logger = trainer_settings(cfg, make_run(cfg), Path("folder"))["logger"]
    assert logger.root_dir == "folder/writer"
    assert logger.rest == {}
