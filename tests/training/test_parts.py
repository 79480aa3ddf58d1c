"""The parts work in a plain `pl.Trainer` with the callbacks and loggers that people have."""

import csv
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from smallbatch import ImageData, SmallBatch
from smallbatch.compose import compose
from smallbatch.data import load_images
from smallbatch.data.blocks import TrainBlocks
from smallbatch.run import make_run
from train import train

pytestmark = [pytest.mark.trains, pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")]

WORDS = ["data=digits16", "model=resnet8", "batch_size=8", "data.train_size=64", "data.test_size=41", "epochs=3"]
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def parts(root):
    """Overrides → the run, its module and its data."""

    def make(*overrides: str, **groups) -> tuple:
        cfg = compose([*WORDS, f"data.root={root}", *overrides])
        for name, node in groups.items():
            cfg[name] = node
        run, images = make_run(cfg), load_images(cfg)
        return run, SmallBatch(run, *images.sizes), ImageData(run, images)

    return make


@pytest.fixture
def expected(root, tmp_path):
    """The rows that the command gives for a config."""

    def rows(*overrides: str) -> list[dict]:
        words = [*WORDS, f"data.root={root}", f"store={tmp_path}/runs", "progress=false", "machine.accelerator=cpu"]
        return computed(train(compose([*words, *overrides]), print)[0].rows)

    return rows


def computed(rows: list[dict]) -> list[dict]:
    return [{k: repr(v) for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def plain(**settings) -> pl.Trainer:
    return pl.Trainer(**QUIET | {"logger": False, "enable_checkpointing": False, "max_epochs": 3} | settings)


@pytest.mark.parametrize("norm", ["norm=none", "norm=batch"])
def test_a_plain_trainer_with_its_sanity_check_gives_the_rows_of_the_command(parts, expected, norm):
    words = [norm, "data.augment=true"]
    _, module, data = parts(*words)
    trainer = plain()
    trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    assert computed(module.rows) == expected(*words)
    assert trainer.global_step == 24


def test_callbacks_and_loggers_see_updates_and_the_numbers_of_each_epoch(parts, tmp_path):
    _, module, data = parts("epochs=4", "base_lr=1/4096")
    keep = ModelCheckpoint(tmp_path / "best", monitor="test_loss", save_top_k=1, filename="{step}")
    steps: dict[str, list[int]] = {}

    class Counts(pl.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            assert isinstance(optimizer, torch.optim.SGD)
            steps.setdefault("zero_grad", []).append(trainer.global_step)

        def on_before_backward(self, trainer, module, loss):
            steps.setdefault("before_backward", []).append(trainer.global_step)

        def on_after_backward(self, trainer, module):
            steps.setdefault("after_backward", []).append(trainer.global_step)

        def on_before_optimizer_step(self, trainer, module, optimizer):
            steps.setdefault("step", []).append(trainer.global_step)

    stop = EarlyStopping("train_loss", patience=3, check_on_train_epoch_end=True)
    logger = CSVLogger(tmp_path, name="csv")
    watched = [keep, Counts(), stop, LearningRateMonitor("epoch")]
    trainer = plain(max_epochs=4, logger=logger, callbacks=watched, enable_checkpointing=True)
    trainer.fit(module, data)
    assert steps == {n: list(range(32)) for n in ("zero_grad", "before_backward", "after_backward", "step")}
    losses = [row["test_loss"] for row in module.rows]
    best = min(range(4), key=losses.__getitem__)
    assert keep.best_model_path.endswith(f"step={8 * (best + 1)}.ckpt")
    assert stop.best_score.item() == pytest.approx(min(row["train_loss"] for row in module.rows))
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    for name in ("test_loss", "test_accuracy", "train_loss", "train_accuracy", "learning_rate"):
        values = [float(row[name]) for row in logged if row[name]]
        assert values == pytest.approx([row[name] for row in module.rows]), name
    assert len([row for row in logged if row["lr-SGD"]]) == 4


def test_a_checkpoint_is_all_that_loading_needs(parts, tmp_path):
    _, module, data = parts("norm=batch", "bn_batch_size=4")
    trainer = plain()
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    loaded = SmallBatch.load_from_checkpoint(tmp_path / "it.ckpt", weights_only=True)
    assert loaded.run == module.run
    (tested,) = trainer.test(loaded, data, verbose=False)
    last = module.rows[-1]
    assert tested == pytest.approx({k: last[k] for k in tested})
    assert {"test_loss", "test_accuracy", "test_accuracy_a", "test_accuracy_b"} == set(tested)
    (validated,) = trainer.validate(loaded, data, verbose=False)
    assert validated == tested
    labels = data.images.test.labels[data.images.test.index]
    logits = torch.cat(trainer.predict(loaded, data))
    assert logits.shape == (41, 10)
    assert (logits.argmax(1).numpy() == labels).mean() == pytest.approx(last["test_accuracy"])


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_plain_trainer_resumes(parts, tmp_path, precision):
    words = ["norm=batch", "data.augment=true", f"precision={precision}"]
    _, whole, data = parts(*words)
    plain(precision=precision).fit(whole, data)
    _, half, data = parts(*words)
    first = plain(precision=precision, max_epochs=1)
    first.fit(half, data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    _, rest, data = parts(*words)
    plain(precision=precision).fit(rest, data, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert computed(rest.rows) == computed(whole.rows)


def test_max_steps_counts_updates(parts):
    _, module, data = parts()
    trainer = plain(max_steps=11, max_epochs=-1)
    trainer.fit(module, data)
    assert (trainer.global_step, module.updates) == (11, 11)
    assert [row["updates"] for row in module.rows] == [8, 11]
    assert [row["images"] for row in module.rows] == [64, 88]


def test_epochs_without_a_test_have_none_and_do_not_count_as_diverged(parts):
    _, module, data = parts("epochs=4")
    plain(max_epochs=4, check_val_every_n_epoch=2).fit(module, data)
    assert [math.isnan(row["test_accuracy"]) for row in module.rows] == [True, False, True, False]
    assert not module.diverged
    _, module, data = parts()
    plain(limit_val_batches=0).fit(module, data)
    assert len(module.rows) == 3
    assert not module.diverged


def test_a_part_of_an_epoch_is_counted_as_what_it_is(parts, monkeypatch):
    monkeypatch.setattr("smallbatch.data.blocks.BLOCK", 16)
    _, module, data = parts("epochs=1", "base_lr=1/4096")
    plain(max_epochs=1, limit_train_batches=1).fit(module, data)
    (row,) = module.rows
    assert (row["updates"], row["images"]) == (2, 16)
    assert 0 < row["train_loss"] < 10


def test_a_loader_of_ones_own_may_end_in_a_smaller_batch(parts):
    """Each image pulls by η̃, those of the last batch as well."""
    _, module, _ = parts("weight_decay=0", "precision=64-true", "schedule=constant", "base_lr=2**-12", "epochs=1")
    module = module.double()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(21, 1, 16, 16, generator=generator).double()
    labels = torch.randint(0, 10, (21,), generator=generator)
    theta = {k: v.detach().clone().requires_grad_() for k, v in module.network.named_parameters()}
    for x, y in zip(images.split(8), labels.split(8), strict=True):
        loss = F.cross_entropy(torch.func.functional_call(module.network, theta, x), y, reduction="sum")
        gradients = torch.autograd.grad(loss, list(theta.values()))
        theta = {
            k: (v - 2.0**-12 * g).detach().requires_grad_() for (k, v), g in zip(theta.items(), gradients, strict=True)
        }
    loader = DataLoader(TensorDataset(images, labels), batch_size=21)
    plain(max_epochs=1, precision="64-true").fit(module, loader, DataLoader(TensorDataset(images, labels), 16))
    for name, trained in module.network.named_parameters():
        torch.testing.assert_close(trained.detach(), theta[name].detach(), rtol=1e-12, atol=1e-12)
    (row,) = module.rows
    assert (row["updates"], row["images"]) == (3, 21)
    assert not [name for name in row if name.endswith(("_a", "_b"))]
    logits = module.network.eval()(images)
    assert row["test_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-12)  # not only in float32
    assert row["test_accuracy"] == (logits.argmax(1) == labels).double().mean().item()


def test_every_generator_starts_an_epoch_from_the_seed(parts):
    drawn = []

    class Draws(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            pass

        def on_train_batch_start(self, *_):
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))

    for _ in range(2):
        _, module, data = parts("epochs=2")
        plain(max_epochs=2, callbacks=[Draws()]).fit(module, data)
        random.random(), np.random.rand(), torch.rand(1)
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]


class Squared(torch.nn.Module):
    """A loss that knows no `reduction`: the Brier score."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, logits, labels):
        return self.scale * ((logits.softmax(1) - F.one_hot(labels, 10)) ** 2).sum(1).mean()


def squared(logits, labels, scale=1.0):
    return Squared(scale)(logits, labels)


@pytest.mark.parametrize("name", ["Squared", "squared"])
def test_a_loss_of_ones_own_is_part_of_the_run_and_is_what_is_trained_and_tested(parts, name):
    run, module, data = parts(loss={"_target_": f"{__name__}.{name}", "scale": 0.5})
    plainly, *_ = parts()
    assert run.key != plainly.key
    assert replace(run, loss=plainly.loss).key == plainly.key
    plain().fit(module, data)
    x, y, _ = (torch.cat(part) for part in zip(*data.val_dataloader(), strict=True))
    loss = Squared(0.5)(module.eval()(x), y).item()
    assert module.rows[-1]["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert 0 < module.rows[-1]["train_loss"] < 1


def test_label_smoothing_is_a_setting_of_the_default_loss(parts):
    run, module, _ = parts("loss.label_smoothing=0.1")
    assert run.key != parts()[0].key
    assert module.loss.label_smoothing == 0.1


def halved(schedule, update, total):
    return 0.5 if update >= total / 2 else 1.0


def test_a_schedule_of_ones_own(parts):
    run, module, data = parts(f"schedule._target_={__name__}.halved", "base_lr=2**-12", "epochs=2")
    plain(max_epochs=2).fit(module, data)
    assert [row["learning_rate"] for row in module.rows] == [2.0**-9, 2.0**-10]
    assert run.key != parts("base_lr=2**-12", "epochs=2")[0].key


def test_the_blocks_of_an_epoch_are_drawn_when_the_first_is_asked_for(parts):
    _, _, data = parts()
    blocks = data.train_dataloader()
    iterator = iter(blocks)
    blocks.set_epoch(5)
    later = TrainBlocks(data.images, 8, False, 0, 5)
    assert torch.equal(next(iterator)[1], next(iter(later))[1])
