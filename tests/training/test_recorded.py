"""What every run records beside its score: two halves of the test set, and precise batch-norm statistics."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smallbatch import store
from smallbatch.compose import compose
from smallbatch.data import load_images
from smallbatch.data.arrays import Images, Split
from smallbatch.data.blocks import halves, statistics_batches
from smallbatch.models.norm import GhostBatchNorm, precise_statistics
from smallbatch.training import module
from train import train

pytestmark = pytest.mark.trains

SMALL = ["data.train_size=64", "data.test_size=41", "epochs=8", "batch_size=8", "base_lr=1/4096", "progress=false"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def trained(root, folder, *words) -> store.Record:
    cfg = compose([*SMALL, f"data.root={root}", f"store={folder}", *words])
    return train(cfg, print)[0]


def test_the_halves_are_stratified_and_take_turns_in_image_order():
    labels = np.array([0, 1, 0, 0, 2, 1, 0, 1, 2, 0])
    first = halves(Split(np.zeros((10, 1, 1, 1), np.uint8), labels, np.arange(10)))
    assert [int((labels[first] == c).sum()) for c in range(3)] == [3, 1, 1]
    assert first.tolist() == [True, False, False, True, True, True, False, False, False, True]


def test_the_halves_of_the_test_set_weigh_up_to_the_whole(root, tmp_path):
    rows = trained(root, tmp_path).rows
    assert "test_accuracy_precise" not in rows[0]  # without batch norm there is nothing to make precise
    for row in rows:
        whole = (21 * row["test_accuracy_a"] + 20 * row["test_accuracy_b"]) / 41
        assert row["test_accuracy"] == pytest.approx(whole, abs=1e-12)
    assert any(row["test_accuracy_a"] != row["test_accuracy_b"] for row in rows)


def test_a_half_is_what_the_network_gets_right_of_it(root, tmp_path, monkeypatch):
    last = {}

    class Kept(module.SmallBatch):
        def on_train_end(self):
            last["network"] = self.network

    monkeypatch.setattr("smallbatch.training.module.SmallBatch", Kept)
    row = trained(root, tmp_path, "epochs=1").rows[-1]
    cfg = compose([*SMALL, f"data.root={root}"])
    images = load_images(cfg)
    pixels = images.test.images[images.test.index].astype(float)
    x = torch.from_numpy((pixels - images.mean) / images.std).permute(0, 3, 1, 2).float()
    labels = images.test.labels[images.test.index]
    right = last["network"].eval()(x).argmax(1).numpy() == labels
    first = halves(images.test)
    assert row["test_accuracy_a"] == right[first].mean()
    assert row["test_accuracy_b"] == right[~first].mean()


@pytest.mark.parametrize("norm", ["model=alexnet", "model=resnet8 data=digits16"])
def test_precise_statistics_are_there_in_scored_epochs_and_change_nothing_else(root, tmp_path, monkeypatch, norm):
    words = ["norm=batch", "bn_batch_size=2", "batch_size=8", "optimizer=momentum", "data.augment=true", *norm.split()]
    rows = trained(root, tmp_path / "with", *words).rows
    monkeypatch.setattr(module.SmallBatch, "_precise_hits", lambda self, data: 0)
    plain = trained(root, tmp_path / "without", *words).rows
    assert [math.isnan(row["test_accuracy_precise"]) for row in rows] == [True] * 6 + [False] * 2
    assert all(row["test_accuracy_precise"] > 0 for row in rows[-2:])
    odd = ("train_seconds", "eval_seconds", "test_accuracy_precise")
    assert [{k: v for k, v in row.items() if k not in odd} for row in rows] == [
        {k: v for k, v in row.items() if k not in odd} for row in plain
    ]


def test_precise_statistics_are_the_means_over_batches_each_normalised_by_its_own():
    torch.manual_seed(0)
    first, second = (GhostBatchNorm(3, 2).double() for _ in range(2))
    network = torch.nn.Sequential(first, torch.nn.Dropout(0.5), torch.nn.ReLU(), second)
    network.train()
    network(torch.randn(8, 3, 2, 2).double())
    before = {k: v.clone() if torch.is_tensor(v) else v for k, v in network.state_dict().items()}
    *batches, x = [torch.randn(6, 3, 2, 2).double() for _ in range(4)]
    drawn = torch.get_rng_state()
    with precise_statistics(network, batches):
        hidden = []
        for x in batches:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            hidden.append(((x - mean) / (var + 1e-5).sqrt()).relu())
        mean = torch.stack([h.mean((0, 2, 3)) for h in hidden]).mean(0)
        var = torch.stack([h.var((0, 2, 3), unbiased=True) for h in hidden]).mean(0)
        expected = (x - mean.view(1, 3, 1, 1)) / (var.view(1, 3, 1, 1) + 1e-5).sqrt()
        torch.testing.assert_close(second(x), expected, rtol=1e-12, atol=1e-12)
    after = network.state_dict()
    assert all(torch.equal(v, after[k]) if torch.is_tensor(v) else v == after[k] for k, v in before.items())
    assert all(layer.training for layer in network.modules())
    assert torch.equal(drawn, torch.get_rng_state())


def test_the_images_for_precise_statistics_are_stratified_and_the_same_for_every_run():
    labels = np.arange(3000) % 10
    pixels = np.arange(3000, dtype=np.uint16).view(np.uint8).reshape(3000, 1, 1, 2)
    split = Split(pixels, labels, np.arange(3000))
    images = Images(split, split, 10, np.zeros(2), np.ones(2))
    batches = [batch.numpy().reshape(-1, 2) for batch in statistics_batches(images)]
    assert [len(batch) for batch in batches] == [128] * 10
    rows = [(batch[:, 0] + 256 * batch[:, 1]).astype(int) for batch in batches]
    chosen = np.concatenate(rows)
    assert len(set(chosen)) == 1280
    assert np.bincount(labels[chosen]).tolist() == [128] * 10
    assert min(len(set(labels[some])) for some in rows) == 10
    again = np.concatenate([batch.numpy().reshape(-1, 2) for batch in statistics_batches(replace(images))])
    assert np.array_equal(again, np.concatenate(batches))


def test_a_diverged_epoch_counts_as_chance_in_every_column(root, tmp_path):
    row = trained(root, tmp_path, "base_lr=1e6", "norm=batch", "epochs=1").rows[-1]
    assert {v for k, v in row.items() if k.startswith("test_accuracy")} == {0.1}


def test_rows_read_back_with_and_without_the_new_columns(root, tmp_path):
    record = trained(root, tmp_path, "norm=batch")
    path = store.folder(Path(tmp_path), record.run)
    assert repr(store.read(path)) == repr(record)
    old = [{k: v for k, v in row.items() if not k.startswith("test_accuracy_")} for row in record.rows]
    store.write_result(path, record.run, old, record.result)
    assert store.read(path).rows == old
    (again,) = store.parse_export(store.export([record]))
    assert repr(again) == repr(record)
