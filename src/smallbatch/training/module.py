"""The Lightning module: blocks in, one plain SGD step a mini-batch."""

import math
import time
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from smallbatch.compose import accepted, check_call, locate
from smallbatch.config import ConfigError, one_line
from smallbatch.data.arrays import Images
from smallbatch.data.blocks import TestBlocks, TrainBlocks, block_size, halves, statistics_batches
from smallbatch.models import build
from smallbatch.models.norm import precise_statistics
from smallbatch.run import Run
from smallbatch.store import Row
from smallbatch.training.schedule import factor
from smallbatch.training.score import scored_epochs


def make_optimizer(run: Run, parameters: Any) -> torch.optim.Optimizer:
    """The run's optimizer; weight decay on all parameters; fused where the class can.

    The class is called as (parameters, lr=…, its settings, and weight_decay and fused if it takes them).
    """
    target = locate(run.optimizer["_target_"], "optimizer")
    settings = {k: v for k, v in run.optimizer.items() if k not in ("_target_", "name")}
    offered = accepted(target, {"weight_decay": run.weight_decay, "fused": True})
    if run.weight_decay and "weight_decay" not in {**offered, **settings}:
        raise ConfigError(f"{run.optimizer['_target_']} takes no weight_decay; set weight_decay=0")
    arguments = {**offered, "lr": run.base_lr * run.batch_size, **settings}
    check_call(target, arguments, "optimizer", parameters)
    try:
        return target(parameters, **arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optimizer: {run.optimizer['_target_']}: {error}") from None


class SmallBatch(pl.LightningModule):
    """Trains one run's network. `rows` has one entry per finished epoch and travels in the checkpoint.

    The learning rate of an update is base_lr × batch_size × schedule, on the mean gradient of the
    batch: θ ← θ − η̃ Σ ∇L_i (paper, eq. 2).
    """

    first_half: Tensor

    def __init__(self, run: Run, images: Images) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.run, self.images = run, images
        self.network = build(run, images.channels, images.classes)
        self.updates = 0
        self.updates_per_epoch = len(images.train) // run.batch_size
        self.total_updates = run.epochs * self.updates_per_epoch
        self.diverged = False
        self.rows: list[Row] = []
        self.register_buffer("first_half", torch.from_numpy(halves(images.test)), persistent=False)
        self.metrics = MetricCollection(
            {
                "a": MulticlassAccuracy(images.classes, average="micro"),
                "b": MulticlassAccuracy(images.classes, average="micro"),
                "loss": MeanMetric(nan_strategy="disable"),
            },
            compute_groups=False,
        )
        self.metrics.requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.run, self.network.parameters())

    def train_dataloader(self) -> TrainBlocks:
        run = self.run
        return TrainBlocks(self.images, run.batch_size, run.data["augment"], run.seed, self.current_epoch)

    def val_dataloader(self) -> TestBlocks:
        return TestBlocks(self.images)

    def on_train_epoch_start(self) -> None:
        # Built-in networks draw nothing; a user's dropout must not depend on what ran before.
        torch.manual_seed(self.run.seed * 1_000_003 + self.current_epoch)
        self.train_start, self.eval_start = time.perf_counter(), math.nan
        self.loss_sum, self.hits = 0.0, 0

    def on_train_batch_start(self, block: Any, index: int) -> int | None:
        return -1 if self.diverged else None  # -1 ends Lightning's epoch

    def training_step(self, block: tuple[Tensor, Tensor], index: int) -> None:
        """Step through a block's mini-batches; ask once, at its end, whether the loss is still finite."""
        images, labels = block
        m, schedule, total = self.run.batch_size, self.run.schedule, self.total_updates
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        rate = self.run.base_lr * m
        losses, outputs = [], []
        for x, y in zip(images.split(m), labels.split(m), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor(schedule, self.updates, total)
            logits = self.network(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.updates += 1
            losses.append(loss.detach())
            outputs.append(logits.detach())
        # Read back once a block, and added up in double precision, which not every device has.
        block_loss = torch.stack(losses).cpu().double().sum().item() * m
        self.loss_sum += block_loss
        self.hits += int((torch.cat(outputs).argmax(1) == labels).sum())
        self.diverged = not math.isfinite(block_loss)

    def on_validation_epoch_start(self) -> None:
        self.eval_start = time.perf_counter()

    def validation_step(self, block: tuple[Tensor, Tensor], index: int) -> None:
        if self.diverged:
            return
        images, labels = block
        logits = self.network(images)
        start = index * block_size(self.images)
        first = self.first_half[start : start + len(labels)]
        self.metrics["a"].update(logits[first], labels[first])
        self.metrics["b"].update(logits[~first], labels[~first])
        self.metrics["loss"].update(F.cross_entropy(logits, labels, reduction="none"))

    def on_train_epoch_end(self) -> None:
        """Close the epoch's row. A diverged epoch has chance accuracy and no finite loss."""
        end = time.perf_counter()
        trained = end if math.isnan(self.eval_start) else self.eval_start  # a diverged epoch is not evaluated
        seen = (self.updates - self.current_epoch * self.updates_per_epoch) * self.run.batch_size
        test_loss = math.nan
        if not self.diverged:
            test_loss = self.metrics["loss"].compute().item()
            self.diverged = not math.isfinite(test_loss)  # the epoch's very last update can be the one
        accuracy = self._test_accuracy()
        self.metrics.reset()
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        self.rows.append(
            {
                "epoch": self.current_epoch + 1,
                "train_loss": math.nan if self.diverged else self.loss_sum / seen,
                "train_accuracy": self.hits / seen,
                "test_loss": test_loss,
                **accuracy,
                "learning_rate": optimizer.param_groups[0]["lr"],
                "updates": self.updates,
                "images": self.updates * self.run.batch_size,
                "train_seconds": trained - self.train_start,
                "eval_seconds": end - trained,
            }
        )
        if self.diverged:
            self.trainer.should_stop = True

    def _test_accuracy(self) -> dict[str, float]:
        """Shares of the test images: all, two fixed halves and, in the scored epochs, all with precise statistics.

        The halves let a best be chosen on one and reported on the other. All are chance where the epoch diverged.
        """
        normalised = self.run.norm.kind == "batch"
        names = ["", "_a", "_b", *(["_precise"] if normalised else [])]
        if self.diverged:
            return {f"test_accuracy{name}": 1 / self.images.classes for name in names}
        a, total = int(self.first_half.sum()), len(self.images.test)
        # torchmetrics divides in float32: back to the exact number of images.
        hits_a, hits_b = (round(self.metrics[h].compute().item() * n) for h, n in (("a", a), ("b", total - a)))
        shares = [(hits_a + hits_b) / total, hits_a / a, hits_b / (total - a)]
        if normalised:
            scored = self.current_epoch >= self.run.epochs - scored_epochs(self.run.epochs)
            shares.append(self._precise_hits() / total if scored else math.nan)
        return {f"test_accuracy{name}": share for name, share in zip(names, shares, strict=True)}

    def _precise_hits(self) -> int:
        """Test images that are right with the batch-norm statistics of training images at the weights as they are."""
        weight = next(self.network.parameters())

        def moved(images: Tensor) -> Tensor:
            return images.to(weight.device, weight.dtype)

        hits = 0
        with (
            torch.no_grad(),
            self.trainer.precision_plugin.val_step_context(),
            precise_statistics(self.network, map(moved, statistics_batches(self.images))),
        ):
            for images, labels in self.val_dataloader():
                hits += int((self.network(moved(images)).argmax(1).cpu() == labels).sum())
        return hits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["smallbatch"] = {"rows": self.rows, "updates": self.updates, "key": self.run.key}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["smallbatch"]
        if state["key"] != self.run.key:
            raise ValueError(f"the checkpoint is of run {state['key']}")
        self.rows, self.updates = list(state["rows"]), state["updates"]


def trial(run: Run, images: Images) -> None:
    """A forward pass of one or two images, to learn early what the network refuses. Raises ConfigError."""
    shape = images.shape
    m = min(run.bn_batch_size or run.batch_size, 2)
    network = build(replace(run, batch_size=m, bn_batch_size=None), images.channels, images.classes)
    where = f"model={run.model['name']} data={run.data['name']}"
    try:
        logits = network(torch.zeros(m, shape[2], shape[0], shape[1]))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = one_line(error)
        raise ConfigError(f"{where}: the network cannot take images of {shape[0]}×{shape[1]}: {reason}") from None
    if logits.shape != (m, images.classes):
        raise ConfigError(f"{where}: the network gives {tuple(logits.shape)} instead of ({m}, {images.classes})")
    make_optimizer(run, network.parameters())
