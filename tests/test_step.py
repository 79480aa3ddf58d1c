"""The update is the paper's: θ ← θ − η̃ Σ ∇L_i, and the learning rate follows the schedule."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from smallbatch.compose import compose
from smallbatch.config import make_run
from smallbatch.data.arrays import Images, Split
from smallbatch.data.blocks import TrainBlocks
from smallbatch.training.module import SmallBatch


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
    module = SmallBatch(run, data).double()
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
    trainer.fit(module)
    for trained, expected in zip(module.network.parameters(), theta, strict=True):
        torch.testing.assert_close(trained.detach(), expected.detach(), rtol=0, atol=0)
