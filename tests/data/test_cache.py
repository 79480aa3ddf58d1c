"""What is kept in data/unpacked: damage is found and mended, and a write that breaks off does no harm."""

import os

import numpy as np
import pytest

from smallbatch.data import arrays, cache, describe, load
from smallbatch.errors import ConfigError

NAMES = ("train_images", "train_labels", "test_images", "test_labels")


def source(path) -> dict:
    return {"_target_": "smallbatch.data.sources.arrays", "root": str(path.parent), "path": str(path)}


@pytest.fixture
def read(write_npz):
    """The pixels and labels of an .npz as a new process reads them, and the folder that it is unpacked in."""
    path = write_npz()

    def pixels():
        arrays._unpacked.cache_clear()
        arrays._load_arrays.cache_clear()
        found = describe(source(path))
        images = load(found)
        return found.folder, [part.tobytes() for split in (images.train, images.test) for part in
                              (split.images, split.labels)]  # fmt: skip

    return pixels


def flip(file) -> None:
    """One bit, in the middle of the content; the time of the change stays."""
    stat, whole = file.stat(), bytearray(file.read_bytes())
    whole[-len(whole) // 4] ^= 1
    file.write_bytes(whole)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


DAMAGE = {
    "a bit": flip,
    "the end": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "more": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "the head": lambda file: file.write_bytes(b"\0" + file.read_bytes()[1:]),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_unpacked_again(read, name, damage):
    folder, expected = read()
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    DAMAGE[damage](folder / f"{name}.npy")
    assert read() == (folder, expected)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole


def test_a_file_that_is_damaged_between_describing_and_loading_is_unpacked_again(write_npz):
    found = describe(source(write_npz()))
    flip(found.folder / "train_images.npy")
    with np.load(found.path) as file:
        assert sorted(image.tobytes() for image in load(found).train.images) == sorted(
            image.tobytes() for image in file["train_images"]
        )


DAMAGES = [
    lambda note: b"",
    lambda note: b"\xff",
    lambda note: b"0\nnull",
    lambda note: note.partition(b"\n")[2],  # as an earlier version wrote it
    lambda note: note.replace(b'"classes": ', b'"classes": 1'),
    lambda note: note.replace(b"fingerprint", b"fingerprinu"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_note_is_written_again(read, damage):
    folder, expected = read()
    (file,) = folder.parent.glob("*.json")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    assert read() == (folder, expected)
    assert file.read_bytes() == whole


def test_a_write_that_breaks_off_leaves_what_was_there(read, monkeypatch):
    folder, expected = read()
    flip(folder / "test_images.npy")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with monkeypatch.context() as patch:

        def full(file, array):
            file.write(b"half")
            raise OSError(28, "No space left on device", str(folder))

        patch.setattr(np, "save", full)
        with pytest.raises(OSError, match="No space left"):
            read()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert read() == (folder, expected)


def test_a_full_disk_at_first_is_one_line_and_the_same_command_goes_on_with_room(write_npz, monkeypatch):
    path = write_npz()
    with monkeypatch.context() as patch:

        def full(file, array):
            raise OSError(28, "No space left on device")

        patch.setattr(np, "save", full)
        with pytest.raises(ConfigError, match=r"^.*: No space left on device$"):
            describe(source(path))
    assert len(load(describe(source(path))).train) == 20


def test_a_source_that_changes_while_it_is_used_is_not_mixed_with_what_it_was(write_npz):
    found = describe(source(write_npz()))
    write_npz(train_labels=np.arange(20)[::-1] % 4)
    flip(found.folder / "train_images.npy")
    with pytest.raises(ConfigError, match="has changed since this command began"):
        load(found)


def test_the_same_content_is_the_same_bytes_whatever_its_order_in_memory(write_npz):
    with np.load(write_npz()) as file:
        turned = {name: np.asfortranarray(file[name]) for name in NAMES}
    one, other = (describe(source(path)) for path in (write_npz("one.npz"), write_npz("other.npz", **turned)))
    assert (one.folder, one.checksums) == (other.folder, other.checksums)
    assert len(load(one).train) == 20


def test_a_checksum_is_of_the_whole_file(tmp_path):
    file = tmp_path / "long"
    file.write_bytes(bytes(3 * 2**20))
    first = cache._checksum(file)
    flip(file)
    assert cache._checksum(file) != first
    assert cache._checksum(tmp_path / "absent") == -1
