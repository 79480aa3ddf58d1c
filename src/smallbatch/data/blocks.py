"""Blocks: some hundreds of images, augmented at once, that hold many consecutive mini-batches."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
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
    count, height, width, channels = pixels.shape
    padded = np.pad(pixels, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    # All windows as a view, with width and channels as one axis: rows are then copied whole.
    windows = sliding_window_view(padded.reshape(count, height + 2 * PAD, -1), (height, width * channels), (1, 2))
    out = windows[np.arange(count), shifts[:, 0], shifts[:, 1] * channels].reshape(pixels.shape)
    flip = shifts[:, 2] == 1
    out[flip] = out[flip][:, :, ::-1]
    return out


def normalise(pixels: np.ndarray, images: Images) -> Tensor:
    """(B, H, W, C) uint8 → (B, C, H, W) float32 in channels-last memory, (x − mean) / std per channel."""
    shape = pixels.shape[1:]
    # Written out for a whole image: broadcasting over three channels alone is many times slower.
    scale = torch.from_numpy(1 / images.std).float().expand(shape).flatten()
    offset = torch.from_numpy(-images.mean / images.std).float().expand(shape).flatten()
    flat = torch.addcmul(offset, torch.from_numpy(pixels).flatten(1).float(), scale)
    return flat.view(-1, *shape).permute(0, 3, 1, 2)
