"""The Lightning module: blocks in, one plain SGD step a mini-batch."""

import copy
import math
import random
import time
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassStatScores

from smallbatch.data.arrays import Images
from smallbatch.data.blocks import STATISTICS_GROUP, TestBlocks, TrainBlocks, statistics_batches
from smallbatch.errors import ConfigError
from smallbatch.models import build
from smallbatch.models.norm import GhostBatchNorm, precise_statistics
from smallbatch.ranks import ALONE, Ranks
from smallbatch.run import Run
from smallbatch.store import Row
from smallbatch.training.schedule import make_schedule
from smallbatch.training.score import scored_epochs, stopped
from smallbatch.training.step import make_loss, make_optimizer


class ImageData(pl.LightningDataModule):
    """A run's images as Lightning asks for them: in blocks, each of many mini-batches."""

    def __init__(self, run: Run, images: Images, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.run, self.images, self.ranks = run, images, ranks

    def train_dataloader(self) -> TrainBlocks:
        run = self.run
        return TrainBlocks(self.images, run.batch_size, run.data["augment"], run.seed, ranks=self.ranks)

    def val_dataloader(self) -> TestBlocks:
        return TestBlocks(self.images, self.ranks)

    test_dataloader = predict_dataloader = val_dataloader


class SmallBatch(pl.LightningModule):
    """Trains one run's network. `rows` has one entry per finished epoch and travels in the checkpoint.

    The learning rate of an update is base_lr × batch_size × schedule, on the mean gradient of the
    batch: θ ← θ − η̃ Σ ∇L_i (paper, eq. 2). What a training loader gives is a block, which is cut into mini-batches
    of `batch_size`. `train_images` is how many images an epoch has, for the schedule. Any `pl.Trainer` takes it:

    >>> from smallbatch.compose import compose
    >>> from smallbatch.data import load_images
    >>> from smallbatch.run import make_run
    >>> cfg = compose(["data=digits16", "model=resnet8", "batch_size=8", "data.train_size=64"])
    >>> run, images = make_run(cfg), load_images(cfg)
    >>> trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    >>> trainer.fit(SmallBatch(run, *images.sizes), ImageData(run, images))
    >>> trainer.global_step
    8

    Of several `ranks` each gets its share of a block's images, and all labels.
    """

    ranks: Ranks = ALONE

    def __init__(self, run: Run | dict[str, Any], channels: int, classes: int, train_images: int) -> None:
        super().__init__()
        self.run = run if isinstance(run, Run) else Run.from_dict(run)
        sizes = {"channels": channels, "classes": classes, "train_images": train_images}
        self.save_hyperparameters({"run": self.run.to_dict(), **sizes})
        self.automatic_optimization = False
        self.classes = classes
        self.network = build(self.run, channels, classes)
        self.loss = make_loss(self.run)
        self.loss_of_each: Any = copy.deepcopy(
            self.loss
        )  # where it can tell, so that its mean is over images, not blocks
        if hasattr(self.loss_of_each, "reduction"):
            self.loss_of_each.reduction = "none"
        self.factor = make_schedule(self.run.schedule, self.run.epochs * (train_images // self.run.batch_size))
        self.updates = 0
        self.diverged = False
        self.rows: list[Row] = []
        self.pixels: list[list[float]] = []  # mean and standard deviation by channel, of a loaded network's images
        self.metrics = MetricCollection(
            {
                "a": MulticlassStatScores(classes, average="micro", sync_on_compute=False),  # each rank counts all
                "b": MulticlassStatScores(classes, average="micro", sync_on_compute=False),
                "loss": MeanMetric(nan_strategy="disable", sync_on_compute=False),
            },
            compute_groups=False,
        )
        self.metrics.requires_grad_(False)

    @property
    def ended(self) -> bool:
        """Whether the run is over: trained to its last epoch, diverged, or stopped early as its config says."""
        return self.diverged or self.stopped or len(self.rows) >= self.run.epochs

    @property
    def stopped(self) -> bool:
        """Whether `stop` ends the run."""
        stop = self.run.stop
        return stop is not None and stopped([row[stop["monitor"]] for row in self.rows], stop)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def setup(self, stage: str) -> None:
        """Lay the weights out channels-last; lazy layers get their shape first, from an image of the data."""
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in self.network.parameters()):
            data = getattr(self.trainer, "datamodule", None)
            if not isinstance(data, ImageData):
                raise ConfigError("lazy layers take their shape from the data: give the Trainer an ImageData")
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(self.run.seed)
                self.network.eval()(torch.zeros(1, *next(iter(data.val_dataloader()))[0].shape[1:]))
                self.network.train()
        self.network.to(memory_format=torch.channels_last)
        if self.trainer.precision == "64-true":  # as Lightning does, but before a checkpoint is loaded and rounded
            self.network.double()
        for layer in self.network.modules():
            if isinstance(layer, GhostBatchNorm):
                layer.ranks = self.ranks

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.run, self.network.parameters())

    def on_train_start(self) -> None:
        self.ranks.start_equal(self.network)

    def on_train_epoch_start(self) -> None:
        # Built-in networks draw nothing; a user's dropout must not depend on what ran before, nor be another rank's.
        seed = self.run.seed * 1_000_003 + self.current_epoch + self.ranks.rank * 999_999_937
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        self.train_start, self.eval_start, self.eval_end = time.perf_counter(), math.nan, math.nan
        self.loss_sum, self.hits, self.seen = 0.0, 0, 0
        self.tested: dict[str, float] = {"test_loss": math.nan, "test_accuracy": math.nan}

    def on_train_batch_start(self, block: Any, index: int) -> int | None:
        return -1 if self.diverged else None  # -1 ends Lightning's epoch

    def training_step(self, block: tuple[Tensor, Tensor], index: int) -> None:
        """Step through a block's mini-batches; ask once, at its end, whether the loss is still finite."""
        images, labels = block
        m, most = self.run.batch_size, self.trainer.max_steps
        share = m // self.ranks.world
        if most >= 0:
            left = most - self.trainer.global_step
            images, labels = images[: left * share], labels[: left * m]
        optimizer: Any = self.optimizers()
        groups, callbacks = optimizer.param_groups, self.trainer.callbacks  # type: ignore[attr-defined]
        losses, outputs, sizes = [], [], []
        for x, y in zip(images.split(share), labels.split(m), strict=True):
            rate = self.run.base_lr * len(y) * self.factor(self.updates)
            for group in groups:
                group["lr"] = rate
            logits = self.ranks.whole(self.network(x), len(y))
            loss = self.loss(logits, y)
            for callback in callbacks:  # which Lightning itself calls in automatic optimisation only
                callback.on_before_zero_grad(self.trainer, self, optimizer.optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.updates += 1
            losses.append(loss.detach())
            outputs.append(logits.detach())
            sizes.append(len(y))
        # Read back once a block, and added up in double precision, which not every device has.
        block_loss = (torch.stack(losses).cpu().double() * torch.tensor(sizes)).sum().item()
        self.loss_sum += block_loss
        self.hits += int((torch.cat(outputs).argmax(1) == labels).sum())
        self.seen += len(labels)
        self.diverged = not math.isfinite(block_loss)

    def backward(self, loss: Tensor, *args: Any, **settings: Any) -> None:
        """What `manual_backward` calls: behind it gradients are those of the whole mini-batch."""
        super().backward(loss, *args, **settings)
        self.ranks.sum_gradients(self.network.parameters())

    def on_train_batch_end(self, *_: Any) -> None:
        # Callbacks, which only rank 0 has, may stop it too.
        self.diverged, self.trainer.should_stop = self.ranks.agree(self.diverged, self.trainer.should_stop)

    def on_validation_epoch_start(self) -> None:
        self.eval_start = time.perf_counter()
        self.metrics.reset()
        if self.run.precision == "64-true":
            self.metrics["loss"].set_dtype(torch.float64)  # again: moving a metric to its device makes it float32

    def validation_step(self, block: tuple[Tensor, ...], index: int) -> None:
        """Count a block of test images; `block` may tell which belong to the first of two halves."""
        if self.diverged:
            return
        images, labels, *told = block
        first = told[0] if told else torch.ones_like(labels, dtype=torch.bool)
        logits = self.ranks.whole(self(images), len(labels))
        for half, chosen in (("a", first), ("b", ~first)):
            if chosen.any():
                self.metrics[half].update(logits[chosen], labels[chosen])
        losses = self.loss_of_each(logits, labels)
        self.metrics["loss"].update(losses if losses.ndim else losses.expand(len(labels)))

    def on_validation_epoch_end(self) -> None:
        self.eval_end = time.perf_counter()
        self.tested = self._tested()
        self.log_dict(self.tested)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, block: Any, index: int) -> Tensor:
        return self(block[0] if isinstance(block, list | tuple) else block)

    def _tested(self) -> dict[str, float]:
        """Loss and shares of the test images: all and, where the loader tells them, two fixed halves.

        The halves let a best be chosen on one and reported on the other. All are chance where the network diverged.
        """
        loss = math.nan if self.diverged else self.metrics["loss"].compute().item()
        if not math.isfinite(loss):
            chance = {f"test_accuracy{half}": 1 / self.classes for half in ("", "_a", "_b")}
            return {"test_loss": loss, **chance}
        counted = {half: self.metrics[half].compute().tolist() for half in "ab" if self.metrics[half].update_called}
        halves = {f"test_accuracy_{half}": hits / total for half, (hits, *_, total) in counted.items()}
        hits, *_, total = (sum(counts) for counts in zip(*counted.values(), strict=True))
        return {"test_loss": loss, "test_accuracy": hits / total, **(halves if len(halves) == 2 else {})}

    def on_train_epoch_end(self) -> None:
        """Close the epoch's row. A diverged epoch has chance accuracy and no finite loss."""
        was_tested = not math.isnan(self.eval_end)
        if not was_tested:
            self.eval_start = self.eval_end = time.perf_counter()
        if self.diverged:
            self.tested = self._tested()
        elif was_tested:
            self.diverged = not math.isfinite(self.tested["test_loss"])  # its very last update can be the one
        optimizer: Any = self.optimizers()
        trained = {
            "train_loss": math.nan if self.diverged else self.loss_sum / self.seen,
            "train_accuracy": self.hits / self.seen,
        }
        rate = {"learning_rate": optimizer.param_groups[0]["lr"]}
        precise = self._precise()
        self.log_dict(trained | precise | rate)
        counts = {"updates": self.updates, "images": self.seen + (self.rows[-1]["images"] if self.rows else 0)}
        seconds = {
            "train_seconds": self.eval_start - self.train_start,
            "eval_seconds": self.eval_end - self.eval_start,
        }
        self.rows.append(
            {"epoch": self.current_epoch + 1, **trained, **self.tested, **precise, **rate, **counts, **seconds}
        )
        if not self.diverged:
            self.ranks.check_equal(self.network)
        if self.diverged or self.stopped:
            self.trainer.should_stop = True

    def _precise(self) -> dict[str, float]:
        """With batch norm: the share of test images that are right with precise statistics; in scored epochs only."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.run.norm.kind != "batch" or not isinstance(data, ImageData):
            return {}
        if self.diverged:
            return {"test_accuracy_precise": 1 / self.classes}
        scored = self.current_epoch >= self.run.epochs - scored_epochs(self.run.epochs)
        return {"test_accuracy_precise": self._precise_hits(data) / len(data.images.test) if scored else math.nan}

    def _precise_hits(self, data: ImageData) -> int:
        """Test images that are right with the batch-norm statistics of training images at the weights as they are."""
        weight = next(self.network.parameters())

        def moved(images: Tensor) -> Tensor:
            return images.to(weight.device, weight.dtype)

        hits = 0
        with (
            torch.no_grad(),
            self.trainer.precision_plugin.val_step_context(),
            precise_statistics(self.network, map(moved, statistics_batches(data.images))),
        ):
            for images, labels, _ in data.val_dataloader():
                # In parts that a processor's cache holds: a quarter faster.
                parts = [self.network(moved(part)).argmax(1) for part in images.split(STATISTICS_GROUP)]
                hits += int((self.ranks.whole(torch.cat(parts), len(labels)).cpu() == labels).sum())
        return hits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        known = {"rows": self.rows, "updates": self.updates, "key": self.run.key}
        checkpoint["smallbatch"] = known | {"checksum": True}  # there is one behind the end of a run folder's files
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageData):  # what a picture needs before the network takes it
            checkpoint["smallbatch"]["pixels"] = [data.images.mean.tolist(), data.images.std.tolist()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["smallbatch"]
        if state["key"] != self.run.key:
            raise ValueError(f"the checkpoint is of run {state['key']}")
        self.rows, self.updates = list(state["rows"]), state["updates"]
        self.pixels = state.get("pixels", self.pixels)
