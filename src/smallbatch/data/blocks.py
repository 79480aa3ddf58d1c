"""Blocks: some hundreds of images, augmented at once, that hold many consecutive mini-batches."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from smallbatch.data.arrays import Images, Split, stratified
from smallbatch.data.augment import ORDER, stream
from smallbatch.data.folders import FileSplit
from smallbatch.ranks import ALONE, Ranks

BLOCK = 512  # images, about; results do not depend on it
STATISTICS, STATISTICS_GROUP = 1280, 128  # training images for precise BN, and how many at a time
MEMORY = 2**26  # bytes, about, that a block of large images may take as float32


class TrainBlocks:
    """One epoch: a new permutation, cut into blocks of whole mini-batches; the partial last one is dropped.

    Yields (images, labels): (B, C, H, W) float32, channels-last, normalised, B a multiple of
    `batch_size`; labels (B,) int64. Of several `ranks` each gets its share of the images, and all labels.
    Lightning says which epoch is next, as it does to a sampler.
    """

    def __init__(
        self, images: Images, batch_size: int, augment: bool, seed: int, epoch: int = 0, ranks: Ranks = ALONE
    ) -> None:
        self.images, self.batch_size, self.augment = images, batch_size, augment
        self.seed, self.epoch, self.ranks = seed, epoch, ranks
        self.size = max(1, block_size(images) // batch_size) * batch_size
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self._used() // self.size)

    def _used(self) -> int:
        return len(self.images.train) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Nothing is drawn before the first block is asked for: Lightning makes the iterator, then says the epoch.
        split = self.images.train
        order = stream(self.seed, self.epoch, ORDER).permutation(len(split))[: self._used()]
        blocks = _cut(order, self.size)
        shares = [self.ranks.share(block, self.batch_size) for block in blocks]
        drawn = (self.seed, self.epoch) if self.augment else None
        for chosen, pixels in zip(blocks, split.read(shares, drawn), strict=True):
            yield normalise(pixels, self.images), _labels(split, chosen)


class TestBlocks:
    """The test images in order, in blocks, not augmented.

    Yields (images, labels, first): as `TrainBlocks`, and (B,) bool for those of the first of two fixed `halves`.
    A block that `ranks` do not divide is filled up for the last of them.
    """

    __test__ = False  # not a test case, whatever its name begins with

    def __init__(self, images: Images, ranks: Ranks = ALONE) -> None:
        self.images, self.ranks = images, ranks
        self.size = block_size(images)
        self.first = torch.from_numpy(halves(images.test))

    def __len__(self) -> int:
        return -(-len(self.images.test) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        split = self.images.test
        blocks = _cut(np.arange(len(split)), self.size)
        shares = split.read([self.ranks.share(block, len(block)) for block in blocks], None)
        for chosen, pixels, first in zip(blocks, shares, self.first.split(self.size), strict=True):
            yield normalise(pixels, self.images), _labels(split, chosen), first


def halves(split: Split | FileSplit) -> np.ndarray:
    """Two fixed halves of a split, each with half of every class to within one image: True (N,) for the first.

    Within a class the images take turns, in their order.
    """
    order = np.argsort(split.labels[split.index], kind="stable")
    first = np.zeros(len(split), bool)
    first[order[::2]] = True
    return first


def statistics_batches(images: Images) -> Iterator[Tensor]:
    """The training images whose statistics precise BN takes: 1,280 in tens of 128, or what there is; not augmented.

    Stratified and the same for every run. (B, C, H, W) float32, normalised.
    """
    split = images.train
    size = min(STATISTICS, len(split))
    order = stratified(split.labels[split.index], size)
    group = min(STATISTICS_GROUP, size)
    mixed = stream(0, 0, ORDER).permutation(order)[: size // group * group]  # no group of one class
    for pixels in split.read(_cut(mixed, group), None):
        yield normalise(pixels, images)


def block_size(images: Images) -> int:
    """Images in a block, about: 512, and fewer of large ones."""
    return min(BLOCK, max(1, MEMORY // (4 * math.prod(images.shape))))


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _labels(split: Split | FileSplit, chosen: np.ndarray) -> Tensor:
    return torch.from_numpy(split.labels[split.index[chosen]])


def normalise(pixels: np.ndarray, images: Images) -> Tensor:
    """(B, H, W, C) uint8 → (B, C, H, W) float32 in channels-last memory, (x − mean) / std per channel."""
    shape = pixels.shape[1:]
    # Written out for a whole image: broadcasting over three channels alone is many times slower.
    scale = torch.from_numpy(1 / images.std).float().expand(shape).flatten()
    offset = torch.from_numpy(-images.mean / images.std).float().expand(shape).flatten()
    flat = torch.addcmul(offset, torch.from_numpy(pixels).flatten(1).float(), scale)
    return flat.view(-1, *shape).permute(0, 3, 1, 2)
