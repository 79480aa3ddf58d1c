"""Blocks: some hundreds of images, augmented at once, that hold many consecutive mini-batches."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from smallbatch.data.arrays import Images, Split

BLOCK = 512  # images, about; results do not depend on it
PAD = 4  # pixels each side before the random crop (paper, section 5)
_ORDER, _AUGMENT = 0, 1  # streams of random numbers


def stream(seed: int, epoch: int, purpose: int) -> np.random.RandomState:
    """Random numbers that depend on (seed, epoch, purpose) alone; NumPy keeps both parts stable (NEP 19)."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch, purpose])))


class TrainBlocks:
    """One epoch: a new permutation, cut into blocks of whole mini-batches; the partial last one is dropped.

    Yields (images, labels): (B, C, H, W) float32, channels-last, normalised, B a multiple of
    `batch_size`; labels (B,) int64.
    """

    def __init__(self, images: Images, batch_size: int, augment: bool, seed: int, epoch: int) -> None:
        self.images, self.batch_size, self.augment = images, batch_size, augment
        self.seed, self.epoch = seed, epoch
        self.size = max(1, BLOCK // batch_size) * batch_size

    def __len__(self) -> int:
        return -(-self._used() // self.size)

    def _used(self) -> int:
        return len(self.images.train) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        split = self.images.train
        order = stream(self.seed, self.epoch, _ORDER).permutation(len(split))[: self._used()]
        shifts = draw_shifts(self.seed, self.epoch, len(split)) if self.augment else None
        for start in range(0, len(order), self.size):
            chosen = order[start : start + self.size]
            rows = split.index[chosen]
            pixels = split.images[rows]
            if shifts is not None:
                pixels = crop_and_flip(pixels, shifts[chosen])
            yield normalise(pixels, self.images), torch.from_numpy(split.labels[rows])


class TestBlocks:
    """The test images in order, in blocks, not augmented."""

    __test__ = False  # not a test case, whatever its name begins with

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return -(-len(self.images.test) // BLOCK)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        split: Split = self.images.test
        for start in range(0, len(split), BLOCK):
            rows = split.index[start : start + BLOCK]
            yield normalise(split.images[rows], self.images), torch.from_numpy(split.labels[rows])


def draw_shifts(seed: int, epoch: int, count: int) -> np.ndarray:
    """Per image (row offset, column offset, flip) for one epoch, (count, 3)."""
    random = stream(seed, epoch, _AUGMENT)
    offsets = random.randint(0, 2 * PAD + 1, size=(count, 2))
    return np.concatenate([offsets, random.randint(0, 2, size=(count, 1))], axis=1)


def crop_and_flip(pixels: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Pad with zeros by 4, crop back at each image's offset, mirror left-right where flip is 1.

    `pixels` (B, H, W, C) uint8, `shifts` (B, 3) as `draw_shifts` gives.
    """
    height, width = pixels.shape[1:3]
    padded = np.pad(pixels, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    out = np.empty_like(pixels)
    for i, (top, left, flip) in enumerate(shifts.tolist()):
        crop = padded[i, top : top + height, left : left + width]
        out[i] = crop[:, ::-1] if flip else crop
    return out


def normalise(pixels: np.ndarray, images: Images) -> Tensor:
    """(B, H, W, C) uint8 → (B, C, H, W) float32 in channels-last memory, (x − mean) / std per channel."""
    scale = torch.from_numpy(1 / images.std).float()
    offset = torch.from_numpy(-images.mean / images.std).float()
    return torch.addcmul(offset, torch.from_numpy(pixels).float(), scale).permute(0, 3, 1, 2)
