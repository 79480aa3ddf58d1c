"""The usual Lightning template as its users write it, in one file: a Hydra app that `tests/peers.py` measures.

Written after ashleve/lightning-hydra-template and what people make of it for CIFAR-10: an image at a time through
torchvision's transforms, a DataLoader, torchmetrics and `self.log` in each step, one batch size for training and
tests, a Trainer left at its defaults. Of this package it takes the network alone.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytorch_lightning as pl
import torch
from hydra.core.config_store import ConfigStore
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms

from smallbatch.models.alexnet import AlexNet


@dataclass
class Config:
    images: str  # an .npz
    rows: str  # a .csv, to which each run adds a row
    epochs: int
    seed: int
    batch_size: int = 32
    base_lr: float = 2.0**-12
    weight_decay: float = 5e-4
    num_workers: int = 0
    test_batch_size: int | None = None  # as in training


class Images(Dataset):
    """As torchvision's CIFAR10: pixels in memory, a PIL image for the transforms."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: Any) -> None:
        self.pixels, self.labels, self.transform = pixels, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class DataModule(pl.LightningDataModule):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg

    def setup(self, stage: str) -> None:
        with np.load(self.cfg.images) as file:
            arrays = dict(file)
        mean, std = ((arrays[name] / 255).tolist() for name in ("mean", "std"))
        both = [transforms.ToTensor(), transforms.Normalize(mean, std)]
        augment = [transforms.RandomCrop(arrays["train_images"].shape[1], padding=4), transforms.RandomHorizontalFlip()]
        self.train = Images(arrays["train_images"], arrays["train_labels"], transforms.Compose([*augment, *both]))
        self.test = Images(arrays["test_images"], arrays["test_labels"], transforms.Compose(both))

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, self.cfg.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.test, self.cfg.test_batch_size or self.cfg.batch_size, shuffle=False)

    def _loader(self, images: Images, batch_size: int, shuffle: bool) -> DataLoader:
        workers = self.cfg.num_workers
        fork = "fork" if workers else None  # in joblib's processes the usual way to start workers fails
        return DataLoader(images, batch_size, shuffle, num_workers=workers, multiprocessing_context=fork)


class Classifier(pl.LightningModule):
    def __init__(self, network: torch.nn.Module, learning_rate: float, weight_decay: float, classes: int) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        self.network = network
        self.criterion = torch.nn.CrossEntropyLoss()
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.train_acc, self.val_acc = (MulticlassAccuracy(classes, average="micro") for _ in range(2))
        self.val_acc_best = MaxMetric()

    def on_train_start(self) -> None:
        for metric in (self.val_loss, self.val_acc, self.val_acc_best):
            metric.reset()  # of the sanity check

    def _step(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, y = batch
        logits = self.network(x)
        return self.criterion(logits, y), logits.argmax(1), y

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss, predictions, y = self._step(batch)
        self.train_loss(loss)
        self.train_acc(predictions, y)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        loss, predictions, y = self._step(batch)
        self.val_loss(loss)
        self.val_acc(predictions, y)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.hparams
        return torch.optim.SGD(self.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"])


ConfigStore.instance().store(name="template", node=Config)


@hydra.main(config_path=None, config_name="template", version_base="1.3")
def main(cfg: Any) -> None:
    began = time.time()
    pl.seed_everything(cfg.seed, workers=True)
    with np.load(cfg.images) as file:
        channels, classes = file["train_images"].shape[3:] or (1,), int(file["classes"])
    torch.manual_seed(cfg.seed)
    network = AlexNet(classes, channels[0], lambda features, dense=False: torch.nn.Identity())
    module = Classifier(network, cfg.base_lr * cfg.batch_size, cfg.weight_decay, classes)
    folder = hydra.core.hydra_config.HydraConfig.get().runtime.output_dir
    trainer = pl.Trainer(max_epochs=cfg.epochs, accelerator="cpu", default_root_dir=folder)
    trainer.fit(module, DataModule(cfg))
    accuracy = trainer.callback_metrics["val/acc"].item()
    with Path(cfg.rows).open("a") as file:
        file.write(f"{cfg.batch_size},{cfg.base_lr},{accuracy},{began},{time.time()}\n")


def table(rows: str) -> str:
    """Accuracy by m and η̃, as people make it of what their runs leave."""
    import pandas as pd

    return str(
        pd.read_csv(rows, names=["m", "rate", "accuracy", "began", "ended"]).pivot_table("accuracy", "rate", "m")
    )


if __name__ == "__main__":
    main()
    print(table(next(word.removeprefix("rows=") for word in sys.argv if word.startswith("rows="))))
