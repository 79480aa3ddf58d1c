"""Image folders, such as ImageNet: `train/` and `val/`, and in each a folder per class.

Files stay where they are. Worker processes read and crop them as 8-bit pixels, a few images at a time.
"""

import hashlib
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from smallbatch.config import Preparation
from smallbatch.data import walk
from smallbatch.data.augment import AUGMENT, stream
from smallbatch.errors import ConfigError, one_line

_START = "fork" if sys.platform == "linux" else "spawn"
CHUNK = 16  # images that a worker hands over at once: /dev/shm, where they wait, has 64 MiB in many containers


class BrokenImage(Exception):
    """A file that cannot be read as an image. Its text is one line with the path."""


SETTINGS = tuple(item.name for item in fields(Preparation))


def preparation(data: dict[str, Any]) -> Preparation | None:
    """What a folder's `data` config asks for, checked, none left open; None for other data. Raises ConfigError.

    `resize` is None without augmentation.
    """
    if "side" not in data:
        return None
    side, resize, test_resize, mean, std = (data[name] for name in SETTINGS)
    # The proportions of 224, 256 and [256, 480], with which ImageNet is trained (He et al. 2015a).
    if resize is None:
        resize = [round(side * 256 / 224), round(side * 480 / 224)]
    if test_resize is None:
        test_resize = round(side * 256 / 224)
    if len(resize) != 2 or not side <= resize[0] <= resize[1]:
        raise ConfigError(f"data.resize={resize}: must be [lowest, highest], neither below data.side={side}")
    if test_resize < side:
        raise ConfigError(f"data.test_resize={test_resize}: must be at least data.side={side}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ConfigError(f"data.{name}={values}: must be three numbers, of red, green and blue in [0, 1]")
    return Preparation(side, resize if data["augment"] else None, test_resize, mean, std)


@dataclass(frozen=True)
class Files:
    """The image files of a split: `names` (N,) bytes, relative to the folder, in order; `labels`, `sizes` (N,)."""

    names: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Listing:
    """What is in a folder; the fingerprint is of its files' names and sizes, since ImageNet's contents take hours.

    `doubts`: what is odd about it, each in a few words.
    """

    train: Files
    test: Files
    classes: int
    fingerprint: str
    doubts: tuple[str, ...]


@lru_cache(maxsize=8)
def listing(root: Path) -> Listing:
    """List a folder, once per process. Raises ConfigError, naming the folder or file that is not as it must be."""
    whole, doubts = hashlib.sha256(), list[str]()
    (train, classes), (test, test_classes) = (_list_split(root, name, whole, doubts) for name in ("train", "val"))
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise ConfigError(f"{root}: train/ and val/ must have the same classes; only one has {', '.join(odd[:3])}")
    if len(classes) < 2:
        raise ConfigError(f"{root}: all images are of class {classes[0]}; there must be at least two classes")
    return Listing(train, test, len(classes), whole.hexdigest()[:16], tuple(doubts))


def _list_split(root: Path, split: str, whole: Any, doubts: list[str]) -> tuple[Files, list[str]]:
    """The files of one split and its classes; names and sizes go into the hash `whole`."""
    folder = root / split
    if not folder.is_dir():
        other = "; rename test/ to val/" if split == "val" and (root / "test").is_dir() else ""
        raise ConfigError(f"{root}: has no {split}/; images must lie in {split}/CLASS/{other}")
    found = walk.entries(folder)
    classes = [entry.name for entry in found if entry.is_dir()]
    if not classes:
        raise ConfigError(f"{folder}: Couldn't find any class folder; images must lie in {split}/CLASS/")
    loose = [entry.name for entry in found if entry.name.lower().endswith(walk.SUFFIXES) and not entry.is_dir()]
    if loose:
        doubts.append(f"images in {split}/ itself, which are of no class: {len(loose)}")
    above, left_out = frozenset(map(os.path.realpath, (root, folder))), Counter[str]()
    files: list[tuple[bytes, int, int]] = []
    for label, name in enumerate(classes):
        before = len(files)
        for path, size in walk.images(os.path.join(folder, name), above, left_out):
            files.append((os.fsencode(split + path[len(str(folder)) :]), label, size))
            whole.update(b"%s\0%d\n" % (files[-1][0], size))
        if len(files) == before:
            ends = ", ".join(walk.SUFFIXES)
            raise ConfigError(f"{folder}: Found no valid file for the classes {name}; images end in {ends}")
    doubts += [f"{suffix} files in {split}/, which are not read: {n}" for suffix, n in left_out.items() if n]
    # One array of bytes: a million objects would be copied into each worker by and by, as their references are counted.
    names, labels, sizes = zip(*files, strict=True)
    return Files(np.array(names), np.array(labels, np.int64), np.array(sizes, np.int64)), classes


def alike(found: Listing) -> tuple[np.ndarray, np.ndarray]:
    """Which training and which test images have the size of one of the others, and so may be the same."""
    train, test = found.train.sizes, found.test.sizes
    return np.isin(train, test), np.isin(test, train)


def shared(root: Path, found: Listing) -> int:
    """How many test images are training images, byte for byte. Raises OSError."""
    train, test = (
        [hashlib.sha256((root / os.fsdecode(name)).read_bytes()).digest() for name in part.names[some]]
        for part, some in zip((found.train, found.test), alike(found), strict=True)
    )
    trained = set(train)
    return sum(digest in trained for digest in test)


@dataclass(frozen=True)
class FileSplit:
    """Image files below `root`; labels (N,); `index`: the rows that are used; read by `workers` processes."""

    root: Path
    names: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    preparation: Preparation
    workers: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.preparation.side, self.preparation.side, 3

    def read(self, blocks: Iterable[np.ndarray], augment: tuple[int, int] | None) -> Iterator[np.ndarray]:
        """For each block of positions in `index` its pixels (B, side, side, 3); augmented as of (seed, epoch) if given.

        Raises BrokenImage.
        """
        import torch  # heavy, as joblib is, and describing does without
        from joblib import cpu_count
        from torch.utils.data import DataLoader

        blocks = list(blocks)
        crops = draw_crops(*augment, len(self)) if augment else None
        workers = min(self.workers, cpu_count())
        chunks = [block[i : i + CHUNK] for block in blocks for i in range(0, len(block), CHUNK)]
        loader: Any = DataLoader(
            Reader(self, crops),  # type: ignore[arg-type]
            sampler=chunks,
            batch_size=None,
            num_workers=workers,
            # Named, since in a process of joblib's the default is joblib's own way, which DataLoader cannot use.
            multiprocessing_context=_START if workers else None,
            generator=torch.Generator(),  # or else it would draw from the global one
        )
        parts = iter(loader)
        try:
            for block in blocks:
                yield np.concatenate([_pixels(next(parts)) for _ in range(0, len(block), CHUNK)])
        finally:
            del parts  # ends the workers; a garbage collector, coming later, would wait 5 seconds for them


@dataclass(frozen=True)
class Reader:
    """What a worker does: from the positions of a chunk to its pixels (n, side, side, 3), or to an error's text.

    An exception would come back wrapped in the text of a traceback.
    """

    split: FileSplit
    crops: np.ndarray | None

    def __getitem__(self, chunk: np.ndarray) -> np.ndarray | str:
        try:
            return np.stack([self._picture(position) for position in chunk])
        except BrokenImage as error:
            return str(error)

    def _picture(self, position: int) -> np.ndarray:
        split, prepare = self.split, self.split.preparation
        image = open_rgb(split.root / os.fsdecode(split.names[split.index[position]]))
        if self.crops is None or prepare.resize is None:
            assert prepare.test_resize  # `preparation` leaves none open
            return np.asarray(centre_crop(image, prepare.test_resize, prepare.side))
        return np.asarray(random_crop(image, prepare.resize, prepare.side, *self.crops[position]))


def _pixels(part: Any) -> np.ndarray:
    if isinstance(part, str):
        raise BrokenImage(part)
    return part.numpy()


def open_rgb(path: Path) -> Image.Image:
    """An image file of any mode (greyscale, 16 bits, palette, CMYK, …) as RGB, turned as its orientation tag says.

    Raises BrokenImage.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # on metadata, of which ImageNet has odd ones
            image.load()
            with suppress(Exception):  # of damaged metadata, which say nothing then
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode in ("I", "F"):
                raise ValueError(f"pixels of 32 bits, mode {image.mode}, without a known range")
            if image.mode.startswith("I;16"):  # which convert() would cut off at 255
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # Pillow raises a dozen kinds for a damaged file
        reason = one_line(error)
        raise BrokenImage(f"{path}: cannot be read as an image ({reason}); replace or remove it") from None


def draw_crops(seed: int, epoch: int, count: int) -> np.ndarray:
    """Per image, uniform in [0, 1): size, top, left and flip for one epoch, (count, 4)."""
    return stream(seed, epoch, AUGMENT).random_sample((count, 4))


def random_crop(
    image: Image.Image, resize: Sequence[int], side: int, size: float, top: float, left: float, flip: float
) -> Image.Image:
    """Scale augmentation (He et al. 2015a): a shorter side of `resize[0]` to `resize[1]`, a crop, a flip by halves.

    `size`, `top`, `left` and `flip` in [0, 1) choose among what there is.
    """
    image = _resized(image, resize[0] + int(size * (resize[1] - resize[0] + 1)))
    x, y = int(left * (image.width - side + 1)), int(top * (image.height - side + 1))
    image = image.crop((x, y, x + side, y + side))
    return ImageOps.mirror(image) if flip < 0.5 else image


def centre_crop(image: Image.Image, resize: int, side: int) -> Image.Image:
    """The shorter side resized to `resize`, and the middle of that."""
    image = _resized(image, resize)
    x, y = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((x, y, x + side, y + side))


def _resized(image: Image.Image, shorter: int) -> Image.Image:
    least = min(image.size)
    size = (shorter * image.width // least, shorter * image.height // least)
    return image.resize(size, Image.Resampling.BILINEAR)
