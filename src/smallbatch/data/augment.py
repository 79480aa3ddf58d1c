"""Random numbers that depend on (seed, epoch, purpose) alone, and the paper's augmentation of CIFAR."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

PAD = 4  # pixels each side before the random crop (paper, section 5)
ORDER, AUGMENT = 0, 1  # streams of random numbers


def stream(seed: int, epoch: int, purpose: int) -> np.random.RandomState:
    """Random numbers that depend on (seed, epoch, purpose) alone; NumPy keeps both parts stable (NEP 19)."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch, purpose])))


def draw_shifts(seed: int, epoch: int, count: int) -> np.ndarray:
    """Per image (row offset, column offset, flip) for one epoch, (count, 3)."""
    random = stream(seed, epoch, AUGMENT)
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
