"""What arrays must be to be trained on, what only looks doubtful, and how to mend it."""

from collections import Counter
from pathlib import Path

import numpy as np

from smallbatch.data.sources import ARRAYS
from smallbatch.errors import ConfigError

SPREAD = 3  # outputs for each class that is there, above which labels are taken for codes, not numbers of classes
COPIES = 0.01  # of the training images: from here on copies change what an epoch is
FEW = 5  # names in a list, then how many more

Arrays = dict[str, np.ndarray]


def check(path: Path, arrays: Arrays) -> int:
    """Refuse arrays that cannot be right; make labels int64, in place; the number of classes. Raises ConfigError."""
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise ConfigError(f"{path}: has no array {', '.join(missing)}; it needs {', '.join(ARRAYS)}")
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if wrong := _wrong_images(images, len(labels) if labels.ndim else 0):
            raise ConfigError(f"{path}: {split}_images {wrong}")
        if wrong := _wrong_labels(labels, len(images)):
            raise ConfigError(f"{path}: {split}_labels {wrong}")
    train, test = arrays["train_images"].shape[1:], arrays["test_images"].shape[1:]
    if train != test:
        raise ConfigError(f"{path}: train and test images differ in shape: {_size(train)} and {_size(test)}")
    classes = _count_classes(path, arrays)
    for name in ("train_labels", "test_labels"):
        arrays[name] = arrays[name].astype(np.int64)
    return classes


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}×{shape[1]} of {shape[2]} channel{'s' * (shape[2] != 1)}"


def _wrong_images(images: np.ndarray, labels: int) -> str:
    """What is wrong with the images of a split, and what to do; nothing if they may be right."""
    what = f"is {images.dtype} of shape {images.shape}"
    if images.ndim != 4 or 0 in images.shape or images.dtype != np.uint8:
        return f"{what}; it must be uint8 (N, H, W, C){_mend_shape(images) or _mend_pixels(images)}"
    if len(images) != labels == images.shape[3]:
        return f"{what}, which looks like (H, W, C, N); turn it: np.moveaxis(images, -1, 0)"
    channels, height, width = images.shape[1:]
    if channels <= 4 < width and max(height, width) <= 4 * min(height, width):
        return (
            f"{what}, which looks like (N, C, H, W); turn it: np.moveaxis(images, 1, -1) "
            f"(if it has {width} channels, swap height and width)"
        )
    return ""


def _mend_shape(images: np.ndarray) -> str:
    if 0 in images.shape:
        return ", and not empty"
    if images.ndim == 3:
        return "; of grey images that is images[..., None]"
    return "; reshape each row to the image that it is" if images.ndim == 2 else ""


def _mend_pixels(images: np.ndarray) -> str:
    """How pixels of another type become what uint8 means, 0 for black and 255 for the brightest."""
    if images.dtype.kind not in "buif":
        return ""
    if not np.isfinite(images).all():
        return "; it has NaN or infinite values: find out why, or leave those images out"
    low, high = images.min(), images.max()
    if images.dtype.kind == "b":
        return ": images.astype('uint8') * 255"
    if low < 0:
        return f"; from {low:.4g} to {high:.4g}: give the pixels as they were before, since training normalises them"
    if images.dtype.kind == "f" and high <= 1:
        return ": np.rint(255 * images).astype('uint8')"
    if high <= 255:
        return f": {'np.rint(images)' if images.dtype.kind == 'f' else 'images'}.astype('uint8')"
    return f"; from {low:.6g} to {high:.6g}: scale that to 0 … 255, as (images // 257).astype('uint8') does 16 bits"


def _wrong_labels(labels: np.ndarray, count: int) -> str:
    """What is wrong with the labels of a split, and what to do; nothing if they may be right."""
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        mend = _mend_kind(labels) if labels.shape == (count,) else _mend_columns(labels)
        return f"is {labels.dtype} of shape {labels.shape}; it must be integers ({count},), one an image{mend}"
    if labels.min() < 0:
        return f"has the negative label {labels.min()}; number classes from 0, and leave out images that have none"
    return ""


def _mend_columns(labels: np.ndarray) -> str:
    if labels.ndim != 2:
        return ""
    return ": labels.ravel()" if labels.shape[1] == 1 else "; of a column a class that is labels.argmax(axis=1)"


def _mend_kind(labels: np.ndarray) -> str:
    if labels.dtype.kind in "US":
        return "; np.unique(labels, return_inverse=True)[1] numbers them"
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        return "; it has NaN or infinite values: leave out images without a label"
    if labels.dtype.kind == "f" and (labels % 1 != 0).any():
        return "; it has fractions: classes are no measured values"
    return ": labels.astype(int)" if labels.dtype.kind in "bf" else ""


def _count_classes(path: Path, arrays: Arrays) -> int:
    """How many outputs a network needs: as many as `classes` has names, or one more than the highest label."""
    names = arrays.pop("classes", None)
    there = [set(np.unique(arrays[f"{split}_labels"]).tolist()) for split in ("train", "test")]
    used = sorted(there[0] | there[1])
    if names is not None and names.ndim != 1:
        raise ConfigError(f"{path}: classes has shape {names.shape}; it must be the names, (classes,)")
    classes = used[-1] + 1 if names is None else len(names)
    if used[-1] >= classes:
        raise ConfigError(f"{path}: label {used[-1]} is out of range for {classes} classes")
    if names is None and classes > SPREAD * len(used):
        raise ConfigError(
            f"{path}: {len(used)} different labels go up to {used[-1]}; number them from 0: "
            "np.searchsorted(np.unique(train_labels), labels); or name all in an array `classes`"
        )
    if len(there[0]) < 2:
        raise ConfigError(
            f"{path}: all training images are of class {min(there[0])}; there must be at least two classes"
        )
    return int(classes)


def doubts(arrays: Arrays, classes: int, digests: dict[str, list[bytes]]) -> list[str]:
    """What is odd about arrays that can be trained on, each in a few words; `digests` are of the images alone."""
    found = (*_odd_shape(arrays), *_odd_pixels(arrays), *_odd_classes(arrays, classes), *_odd_copies(arrays, digests))
    return [doubt for doubt in found if doubt]


def _odd_shape(arrays: Arrays) -> list[str]:
    height, width, channels = arrays["train_images"].shape[1:]
    planes = height <= 4 and (channels > 4 or (height in (1, 3) and width == channels != height))
    return [f"images are {_size((height, width, channels))}: if they are (N, C, H, W), turn them"] if planes else []


def _odd_pixels(arrays: Arrays) -> list[str]:
    images, found = arrays["train_images"], []
    if images.max() <= 1:
        found.append("no pixel is above 1 of 255: scale them before they become uint8")
    channels = images.shape[-1]
    first = images[0, 0, 0]
    same = [(images[0, ..., c] == first[c]).all() and (images[..., c] == first[c]).all() for c in range(channels)]
    if any(same):
        found.append(f"of {channels} channels {sum(same)} never {'varies' if sum(same) == 1 else 'vary'}")
    return found


def _odd_classes(arrays: Arrays, classes: int) -> list[str]:
    train, test = (np.bincount(arrays[f"{split}_labels"], minlength=classes) for split in ("train", "test"))
    neither, unseen, untested = (train + test == 0), (train == 0) & (test > 0), (train > 0) & (test == 0)
    found = []
    if neither.any():
        found.append(f"{_named(neither)} no image{' (labels count from 0)' if neither[0] else ''}")
    if unseen.any():
        found.append(f"{_named(unseen)} no training image, but {test[unseen].sum()} of {test.sum()} test images")
    if untested.any():
        found.append(f"{_named(untested)} no test image")
    return found


def _named(chosen: np.ndarray) -> str:
    numbers = [str(number) for number in np.flatnonzero(chosen)]
    more = f" and {len(numbers) - FEW} more" if len(numbers) > FEW else ""
    return f"class {numbers[0]} has" if len(numbers) == 1 else f"classes {', '.join(numbers[:FEW])}{more} have"


def _odd_copies(arrays: Arrays, digests: dict[str, list[bytes]]) -> list[str]:
    train, test = digests["train"], digests["test"]
    times = Counter(train)
    found = tell_shared(sum(digest in times for digest in test), len(test))
    labelled = Counter(digest for digest, _ in set(zip(train, arrays["train_labels"].tolist(), strict=True)))
    if contrary := sum(times[digest] for digest, labels in labelled.items() if labels > 1):
        found.append(f"{contrary} of {len(train)} training images are there under another label too")
    if (copies := len(train) - len(times)) >= COPIES * len(train):
        found.append(f"{copies} of {len(train)} training images are copies of others")
    return found


def tell_shared(shared: int, test: int) -> list[str]:
    """That some test images are training images, if any are."""
    return [f"{shared} of {test} test images are training images"] if shared else []
