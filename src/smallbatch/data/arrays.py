"""Images as memory-mapped arrays that parallel runs share, named by a fingerprint of their content."""

import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from smallbatch.compose import check_call, locate
from smallbatch.config import Preparation
from smallbatch.data import folders
from smallbatch.data.augment import crop_and_flip, draw_shifts
from smallbatch.data.folders import FileSplit
from smallbatch.data.sources import ARRAYS, PUBLISHED
from smallbatch.errors import ConfigError
from smallbatch.files import write_text


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) uint8, memory-mapped; labels (N,); `index`: the rows that are used."""

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    def read(self, blocks: Iterable[np.ndarray], augment: tuple[int, int] | None) -> Iterator[np.ndarray]:
        """For each block of positions in `index` its pixels (B, H, W, C); augmented as of (seed, epoch) if given."""
        shifts = draw_shifts(*augment, len(self)) if augment else None
        for chosen in blocks:
            pixels = self.images[self.index[chosen]]
            yield pixels if shifts is None else crop_and_flip(pixels, shifts[chosen])


@dataclass(frozen=True)
class Images:
    """A data set ready to train on; `mean` and `std` (C,) in [0, 255] are of the used training images, or as given."""

    train: Split | FileSplit
    test: Split | FileSplit
    classes: int
    mean: np.ndarray
    std: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of an image as the network sees it."""
        return self.train.shape

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Channels, classes and how many training images: what a network and its schedule depend on."""
        return self.channels, self.classes, len(self.train)

    @property
    def channels(self) -> int:
        return self.shape[-1]


@dataclass(frozen=True)
class Description:
    """What a run's identity and checks need to know of its data, without reading the images."""

    name: str
    folder: Path
    fingerprint: str
    classes: int
    train_size: int
    test_size: int
    full: tuple[int, int]
    preparation: Preparation | None = None  # of image files
    shape: tuple[int, ...] = ()  # (H, W, C)

    @property
    def identity(self) -> dict[str, Any]:
        """The data's share of a run: content, the subset if it is one, and how image files are prepared."""
        sizes = (self.train_size, self.test_size)
        train, test = (None if used == whole else used for used, whole in zip(sizes, self.full, strict=True))
        identity = {"name": self.name, "fingerprint": self.fingerprint, "train_size": train, "test_size": test}
        return identity | (asdict(self.preparation) if self.preparation else {})


def describe(data: dict[str, Any]) -> Description:
    """Find, check and unpack the data of a `data` config, once per content.

    Raises ConfigError if the source or a size is wrong.
    """
    ours = ("name", "augment", "train_size", "test_size", *folders.SETTINGS)
    source = json.dumps({k: v for k, v in data.items() if k not in ours}, sort_keys=True)
    preparation = folders.preparation(data)
    try:
        folder, meta = _listed(source) if preparation else _unpacked(source)
    except OSError as error:
        raise ConfigError(f"data.root={data['root']}: {error}") from None
    classes, full, sizes = meta["classes"], (meta["train"], meta["test"]), []
    for split, whole in zip(("train", "test"), full, strict=True):
        given = data.get(f"{split}_size")
        sizes.append(whole if given is None else given)
        if not classes <= sizes[-1] <= whole:
            raise ConfigError(
                f"data.{split}_size={sizes[-1]}: must lie between {classes} (the classes) and {whole} (the images); "
                f"data.{split}_size=null takes all"
            )
    name = data.get("name") or data["_target_"].rpartition(".")[2]
    shape = (preparation.side, preparation.side, 3) if preparation else meta["shape"]
    return Description(name, folder, meta["fingerprint"], classes, sizes[0], sizes[1], full, preparation, shape)


def published(data: dict[str, Any], fingerprint: str) -> Description | None:
    """What CIFAR or ImageNet will be once it is on this machine; None if it is here, and for other data."""
    known = PUBLISHED.get(data["name"])
    root, path = Path(data["root"]), data.get("path")
    here = [Path(path), root / path] if path else [root / f"{data['name']}.npz"]
    if known is None or any(place.exists() for place in here):
        return None
    shape, classes, train, test = known
    preparation = folders.preparation(data)
    shape = (preparation.side, preparation.side, 3) if preparation else shape
    sizes = (data["train_size"] or train, data["test_size"] or test)
    return Description(data["name"], Path(), fingerprint, classes, *sizes, (train, test), preparation, shape)


def load_images(cfg: DictConfig) -> Images:
    """The images of a config. Raises ConfigError if they cannot be found, or are wrong."""
    data: Any = OmegaConf.to_container(cfg.data, resolve=True)
    return load(describe(data), cfg.machine.workers)


def load(description: Description, workers: int = 0) -> Images:
    """Choose the subsets: memory-mapped arrays, or image files that `workers` processes will read."""
    prepare = description.preparation
    if prepare is None:
        return _load_arrays(description)
    if workers < 0:
        raise ConfigError(f"machine.workers={workers}: must be zero or more")
    found = folders.listing(description.folder)
    train, test = (
        FileSplit(description.folder, part.names, part.labels, stratified(part.labels, size), prepare, workers)
        for part, size in ((found.train, description.train_size), (found.test, description.test_size))
    )
    return Images(train, test, found.classes, 255 * np.array(prepare.mean), 255 * np.array(prepare.std))


@lru_cache(maxsize=2)
def _load_arrays(description: Description) -> Images:
    """Kept, since the statistics take a pass over the images."""
    train_images, train_labels, test_images, test_labels = (
        np.load(description.folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS
    )
    train = Split(train_images, train_labels, stratified(train_labels, description.train_size))
    test = Split(test_images, test_labels, stratified(test_labels, description.test_size))
    mean, std = channel_statistics(train)
    return Images(train, test, description.classes, mean, std)


def stratified(labels: np.ndarray, size: int) -> np.ndarray:
    """`size` rows, each class in its share to within one image; the same rows whatever the seed of a run."""
    if size == len(labels):
        return np.arange(size)
    # RandomState's stream is frozen by NumPy (NEP 19), so a subset is the same for years.
    order = np.random.RandomState(0).permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    quota, rest = np.divmod(counts * size, len(labels))
    quota[np.argsort(-rest, kind="stable")[: size - quota.sum()]] += 1  # largest remainders
    members = (order[labels[order] == label] for label in classes)
    return np.sort(np.concatenate([some[:n] for some, n in zip(members, quota, strict=True)]))


def channel_statistics(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) of a split's pixels, from exact integer sums."""
    channels = split.images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(split), 1000):
        chunk = split.images[split.index[start : start + 1000]]
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256)
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = counts @ values**2 / total - mean**2
    return mean, np.maximum(np.sqrt(variance), 1.0)  # a constant channel is centred, not blown up


@lru_cache(maxsize=32)
def _listed(source: str) -> tuple[Path, dict[str, Any]]:
    """The folder of image files that a source (as JSON) names, and what is in it."""
    root = _call(json.loads(source))
    found = folders.listing(root)
    sizes = {"train": len(found.train.labels), "test": len(found.test.labels)}
    return root, {"fingerprint": found.fingerprint, "classes": found.classes, **sizes}


@lru_cache(maxsize=32)
def _unpacked(source: str) -> tuple[Path, dict[str, Any]]:
    """Folder of .npy files for a source (as JSON), and what is in it."""
    arguments = json.loads(source)
    path, root = _call(arguments), Path(arguments["root"]) / "unpacked"
    stat, place = path.stat(), str(path.resolve())
    stamp = {"path": place, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    note = root / f"{path.stem}-{hashlib.sha256(place.encode()).hexdigest()[:8]}.json"
    meta = _read_note(note, stamp)
    if meta is None or not _is_whole(root / meta["fingerprint"]):
        arrays, classes = _read_npz(path)
        sizes = {split: len(arrays[f"{split}_labels"]) for split in ("train", "test")}
        meta = {"fingerprint": _sort_and_fingerprint(arrays, classes), "classes": classes, **sizes, "stamp": stamp}
        _unpack(arrays, root / meta["fingerprint"])
        write_text(note, json.dumps(meta))
    folder = root / meta["fingerprint"]
    return folder, meta | {"shape": np.load(folder / "train_images.npy", mmap_mode="r").shape[1:]}


def _call(arguments: dict[str, Any]) -> Path:
    """Call the source function that `_target_`, which is taken out, names with its arguments."""
    function = locate(arguments.pop("_target_"), "data")
    check_call(function, arguments, "data")
    return Path(function(**arguments))


def _read_note(note: Path, stamp: dict[str, Any]) -> dict[str, Any] | None:
    try:
        known = json.loads(note.read_text())
        return known if known["stamp"] == stamp else None
    except (OSError, ValueError, KeyError):
        return None


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """The four arrays, checked, labels as int64, and the number of classes."""
    try:
        with path.open("rb") as opened, zipfile.ZipFile(opened), np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*ARRAYS, "classes") if name in file}
    except Exception as error:  # a damaged zip raises a dozen kinds: OSError, ValueError, zlib.error, …
        raise ConfigError(f"{path}: not a readable .npz ({error}); is it complete?") from None
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise ConfigError(f"{path}: has no array {', '.join(missing)}; it needs {', '.join(ARRAYS)}")
    for split in ("train", "test"):
        _check_split(path, split, arrays[f"{split}_images"], arrays[f"{split}_labels"])
        arrays[f"{split}_labels"] = arrays[f"{split}_labels"].astype(np.int64)
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise ConfigError(f"{path}: train and test images differ in shape")
    names = arrays.pop("classes", None)
    highest = max(int(arrays[f"{split}_labels"].max()) for split in ("train", "test"))
    if names is not None and names.ndim != 1:
        raise ConfigError(f"{path}: classes has shape {names.shape}; it must be the names, (classes,)")
    classes = highest + 1 if names is None else len(names)
    if highest >= classes:
        raise ConfigError(f"{path}: label {highest} is out of range for {classes} classes")
    return arrays, classes


def _check_split(path: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape:
        raise ConfigError(
            f"{path}: {split}_images is {images.dtype} of shape {images.shape}; it must be uint8 (N, H, W, C)"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise ConfigError(
            f"{path}: {split}_labels is {labels.dtype} of shape {labels.shape}; it must be integers ({len(images)},)"
        )
    if labels.min() < 0:
        raise ConfigError(f"{path}: {split}_labels has the negative label {labels.min()}")


def _sort_and_fingerprint(arrays: dict[str, np.ndarray], classes: int) -> str:
    """Put each split in the order of its images' hashes, in place; sixteen hex digits over the hashes.

    So copies of a data set that differ in order only are one data set: same key, subset and result.
    """
    whole = hashlib.sha256()
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        pairs = zip(images, labels, strict=True)
        digests = np.array([hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest() for image, label in pairs])
        order = np.argsort(digests, kind="stable")
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[order], labels[order]
        whole.update(f"{split} {images.shape} {' '.join(digests[order])}".encode())
    if classes > 1 + max(int(arrays[f"{split}_labels"].max()) for split in ("train", "test")):
        whole.update(f"{classes} classes".encode())  # more outputs than the labels show
    return whole.hexdigest()[:16]


def _unpack(arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Write the .npy folder in a temporary one and move it into place; a second process may win."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        written = Path(temporary, folder.name)
        written.mkdir()  # with the user's umask, unlike the temporary one: others may share the disk
        for name in ARRAYS:
            np.save(written / f"{name}.npy", arrays[name])
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)  # somebody deleted a part of it
        try:
            written.rename(folder)
        except OSError:
            if not folder.exists():
                raise


def _is_whole(folder: Path) -> bool:
    return all((folder / f"{name}.npy").exists() for name in ARRAYS)
