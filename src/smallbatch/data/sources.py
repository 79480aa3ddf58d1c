"""Where images come from. Each function returns a path; a data config names one as `_target_`.

It is of a folder (see `folders.py`) where the config has a `side`, else of an .npz, which holds train_images
(N, H, W, C) uint8, train_labels (N,) integers, test_images, test_labels and, if known, classes (names by label).
"""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from smallbatch.errors import ConfigError
from smallbatch.files import replacing

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

# The binary archives, since the Python ones would have to be unpickled.
# Addresses and MD5 sums: https://www.cs.toronto.edu/~kriz/cifar.html
URL = "https://www.cs.toronto.edu/~kriz/"
_CIFAR: dict[str, dict[str, Any]] = {
    "cifar10": {
        "archive": "cifar-10-binary.tar.gz",
        "md5": "c32a1d4ab5d03f1284b67883e8d87530",
        "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test": ["test_batch.bin"],
        "names": "batches.meta.txt",
        "label_bytes": 1,
    },
    "cifar100": {
        "archive": "cifar-100-binary.tar.gz",
        "md5": "03b5dce01913d631647c71ecec9e9cb8",
        "train": ["train.bin"],
        "test": ["test.bin"],
        "names": "fine_label_names.txt",
        "label_bytes": 2,  # coarse, then fine: the fine one is used
    },
}

# (H, W, C), classes, training and test images
PUBLISHED = {
    "cifar10": ((32, 32, 3), 10, 50_000, 10_000),
    "cifar100": ((32, 32, 3), 100, 50_000, 10_000),
    "imagenet": ((224, 224, 3), 1000, 1_281_167, 50_000),
}


def digits(root: str, enlarge: int = 4) -> Path:
    """scikit-learn's handwritten digits, 8×8 scans enlarged, 32×32×1 by default; 1,437 train, 360 test, stratified."""
    path = Path(root) / ("digits.npz" if enlarge == 4 else f"digits{8 * enlarge}.npz")
    if not path.exists():
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        scans = load_digits()
        levels = np.rint(scans.images * (255 / 16)).astype(np.uint8)
        images = levels.repeat(enlarge, axis=1).repeat(enlarge, axis=2)[..., None]
        train, test, train_labels, test_labels = train_test_split(
            images, scans.target.astype(np.int64), test_size=360, random_state=0, stratify=scans.target
        )
        _save(path, train, train_labels, test, test_labels, np.array([str(i) for i in range(10)]))
    return path


def arrays(root: str, path: str) -> Path:
    """Your own .npz: `path`, as given or below `root`."""
    return _found(root, path, "file")


def folder(root: str, path: str) -> Path:
    """Your own folder of image files: `path`, as given or below `root`."""
    found = _found(root, path, "folder")
    if not found.is_dir():
        raise ConfigError(f"data.path={path}: is a file, no folder; .npz files are data=arrays")
    return found


def _found(root: str, path: str, kind: str) -> Path:
    for place in (Path(path), Path(root) / path):
        try:
            place.stat()
        except OSError as error:
            if place.is_symlink():
                raise ConfigError(f"{place}: is a link to {place.readlink()}: {error.strerror}") from None
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise ConfigError(f"{place}: {error.strerror}") from None
        else:
            return place
    raise ConfigError(f"data.path={path}: no such {kind}, neither as given nor in data.root={root}")


def cifar10(root: str) -> Path:
    """`root`/cifar10.npz, made from the published binary archive if it is not there."""
    return _cifar("cifar10", Path(root))


def cifar100(root: str) -> Path:
    """`root`/cifar100.npz (fine labels), made from the published binary archive if it is not there."""
    return _cifar("cifar100", Path(root))


def _cifar(name: str, root: Path) -> Path:
    path = root / f"{name}.npz"
    if path.exists():
        return path
    spec = _CIFAR[name]
    from torchvision.datasets.utils import download_url

    try:
        download_url(URL + spec["archive"], str(root), md5=spec["md5"])  # unless it is there, whole
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"{path}: not there, and the download failed ({error}); put {name}.npz "
            f"or {spec['archive']} (from {URL}) into {root}/"
        ) from None
    with tarfile.open(root / spec["archive"]) as tar:
        files = ((member.name, tar.extractfile(member)) for member in tar)
        members = {Path(name).name: file.read() for name, file in files if file}
    train, test = (_parse(members, spec[split], spec["label_bytes"]) for split in ("train", "test"))
    _save(path, *train, *test, np.array(members[spec["names"]].decode().split()))
    return path


def _parse(members: dict[str, bytes], names: list[str], label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Records of label byte(s) and 3,072 bytes, red plane first → (N, 32, 32, 3) images and labels."""
    raw = np.frombuffer(b"".join(members[n] for n in names), np.uint8).reshape(-1, label_bytes + 3072)
    images = raw[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), raw[:, label_bytes - 1].astype(np.int64)


def _save(path: Path, *arrays: Any) -> None:
    """Write `ARRAYS`, in their order, and the names of the classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **dict(zip((*ARRAYS, "classes"), arrays, strict=True)))
