"""The image files below a folder, in torchvision's order, less what is hidden or an operating system's own."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from smallbatch.errors import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
OTHERS = (".gif", ".jfif", ".jpe", ".jp2", ".heic", ".heif", ".avif", ".jxl", ".tga")  # images, but not read
# What systems and network disks leave in folders, beside names with a dot.
_SYSTEMS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")


def entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What is in a folder, by name. Raises ConfigError for a link that leads nowhere, OSError."""
    with os.scandir(folder) as found:
        visible = [entry for entry in found if entry.name[0] != "." and entry.name.lower() not in _SYSTEMS]
    for entry in visible:
        if entry.is_symlink():
            try:
                entry.stat()
            except OSError as error:
                why = f"is a link to {os.readlink(entry.path)}: {error.strerror}"
                raise ConfigError(f"{entry.path}: {why}; mend or remove it") from None
    return sorted(visible, key=lambda entry: entry.name)


def images(folder: str, above: frozenset[str], left_out: Counter[str]) -> Iterator[tuple[str, int]]:
    """Path and size of each image file in a folder and below it, links followed.

    `above`: the real paths of what holds the folder; `left_out` counts suffixes of images that are not read. Raises
    ConfigError for what cannot be right, such as a link that circles, OSError.
    """
    for place, names in sorted(_walk(folder, above)):
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES:
                path = os.path.join(place, name)
                yield path, _size(path)
            left_out[suffix] += suffix in OTHERS


def _walk(folder: str, above: frozenset[str]) -> Iterator[tuple[str, list[str]]]:
    here = os.path.realpath(folder)
    if here in above:
        raise ConfigError(f"{folder}: is a link back to {here}, which holds it; remove it")
    found = entries(folder)
    yield folder, [entry.name for entry in found if not entry.is_dir()]
    for entry in found:
        if entry.is_dir():
            yield from _walk(entry.path, above | {here})


def _size(path: str) -> int:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: holds no data, as a pipe or a device; remove it")
    if not found.st_size:
        raise ConfigError(f"{path}: is an empty file; replace or remove it")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{path}: Permission denied")
    return found.st_size
