"""Data sets from file to mini-batch: content, subsets, augmentation, order, and what is refused."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from smallbatch.data import Images, Split, arrays, blocks, describe, load, sources
from smallbatch.data.arrays import channel_statistics, stratified
from smallbatch.data.augment import crop_and_flip, draw_shifts
from smallbatch.data.blocks import TestBlocks, TrainBlocks
from smallbatch.errors import ConfigError

NAMES = ("train_images", "train_labels", "test_images", "test_labels")


def source(path, **settings) -> dict:
    """The `data` config of an .npz."""
    return {"_target_": "smallbatch.data.sources.arrays", "root": str(path.parent), "path": str(path), **settings}


# Digits


@pytest.mark.parametrize("enlarge", [4, 2])
def test_digits_are_the_scans_enlarged_each_once(root, enlarge):
    from sklearn.datasets import load_digits

    source = {"_target_": "smallbatch.data.sources.digits", "root": str(root), "enlarge": enlarge}
    images = load(describe(source))
    side = 8 * enlarge
    assert (images.train.images.shape, images.test.images.shape) == ((1437, side, side, 1), (360, side, side, 1))
    assert images.classes == 10
    pixels = np.concatenate([images.train.images, images.test.images])[..., 0]
    labels = np.concatenate([images.train.labels, images.test.labels])
    small = pixels[:, ::enlarge, ::enlarge]
    assert (np.kron(small, np.ones((1, enlarge, enlarge))) == pixels).all()
    scans = load_digits()
    expected = np.column_stack([np.rint(scans.data / 16 * 255), scans.target]).astype(int).tolist()
    assert sorted(np.column_stack([small.reshape(-1, 64), labels]).astype(int).tolist()) == sorted(expected)


def test_digits_are_split_with_each_class_in_its_share(root):
    images = load(describe({"_target_": "smallbatch.data.sources.digits", "root": str(root)}))
    train, test = (np.bincount(split.labels) for split in (images.train, images.test))
    assert (abs(test - (train + test) * 360 / 1797) <= 1).all()


# Subsets


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any), st.integers(0, 9), st.data())
def test_a_subset_holds_every_class_in_its_share_to_within_one_image(counts, seed, data):
    labels = np.random.RandomState(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    size = data.draw(st.integers(1, len(labels)))
    chosen = stratified(labels, size)
    assert len(chosen) == size
    assert (np.diff(chosen) > 0).all()  # sorted, each once
    assert chosen[0] >= 0
    assert chosen[-1] < len(labels)
    share = np.bincount(labels) * size / len(labels)
    assert (abs(np.bincount(labels[chosen], minlength=len(share)) - share) <= 1).all()
    assert (stratified(labels, size) == chosen).all()


def test_a_subset_is_mixed_over_the_file_and_does_not_follow_the_global_generator():
    labels = np.arange(1000) % 10
    np.random.seed(1)
    first = stratified(labels, 100)
    np.random.seed(2)
    assert (stratified(labels, 100) == first).all()
    assert np.histogram(first, 4, (0, 1000))[0].min() > 10


def test_a_balanced_subset_is_exactly_balanced():
    labels = np.arange(50_000) % 10
    assert (np.bincount(labels[stratified(labels, 10_240)]) == 1024).all()


def test_a_subset_is_part_of_the_identity_only_where_it_is_one(write_npz):
    path = write_npz()
    whole = describe(source(path)).identity
    assert (whole["train_size"], whole["test_size"]) == (None, None)
    assert describe(source(path, train_size=20, test_size=10)).identity == whole
    assert describe(source(path, train_size=12, test_size=8)).identity == whole | {"train_size": 12, "test_size": 8}
    images = load(describe(source(path, train_size=12, test_size=8)))
    assert (len(images.train), len(images.test)) == (12, 8)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("size", [-1, 0, 3, 21])
def test_a_subset_below_the_classes_or_above_the_images_is_refused(write_npz, split, size):
    with pytest.raises(ConfigError, match=f"data.{split}_size={size}"):
        describe(source(write_npz(), **{f"{split}_size": size}))


# Statistics


@given(nps.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))))
def test_channel_statistics_are_numpy_s_in_float64_and_never_below_one(pixels):
    mean, std = channel_statistics(Split(pixels, np.zeros(len(pixels), int), np.arange(len(pixels))))
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2), dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(std, np.maximum(pixels.std((0, 1, 2), dtype=np.float64), 1), rtol=1e-11)


def test_channel_statistics_are_of_the_used_rows_alone_over_more_than_one_chunk():
    pixels = np.random.RandomState(0).randint(0, 256, (2500, 2, 2, 3), dtype=np.uint8)
    index = np.arange(0, 2500, 2)
    mean, std = channel_statistics(Split(pixels, np.zeros(2500, int), index))
    np.testing.assert_allclose(mean, pixels[index].mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(std, pixels[index].std((0, 1, 2)), rtol=1e-12)


# Blocks


def images(count: int = 37, seed: int = 0) -> Images:
    """Labels are the images' own numbers, so that a batch says which images it holds."""
    pixels = np.random.RandomState(seed).randint(0, 256, (count, 8, 6, 3), dtype=np.uint8)
    split = Split(pixels, np.arange(count), np.arange(count))
    return Images(split, split, count, np.array([100.0, 120.0, 140.0]), np.array([50.0, 60.0, 70.0]))


def epoch(m: int = 1, augment: bool = True, seed: int = 0, number: int = 0, count: int = 37):
    parts = list(TrainBlocks(images(count), m, augment, seed, number))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@given(nps.arrays(np.uint8, (3, 5, 7, 2)), nps.arrays(np.int64, (3, 2), elements=st.integers(0, 8)), st.data())
def test_crop_and_flip_is_pad_then_slice_then_mirror(pixels, offsets, data):
    flips = data.draw(nps.arrays(np.int64, (3, 1), elements=st.integers(0, 1)))
    out = crop_and_flip(pixels, np.concatenate([offsets, flips], axis=1))
    for image, (top, left), (flip,), got in zip(pixels, offsets, flips, out, strict=True):
        padded = np.zeros((5 + 8, 7 + 8, 2), np.uint8)
        padded[4:-4, 4:-4] = image
        crop = padded[top : top + 5, left : left + 7]
        assert (got == (crop[:, ::-1] if flip else crop)).all()


def test_every_offset_and_flip_is_drawn_about_equally_often():
    """81 crops × 2 over 162,000 images: 1,000 each, within 5 standard deviations."""
    shifts = draw_shifts(0, 0, 162_000)
    _, counts = np.unique(shifts, axis=0, return_counts=True)
    assert (shifts.min(0) == 0).all()
    assert (shifts.max(0) == [8, 8, 1]).all()
    assert len(counts) == 162
    assert abs(counts - 1000).max() < 5 * 1000**0.5


@pytest.mark.parametrize("augment", [False, True])
def test_order_and_augmentation_do_not_depend_on_the_batch_size(augment):
    x, y = epoch(1, augment)
    for m in (2, 5, 8, 37):
        kept = 37 // m * m
        xm, ym = epoch(m, augment)
        assert torch.equal(xm, x[:kept])
        assert torch.equal(ym, y[:kept])


@pytest.mark.parametrize("size", [1, 7, 16, 10**6])
def test_results_do_not_depend_on_the_block_size_and_blocks_hold_whole_mini_batches(monkeypatch, size):
    x, y = epoch(4)
    monkeypatch.setattr(blocks, "BLOCK", size)
    train = TrainBlocks(images(), 4, True, 0, 0)
    parts = list(train)
    assert len(parts) == len(train)
    assert all(len(labels) % 4 == 0 and len(labels) <= max(4, size) for _, labels in parts)
    assert torch.equal(torch.cat([a for a, _ in parts]), x)
    assert torch.equal(torch.cat([b for _, b in parts]), y)
    tests = list(TestBlocks(images()))
    assert len(tests) == len(TestBlocks(images()))
    assert torch.cat([labels for _, labels, _ in tests]).tolist() == list(range(37))


def test_every_epoch_and_seed_is_another_permutation():
    orders = [epoch(seed=seed, number=number)[1].tolist() for seed in (0, 1) for number in (0, 1, 2)]
    assert all(sorted(order) == list(range(37)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6


def test_the_partial_last_batch_is_dropped():
    assert len(epoch(8)[1]) == 32
    assert len(epoch(36)[1]) == 36
    assert len(set(epoch(8)[1].tolist())) == 32


@pytest.mark.parametrize("number", [0, 3])
def test_an_image_s_augmentation_is_its_own_draw_wherever_it_falls_in_the_order(number):
    data, shifts = images(), draw_shifts(7, number, 37)
    x, y = epoch(1, True, seed=7, number=number)
    for got, i in zip(x, y.tolist(), strict=True):
        expected = blocks.normalise(crop_and_flip(data.train.images[i : i + 1], shifts[i : i + 1]), data)[0]
        assert torch.equal(got, expected)


def test_augmentation_changes_with_the_epoch_and_the_seed():
    draws = [draw_shifts(seed, number, 37).tobytes() for seed in (0, 1) for number in (0, 1)]
    assert len(set(draws)) == 4


def test_blocks_follow_no_global_generator_and_move_none():
    x, y = epoch(2)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = np.random.RandomState(3).rand()
    again = epoch(2)
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], y)
    assert np.random.rand() == expected


def test_a_subset_trains_and_tests_on_its_own_rows_alone():
    index = np.array([1, 5, 6, 20])
    split = Split(images().train.images, np.arange(37), index)
    data = Images(split, split, 37, np.zeros(3), np.ones(3))
    for parts in (TrainBlocks(data, 2, False, 0, 0), TestBlocks(data)):
        x, y, *_ = (torch.cat(part) for part in zip(*parts, strict=True))
        assert sorted(y.tolist()) == index.tolist()
        assert torch.equal(x.permute(0, 2, 3, 1), torch.from_numpy(split.images[y.numpy()]).float())


def test_images_are_normalised_per_channel_in_channels_last_memory():
    data = images()
    x, y = epoch(1, augment=False)
    expected = (data.train.images[y.numpy()] - data.mean) / data.std
    np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-6)  # x is float32
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert next(iter(TrainBlocks(data, 4, True, 0, 0)))[0].is_contiguous(memory_format=torch.channels_last)


# Files


def content(images: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
    """Each image with its label, in an order of its own."""
    return sorted(zip((image.tobytes() for image in images), labels.tolist(), strict=True))


def test_an_npz_comes_back_image_by_image_memory_mapped_and_read_only(write_npz):
    path = write_npz()
    loaded = load(describe(source(path)))
    with np.load(path) as file:
        for name in ("train", "test"):
            split = getattr(loaded, name)
            assert content(split.images, split.labels) == content(file[f"{name}_images"], file[f"{name}_labels"])
            for array in (split.images, split.labels):
                assert isinstance(array, np.memmap)
                assert not array.flags.writeable
    assert (loaded.classes, loaded.channels) == (4, 3)


def test_the_order_in_a_file_changes_neither_identity_nor_images_nor_subset(write_npz):
    with np.load(write_npz()) as file:
        original = dict(file)
    order = np.random.RandomState(1).permutation(20)
    mixed = write_npz("tiny2.npz", **{k: original[k][order] for k in ("train_images", "train_labels")})
    one, other = (describe(source(p, train_size=9)) for p in (mixed.with_name("tiny.npz"), mixed))
    assert one.identity == other.identity
    one, other = load(one), load(other)
    assert (one.train.images == other.train.images).all()
    assert (one.train.labels == other.train.labels).all()
    assert (one.train.index == other.train.index).all()


def test_the_fingerprint_is_of_the_content_alone(write_npz, tmp_path):
    """Not of name, folder, compression, label type or memory order."""
    original = write_npz()
    with np.load(original) as file:
        arrays = dict(file)
    (tmp_path / "elsewhere").mkdir()
    same = [
        write_npz("elsewhere/other-name.npz"),
        write_npz("compressed.npz", np.savez_compressed),
        write_npz("narrow.npz", train_labels=arrays["train_labels"].astype(np.uint8)),
        write_npz("fortran.npz", train_images=np.asfortranarray(arrays["train_images"])),
    ]
    expected = describe(source(original)).fingerprint
    assert {describe(source(path)).fingerprint for path in same} == {expected}
    for i, name in enumerate(NAMES):
        changed = arrays[name].copy()
        changed.flat[-1] = 3 - changed.flat[-1] % 4
        assert describe(source(write_npz(f"changed{i}.npz", **{name: changed}))).fingerprint != expected, name


def test_the_number_of_classes_is_part_of_the_identity(write_npz):
    """It decides the network's last layer, so two runs that differ in it are two runs."""
    plain = describe(source(write_npz("plain.npz")))
    wide = describe(source(write_npz("wide.npz", classes=np.array(list("abcdefg")))))
    assert (plain.classes, wide.classes) == (4, 7)
    assert plain.identity != wide.identity


def test_naming_the_classes_changes_nothing_when_there_are_as_many(write_npz):
    named = describe(source(write_npz("named.npz", classes=np.array(list("abcd")))))
    assert named.identity == describe(source(write_npz("plain.npz"))).identity | {"name": named.name}


def test_a_file_that_changed_is_read_again_and_one_that_did_not_is_not(write_npz, monkeypatch):
    path = write_npz()
    first = describe(source(path)).fingerprint
    arrays._unpacked.cache_clear()  # as a new process
    monkeypatch.setattr(arrays, "_read_npz", lambda path: pytest.fail("read again"))
    assert describe(source(path)).fingerprint == first
    monkeypatch.undo()
    write_npz(train_labels=np.arange(20)[::-1] % 4)
    arrays._unpacked.cache_clear()
    assert describe(source(path)).fingerprint != first


def test_an_unpacked_folder_with_a_file_missing_is_made_whole(write_npz):
    path = write_npz()
    folder = describe(source(path)).folder
    (folder / "test_labels.npy").unlink()
    arrays._unpacked.cache_clear()
    assert sorted(load(describe(source(path))).test.labels) == sorted(np.arange(10) % 4)


UNPACK = """
import json, pathlib, sys, time
from smallbatch.data import describe
data, start = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
print("ready", flush=True)
while not start.exists():
    time.sleep(0.001)
print(describe(data).fingerprint)
"""


@pytest.mark.trains
def test_processes_that_unpack_one_file_at_once_agree_and_leave_one_whole_folder(write_npz, tmp_path):
    data = source(write_npz())
    command = [sys.executable, "-c", UNPACK, json.dumps(data), str(tmp_path / "start")]
    environment = os.environ | {"PYTHONPATH": str(Path(arrays.__file__).parents[2])}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "start").touch()
    answers = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 3
    fingerprint = describe(data).fingerprint
    assert answers == {fingerprint}
    assert {p.name for p in (tmp_path / "unpacked").iterdir() if p.is_dir()} == {fingerprint}
    assert {p.name for p in (tmp_path / "unpacked" / fingerprint).iterdir()} == {f"{name}.npy" for name in NAMES}


def test_threads_that_unpack_one_file_at_once_agree(write_npz, tmp_path):
    for i in range(5):
        data, barrier = source(write_npz(f"{i}.npz", train_labels=np.arange(20) % (i + 2))), Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            described = list(pool.map(lambda _, b=barrier, d=data: (b.wait(), describe(d))[1], range(4)))
        assert len(set(described)) == 1
    assert len([p for p in (tmp_path / "unpacked").iterdir() if p.is_dir()]) == 5


# What is refused


IMAGES = np.zeros((20, 4, 4, 3), np.uint8)
MALFORMED = {
    "no channel axis": ({"train_images": IMAGES[..., 0]}, "train_images is uint8 of shape"),
    "float images": ({"test_images": IMAGES[:10] / 255}, "test_images is float64"),
    "no images": ({"train_images": IMAGES[:0], "train_labels": np.zeros(0, int)}, "train_images"),
    "train and test differ": ({"test_images": IMAGES[:10, :2]}, "differ in shape"),
    "float labels": ({"train_labels": np.zeros(20)}, "train_labels is float64"),
    "too few labels": ({"train_labels": np.zeros(19, int)}, "train_labels"),
    "one-hot labels": ({"test_labels": np.eye(10, dtype=int)}, "test_labels"),
    "negative label": ({"train_labels": np.arange(20) - 1}, "negative label -1"),
    "label out of range": ({"classes": np.array(["cat", "dog"])}, "label 3 is out of range for 2 classes"),
    "a count for classes": ({"classes": np.array(4)}, "classes"),
    "missing array": ({"test_labels": None}, "no array test_labels"),
    "needs pickle": ({"train_labels": np.array([{}] * 20, object)}, "not a readable .npz"),
}


@pytest.mark.parametrize(("changes", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_npz_is_refused_naming_the_file_and_the_fault(write_npz, changes, message):
    path = write_npz(**changes)
    with pytest.raises(ConfigError, match=message) as caught:
        describe(source(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_npz_is_refused_naming_the_file(write_npz, save, share):
    path = write_npz(save=save)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ConfigError, match=r"not a readable \.npz") as caught:
        describe(source(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_inside_an_npz_is_refused_naming_the_file_or_does_no_harm(write_npz, save):
    """Twenty bytes overwritten at many places: header, compressed stream, directory at the end."""
    path = write_npz(save=save, train_images=np.tile(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), (20, 1, 1, 1)))
    whole, fingerprint = path.read_bytes(), describe(source(path)).fingerprint
    outcomes = []
    for start in range(0, len(whole) - 20, 29):
        damaged = path.with_name(f"{start}.npz")
        damaged.write_bytes(whole[:start] + b"\xff" * 20 + whole[start + 20 :])
        try:
            outcomes.append(describe(source(damaged)).fingerprint)
        except ConfigError as error:
            outcomes.append("refused" if str(damaged) in str(error) else str(error))
    assert set(outcomes) <= {"refused", fingerprint}
    assert outcomes.count("refused") > 20


def test_a_file_that_is_no_npz_is_refused_naming_it(tmp_path):
    text, array, folder = tmp_path / "text.npz", tmp_path / "array.npy", tmp_path / "folder.npz"
    text.write_text("train_images")
    np.save(array, np.zeros(3))
    folder.mkdir()
    for path in (text, folder, array):
        with pytest.raises(ConfigError, match=r"not a readable \.npz") as caught:
            describe(source(path))
        assert str(path) in str(caught.value)


def test_a_refused_file_leaves_nothing_unpacked(write_npz, tmp_path):
    with pytest.raises(ConfigError):
        describe(source(write_npz(classes=np.array(["one"]))))
    assert [p.name for p in tmp_path.rglob("*")] == ["tiny.npz"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "absent.npz"}, "data.path=absent.npz: no such file"),
        ({"_target_": "smallbatch.data.sources.absent"}, "sources.absent: cannot be imported"),
        ({"_target_": "no.such.module"}, "no.such.module: cannot be imported"),
        ({"_target_": "smallbatch.data.sources.digits"}, "path"),
    ],
)
def test_a_source_that_cannot_be_called_is_refused(write_npz, changes, message):
    with pytest.raises(ConfigError, match=message):
        describe(source(write_npz()) | changes)


def test_a_path_is_looked_for_as_given_and_below_the_root(write_npz):
    path = write_npz()
    assert describe(source(path) | {"path": path.name}) == describe(source(path))


# CIFAR


def records(count: int, label_bytes: int, seed: int) -> tuple[bytes, np.ndarray, list[int]]:
    """A binary file of the published layout: label byte(s), then the red, green and blue planes, by rows."""
    random = np.random.RandomState(seed)
    pixels = random.randint(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = [(seed + i) % 10 for i in range(count)]
    file = b""
    for image, label in zip(pixels, labels, strict=True):
        file += bytes([99] * (label_bytes - 1) + [label])  # CIFAR-100 has the coarse label first
        file += b"".join(image[..., channel].tobytes() for channel in range(3))
    return file, pixels, labels


def archive(path, members: dict[str, bytes]) -> str:
    """Write a .tar.gz with a folder; its MD5."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "label_bytes", "train", "test", "names"),
    [
        ("cifar10", 1, [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", "batches.meta.txt"),
        ("cifar100", 2, ["train.bin"], "test.bin", "fine_label_names.txt"),
    ],
)
def test_the_binary_archive_of_cifar_is_read_without_unpickling(
    tmp_path, monkeypatch, name, label_bytes, train, test, names
):
    parts = [records(12, label_bytes, seed) for seed in range(len(train))]
    test_file, test_pixels, test_labels = records(11, label_bytes, 7)
    classes = [f"class_{i}" for i in range(10)]
    members = dict(zip(train, (file for file, _, _ in parts), strict=True))
    members |= {test: test_file, names: ("\n".join(classes) + "\n\n").encode(), "readme.html": b"<html>"}
    published = tmp_path / {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}[name]
    monkeypatch.setitem(sources._CIFAR[name], "md5", archive(published, members))
    data = {"_target_": f"smallbatch.data.sources.{name}", "root": str(tmp_path)}
    train_size = describe(data).train_size
    with np.load(tmp_path / f"{name}.npz") as file:
        assert (file["train_images"] == np.concatenate([pixels for _, pixels, _ in parts])).all()
        assert file["train_labels"].tolist() == [label for _, _, labels in parts for label in labels]
        assert (file["test_images"] == test_pixels).all()
        assert file["test_labels"].tolist() == test_labels
        assert file["classes"].tolist() == classes
    published.unlink()  # from now on the .npz is the source
    arrays._unpacked.cache_clear()
    assert describe(data).train_size == train_size == len(train) * 12


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("File not found or corrupted.")])
def test_a_failed_download_says_what_to_put_where(tmp_path, monkeypatch, name, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    root = tmp_path / "new"
    with pytest.raises(ConfigError) as caught:
        describe({"_target_": f"smallbatch.data.sources.{name}", "root": str(root)})
    message = str(caught.value)
    for part in (f"{name}.npz", f"cifar-{name[5:]}-binary.tar.gz", "www.cs.toronto.edu", f"into {root}/", str(error)):
        assert part in message
    assert "\n" not in message
    assert not list(root.glob("*"))


def test_an_archive_with_the_wrong_checksum_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"half a download")
    asked = []
    monkeypatch.setattr(
        "torchvision.datasets.utils.download_url", lambda *a, **k: asked.append(a) or (_ for _ in ()).throw(OSError())
    )
    with pytest.raises(ConfigError, match="download failed"):
        sources.cifar10(str(tmp_path))
    assert asked[0][0] == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
