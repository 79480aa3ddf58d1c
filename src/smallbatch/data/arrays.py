"""Images as memory-mapped arrays that parallel runs share, named by a fingerprint of their content."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from smallbatch.config import Preparation
from smallbatch.data import cache, folders
from smallbatch.data.augment import crop_and_flip, draw_shifts
from smallbatch.data.checks import check, doubts, tell_shared
from smallbatch.data.folders import FileSplit
from smallbatch.data.sources import ARRAYS, PUBLISHED
from smallbatch.errors import ConfigError, one_line
from smallbatch.targets import check_call, locate

# Bytes of files to read for test images that are training images: above, they are not; above, the result is kept.
MOST, WORTH_KEEPING = 2**32, 2**24


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
    """What a run's identity and checks need to know of its data, without reading the images.

    `notice`: one line on what is doubtful about them, or nothing. `path`: where they come from; of an .npz, `folder`
    has its arrays, with `checksums`.
    """

    name: str
    folder: Path
    fingerprint: str
    classes: int
    train_size: int
    test_size: int
    full: tuple[int, int]
    preparation: Preparation | None = None  # of image files
    shape: tuple[int, ...] = ()  # (H, W, C)
    notice: str = ""
    path: Path = Path()
    checksums: tuple[int, ...] = ()

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
        raise ConfigError(f"{error.filename or data['root']}: {error.strerror or error}") from None
    classes, full = meta["classes"], (meta["train"], meta["test"])
    name = data.get("name") or data["_target_"].rpartition(".")[2]
    # What lies in the published sets is known, and theirs: see conf/README.md.
    doubts = [] if PUBLISHED.get(name, ())[1:] == (classes, *full) else meta["doubts"]
    return Description(
        name,
        folder,
        meta["fingerprint"],
        classes,
        _size(data, "train_size", meta["train"], classes),
        _size(data, "test_size", meta["test"], classes),
        full,
        preparation,
        (preparation.side, preparation.side, 3) if preparation else tuple(meta["shape"]),
        f"{meta['path']}: {'; '.join(doubts)}" if doubts else "",
        meta["path"],
        tuple(meta.get("checksums", ())),
    )


def _size(data: dict[str, Any], name: str, whole: int, classes: int) -> int:
    """How many images of a split are used: as many as the config says, or all. Raises ConfigError."""
    given, least = data.get(name), min(classes, whole)
    if given is not None and not least <= given <= whole:
        raise ConfigError(
            f"data.{name}={given}: must lie between {least}, one a class, and {whole}, all images; "
            f"data.{name}=null takes all"
        )
    return whole if given is None else given


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


def notice(cfg: DictConfig) -> str:
    """One line on what is doubtful about the images of a config, or nothing. Raises ConfigError."""
    return describe(OmegaConf.to_container(cfg.data, resolve=True)).notice  # type: ignore[arg-type]


def load(description: Description, workers: int = 0) -> Images:
    """Choose the subsets: memory-mapped arrays, or image files that `workers` processes will read."""
    prepare = description.preparation
    if prepare is None:
        return _load_arrays(description)
    found = folders.listing(description.folder)
    train, test = (
        FileSplit(description.folder, part.names, part.labels, stratified(part.labels, size), prepare, workers)
        for part, size in ((found.train, description.train_size), (found.test, description.test_size))
    )
    return Images(train, test, found.classes, 255 * np.array(prepare.mean), 255 * np.array(prepare.std))


@lru_cache(maxsize=2)
def _load_arrays(description: Description) -> Images:
    """Kept, since the checksums and the statistics take a pass over the images each. Raises ConfigError."""
    folder, sums = description.folder, list(description.checksums)
    if cache.checksums(folder) != sums and _unpack(description.path, folder.parent)["checksums"] != sums:
        raise ConfigError(f"{description.path}: has changed since this command began; give it again")
    train_images, train_labels, test_images, test_labels = (
        np.load(file, mmap_mode="r") for file in cache.files(folder)
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
    arguments = json.loads(source)
    path, root = _call(arguments), Path(arguments["root"]) / "unpacked"
    found = folders.listing(path)
    sizes = {"train": len(found.train.labels), "test": len(found.test.labels)}
    doubts = [*found.doubts, *tell_shared(_shared(path, root, found), sizes["test"])]
    meta = {"fingerprint": found.fingerprint, "classes": found.classes, **sizes, "doubts": doubts, "path": path}
    return path, meta


def _shared(path: Path, root: Path, found: folders.Listing) -> int:
    """How many test images are training images; 0 if that takes too long. It is kept if it takes a while."""
    some = zip((found.train, found.test), folders.alike(found), strict=True)
    size = sum(part.sizes[chosen].sum() for part, chosen in some)
    stamp = {"path": str(path.resolve()), "fingerprint": found.fingerprint}
    if size > MOST:
        return 0
    if size > WORTH_KEEPING and (known := cache.recall(root, path, stamp)):
        return int(known["shared"])
    number = folders.shared(path, found)
    if size > WORTH_KEEPING:
        with suppress(OSError):
            cache.remember(root, path, stamp, {"shared": number})
    return number


@lru_cache(maxsize=32)
def _unpacked(source: str) -> tuple[Path, dict[str, Any]]:
    """Folder of .npy files for a source (as JSON), and what is in it."""
    arguments = json.loads(source)
    path, root = _call(arguments), Path(arguments["root"]) / "unpacked"
    stat = path.stat()
    stamp = {"path": str(path.resolve()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    meta = cache.recall(root, path, stamp)
    if meta is None or not all(file.exists() for file in cache.files(root / meta["fingerprint"])):
        meta = _unpack(path, root)
        cache.remember(root, path, stamp, meta)
    return root / meta["fingerprint"], meta | {"path": path}


def _unpack(path: Path, root: Path) -> dict[str, Any]:
    """Write the arrays of an .npz to files, and tell what is in them. Raises ConfigError, OSError."""
    arrays, classes = _read_npz(path)
    fingerprint, digests = _sort_and_fingerprint(arrays, classes)
    sizes = {split: len(arrays[f"{split}_labels"]) for split in ("train", "test")}
    what = {"fingerprint": fingerprint, "classes": classes, **sizes, "shape": arrays["train_images"].shape[1:]}
    return what | {"doubts": doubts(arrays, classes, digests), "checksums": cache.write(root / fingerprint, arrays)}


def _call(arguments: dict[str, Any]) -> Path:
    """Call the source function that `_target_`, which is taken out, names with its arguments."""
    function = locate(arguments.pop("_target_"), "data")
    check_call(function, arguments, "data")
    return Path(function(**arguments))


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """The four arrays, checked, labels as int64, and the number of classes."""
    if not path.is_file():
        what = "a folder; folders of images are data=folder" if path.is_dir() else "no file at all"
        raise ConfigError(f"{path}: not a readable .npz, but {what}")
    try:
        with path.open("rb") as opened, zipfile.ZipFile(opened), np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*ARRAYS, "classes") if name in file}
    except PermissionError:
        raise
    except Exception as error:  # a damaged zip raises a dozen kinds: OSError, ValueError, zlib.error, …
        pickled = "allow_pickle" in str(error)
        why = "it holds Python objects, which are never unpickled" if pickled else one_line(error)
        mend = "save numbers, and names as strings" if pickled else "is it complete?"
        raise ConfigError(f"{path}: not a readable .npz ({why}); {mend}") from None
    return arrays, check(path, arrays)


def _sort_and_fingerprint(arrays: dict[str, np.ndarray], classes: int) -> tuple[str, dict[str, list[bytes]]]:
    """Put each split in the order of its images' hashes, in place; sixteen hex digits over the hashes.

    So copies of a data set that differ in order only are one data set: same key, subset and result. With them the
    hashes of the images alone, in the new order.
    """
    whole, alone = hashlib.sha256(), {}
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        pixels, digests = [], []
        for image, label in zip(images, labels, strict=True):
            digest = hashlib.sha256(image.tobytes())
            pixels.append(digest.digest())
            digest.update(label.tobytes())
            digests.append(digest.hexdigest())
        order = np.argsort(digests, kind="stable")
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[order], labels[order]
        alone[split] = [pixels[row] for row in order]
        whole.update(f"{split} {images.shape} {' '.join(digests[row] for row in order)}".encode())
    if classes > 1 + max(int(arrays[f"{split}_labels"].max()) for split in ("train", "test")):
        whole.update(f"{classes} classes".encode())  # more outputs than the labels show
    return whole.hexdigest()[:16], alone
