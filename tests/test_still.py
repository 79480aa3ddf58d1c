"""T1: what the still optimizer measures is the covariance of SGD's updates at fixed weights."""

import numpy as np
import pytest
import torch

from smallbatch.compose import compose
from smallbatch.config import make_run
from smallbatch.data import describe, load
from smallbatch.data.blocks import TrainBlocks
from smallbatch.models import build
from smallbatch.training import train
from smallbatch.training.still import Still


def test_it_is_the_mean_squared_distance_from_the_mean_update_and_the_weights_stay():
    torch.manual_seed(0)
    weights = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64)]
    weights[1].requires_grad_(True)
    before = [w.detach().clone() for w in weights]
    still = Still(weights, lr=0.3, weight_decay=0.1)
    updates = []
    for _ in range(5):
        for w in weights:
            w.grad = torch.randn_like(w)
        updates.append(torch.cat([0.3 * (w.grad + 0.1 * w.detach()).flatten() for w in weights]))
        still.step()
    expected = torch.stack(updates).var(dim=0, unbiased=False).sum().item()
    assert still.measured()["update_variance"] == pytest.approx(expected, rel=1e-12)
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    still.step()  # starts anew: one update has no variance
    assert still.measured()["update_variance"] == pytest.approx(0, abs=1e-12)


def test_a_run_s_mean_over_epochs_tends_to_the_variance_of_the_sum_of_m_gradients_drawn_without_replacement(tmp_path):
    """tr Cov = η̃² m S (1 − m / N), with S from every example's own gradient (n = 40 epochs, m = 8, N = 32)."""
    words = ["model=alexnet", "optimizer=still", "schedule=constant", "weight_decay=0", "batch_size=8", "base_lr=1/8"]
    small = [f"data.root={tmp_path}", "data.train_size=32", "data.test_size=10", "epochs=40", "precision=64-true"]
    cfg = compose([*words, *small, f"store={tmp_path / 'runs'}", "progress=false"])
    run = make_run(cfg)
    images = load(describe(dict(cfg.data)))
    network = build(run, images.channels, images.classes).double()
    gradients = []
    for x, y in TrainBlocks(images, 1, False, 0, 0):
        for one, label in zip(x.double().split(1), y.split(1), strict=True):
            loss = torch.nn.functional.cross_entropy(network(one), label)
            parts = torch.autograd.grad(loss, list(network.parameters()))
            gradients.append(torch.cat([part.flatten() for part in parts]).numpy())
    spread = np.var(gradients, axis=0, ddof=1).sum()
    rows = train(run, cfg, say=print).record.rows
    measured = [row["update_variance"] for row in rows]
    expected = (1 / 8) ** 2 * 8 * spread * (1 - 8 / 32)
    error = np.std(measured, ddof=1) / len(measured) ** 0.5
    assert abs(np.mean(measured) - expected) < 4 * error
    assert error < 0.05 * expected
