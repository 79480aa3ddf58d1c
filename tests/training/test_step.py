"""The update is the paper's: θ ← θ − η̃ Σ ∇L_i, and the learning rate follows the schedule."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from scipy import stats
from torch.nn import functional as F

from smallbatch.compose import compose
from smallbatch.data import load_images
from smallbatch.data.arrays import Images, Split
from smallbatch.data.blocks import TrainBlocks
from smallbatch.models import build
from smallbatch.run import make_run
from smallbatch.training.module import ImageData, SmallBatch

pytestmark = pytest.mark.trains


def images(count: int = 16, classes: int = 4) -> Images:
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(count) % classes
    split = Split(pixels, labels, np.arange(count))
    return Images(split, split, classes, np.full(3, 127.5), np.full(3, 64.0))


@pytest.mark.parametrize("m", [1, 2, 4, 16])
def test_an_epoch_equals_the_sum_form_bit_for_bit(tmp_path, m):
    """In float64, powers of two: η̃ m · mean gradient is η̃ · Σ ∇L_i without rounding in between."""
    cfg = compose([f"batch_size={m}", "base_lr=2**-9", "epochs=1", "weight_decay=0", "precision=64-true"])
    cfg.schedule.drops = []
    run, data = make_run(cfg), images()
    module = SmallBatch(run, *data.sizes).double()
    theta = [p.detach().clone().requires_grad_() for p in module.network.parameters()]
    names = [name for name, _ in module.network.named_parameters()]
    for x, y in TrainBlocks(data, m, False, run.seed, 0):
        for start in range(0, len(x), m):
            out = torch.func.functional_call(
                module.network, dict(zip(names, theta, strict=True)), x.double()[start : start + m]
            )
            loss_sum = F.cross_entropy(out, y[start : start + m], reduction="sum")
            gradients = torch.autograd.grad(loss_sum, theta)
            theta = [(t - 2.0**-9 * g).detach().requires_grad_() for t, g in zip(theta, gradients, strict=True)]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, precision="64-true",
    )  # fmt: skip
    trainer.fit(module, ImageData(run, data))
    for trained, expected in zip(module.network.parameters(), theta, strict=True):
        torch.testing.assert_close(trained.detach(), expected.detach(), rtol=0, atol=0)


def test_update_variance_grows_linearly_with_m():
    """tr Cov(η̃ Σ∇L) = η̃² m S (1 − m/N) at fixed weights: an identity of sums without replacement, on the digits."""
    cfg = compose(["model=resnet8", "data=digits16", "data.train_size=256", "data.test_size=10"])
    run = make_run(cfg)
    data = load_images(cfg)
    network = build(run, data.channels, data.classes)
    parameters = list(network.parameters())
    ((x, y),) = [next(iter(TrainBlocks(data, 256, False, 0, 0)))]
    each = []
    for one, label in zip(x.split(1), y.split(1), strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(network(one), label), parameters)
        each.append(torch.cat([g.flatten() for g in gradients]))
    centred = torch.stack(each)
    centred = (centred - centred.mean(0)).double() / 256
    sizes = np.array([2, 4, 8, 16, 32])
    slopes = []
    for seed in range(10):
        order = torch.from_numpy(np.random.RandomState(seed).permutation(256))
        variance = [float((centred[order].unflatten(0, (-1, m)).sum(1) ** 2).sum(1).mean()) for m in sizes]
        slopes.append(np.polyfit(np.log2(sizes), np.log2(np.array(variance) / (1 - sizes / 256)), 1)[0])
    reach = stats.t.ppf(0.975, 9) * np.std(slopes, ddof=1) / 10**0.5
    assert abs(np.mean(slopes) - 1) < reach < 0.1
