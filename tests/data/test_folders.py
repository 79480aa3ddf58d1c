"""Image folders from file to block: what is listed, how it is cropped, and what a broken file does."""

import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchvision.transforms.v2 import functional as F

from smallbatch.compose import compose
from smallbatch.data import arrays, describe, folders, load
from smallbatch.data.blocks import TestBlocks, TrainBlocks
from smallbatch.data.folders import BrokenImage, centre_crop, draw_crops, open_rgb, random_crop
from smallbatch.ended import Ended
from smallbatch.errors import ConfigError
from smallbatch.run import make_run
from smallbatch.store import Record
from smallbatch.training.module import SmallBatch
from train import train

CLASSES = ("cat", "dog", "owl")
SIDE = 8
AUGMENT = "data.augment=true"


def picture(seed: int, width: int = 24, height: int = 18) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8))


def write(root: Path, train: int = 7, test: int = 2) -> Path:
    """`train` and `test` JPEGs a class, the first of each greyscale."""
    for split, count in (("train", train), ("val", test)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = picture(100 * label + i + 50 * (split == "val"))
                (image.convert("L") if i == 0 else image).save(root / split / name / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def own(tmp_path):
    """A folder to spoil."""
    return write(tmp_path / "own", 3, 1)


def config(path: Path, *overrides: str):
    return compose(["data=folder", f"data.path={path}", f"data.side={SIDE}", "batch_size=4", *overrides])


def images(path: Path, *overrides: str, workers: int = 0):
    cfg = config(path, *overrides)
    return load(describe(OmegaConf.to_container(cfg.data, resolve=True)), workers)


def describe_folder(path: Path):
    """As a new process sees it, with a data root beside it."""
    folders.listing.cache_clear()
    arrays._listed.cache_clear()
    cfg = config(path, f"data.root={path.parent / 'root'}")
    return describe(OmegaConf.to_container(cfg.data, resolve=True))


def epoch(path: Path, *overrides: str, m: int = 1, workers: int = 0, seed: int = 0, number: int = 0):
    """The images and labels of one augmented epoch."""
    parts = list(TrainBlocks(images(path, *overrides, workers=workers), m, True, seed, number))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


# What is in a folder


def test_a_folder_is_its_classes_and_files_in_order(pictures):
    found = folders.listing(pictures)
    expected = [f"train/{name}/{i}.jpg".encode() for name in CLASSES for i in range(7)]
    assert found.train.names.tolist() == expected
    assert found.train.labels.tolist() == [label for label in range(3) for _ in range(7)]
    assert (found.classes, len(found.test.names)) == (3, 6)


def test_the_fingerprint_is_of_names_and_sizes_wherever_the_folder_is(pictures, tmp_path):
    first = folders.listing(pictures).fingerprint
    assert folders.listing(write(tmp_path / "copy")).fingerprint == first
    renamed, longer = write(tmp_path / "renamed"), write(tmp_path / "longer")
    (renamed / "val/owl/1.jpg").rename(renamed / "val/owl/2.jpg")
    with (longer / "train/cat/3.jpg").open("ab") as file:
        file.write(b"\0")
    (longer / "train/cat/readme.txt").write_text("not an image")
    assert len({first, *(folders.listing(path).fingerprint for path in (renamed, longer))}) == 3


def test_the_run_knows_the_content_and_the_preparation_but_not_the_path(pictures, tmp_path):
    run = make_run(config(pictures, AUGMENT))
    again = make_run(config(write(tmp_path / "copy"), AUGMENT, "machine.workers=0", "data.root=elsewhere"))
    assert again == run
    assert (run.data["side"], run.data["resize"], run.data["test_resize"]) == (8, [9, 17], 9)
    assert make_run(config(pictures, AUGMENT, "data.resize=[9,17]", "data.test_resize=9")) == run
    for other in ("data.resize=[9,18]", "data.test_resize=10", "data.std=[0.2,0.2,0.2]", "data.augment=false"):
        assert make_run(config(pictures, AUGMENT, other)).key != run.key, other


def test_the_range_of_the_augmentation_matters_only_with_augmentation(pictures):
    assert make_run(config(pictures, "data.resize=[9,30]")) == make_run(config(pictures))
    assert make_run(config(pictures)).data["resize"] is None


def test_imagenet_is_trained_as_in_the_paper(pictures):
    run = make_run(compose(["data=imagenet", "model=resnet50", "norm=batch", f"data.path={pictures}", "batch_size=4"]))
    assert (run.epochs, run.weight_decay, run.data["augment"]) == (90, 1e-4, True)
    assert [round(90 * drop, 9) for drop in run.schedule.drops] == [30, 60, 80]
    assert (run.data["side"], run.data["resize"], run.data["test_resize"]) == (224, [256, 480], 256)


def test_a_figure_knows_its_runs_without_the_files(pictures):
    cfg = config(pictures, AUGMENT)
    run = make_run(cfg)
    assert make_run(cfg, Ended({run.key: Record(run, [], {})}).describe).key == run.key


def test_imagenet_lies_in_the_data_root(tmp_path):
    write(tmp_path / "imagenet")
    assert make_run(compose(["data=imagenet", f"data.root={tmp_path}", "batch_size=4"])).data["name"] == "imagenet"


@pytest.mark.parametrize(
    "name",
    [
        *("train/.git/0.jpg", "val/.ipynb_checkpoints/0.jpg", "train/cat/.ipynb_checkpoints/0-checkpoint.jpg"),
        *("train/cat/._0.jpg", "train/cat/.0.jpg.part.jpg", "train/__MACOSX/0.jpg", "val/cat/@eaDir/0.jpg/THUMB.jpg"),
        *("train/cat/Thumbs.db", "train/dog/desktop.ini", "train/.DS_Store", "train/lost+found/x"),
    ],
)
def test_what_is_hidden_or_a_systems_own_is_neither_class_nor_image(own, name):
    first = folders.listing(own)
    (own / name).parent.mkdir(parents=True, exist_ok=True)
    (own / name).write_bytes(b"\0\5\x16\7")
    folders.listing.cache_clear()
    found = folders.listing(own)
    assert (found.fingerprint, found.classes) == (first.fingerprint, first.classes)
    assert found.train.names.tolist() == first.train.names.tolist()


def test_a_folder_may_lie_in_a_hidden_one_and_have_links_and_capitals(pictures, tmp_path):
    hidden = write(tmp_path / ".cache" / "pictures")
    (hidden / "train/cat").rename(tmp_path / "cats")
    (hidden / "train/cat").symlink_to(tmp_path / "cats")
    assert folders.listing(hidden).fingerprint == folders.listing(pictures).fingerprint
    (tmp_path / "cats/0.jpg").rename(tmp_path / "cats/0.JPEG")
    folders.listing.cache_clear()
    assert b"train/cat/0.JPEG" in folders.listing(hidden).train.names


def test_files_are_in_the_order_of_torchvision_s(own):
    """Which the fingerprint and the seeds' images go by."""
    from torchvision.datasets import ImageFolder

    for name in (
        "cat/b/1.jpg",
        "cat/b-c/1.jpg",
        "cat/b/c/1.jpg",
        "cat/B/1.png",
        "dog/Z.jpg",
        "dog/10.jpg",
        "dog/é.jpg",
    ):
        (own / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(1).save(own / "train" / name)
    expected = [path.removeprefix(f"{own}/").encode() for path, _ in ImageFolder(own / "train").samples]
    assert folders.listing(own).train.names.tolist() == expected


def test_test_images_that_are_training_images_are_counted(own):
    assert describe_folder(own).notice == ""
    for name in ("cat", "dog"):
        (own / "val" / name / "copy.jpg").write_bytes((own / "train/cat/1.jpg").read_bytes())
    same_size = bytearray((own / "train/owl/1.jpg").read_bytes())
    same_size[-9] ^= 1
    (own / "val/owl/other.jpg").write_bytes(same_size)
    assert describe_folder(own).notice == f"{own}: 2 of 6 test images are training images"


def test_counting_them_reads_no_more_than_a_bound_and_is_kept_where_it_takes_long(own, tmp_path, monkeypatch):
    (own / "val/cat/copy.jpg").write_bytes((own / "train/cat/1.jpg").read_bytes())
    monkeypatch.setattr(arrays, "WORTH_KEEPING", 1)
    expected = describe_folder(own).notice
    assert "1 of 4" in expected
    with monkeypatch.context() as patch:
        patch.setattr(folders, "shared", lambda *found: pytest.fail("counted again"))
        assert describe_folder(own).notice == expected
    (own / "val/dog/copy.jpg").write_bytes((own / "train/cat/1.jpg").read_bytes())
    assert "2 of 5" in describe_folder(own).notice
    monkeypatch.setattr(arrays, "MOST", 1)
    assert describe_folder(own).notice == ""


def test_what_is_left_out_is_named(own):
    for name in ("train/cat/1.gif", "train/dog/2.GIF", "val/owl/3.heic", "train/4.jpg", "train/cat/read.me"):
        (own / name).write_bytes(b"x")
    assert describe_folder(own).notice == (
        f"{own}: images in train/ itself, which are of no class: 1; .gif files in train/, which are not read: 2; "
        ".heic files in val/, which are not read: 1"
    )


# From a file to pixels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    image = picture(0).convert("I").convert("I;16") if mode == "I;16" else picture(0).convert(mode)
    image.save(tmp_path / f"image.{suffix}", **({"transparency": b"\0\1"} if mode == "P" else {}))
    got = open_rgb(tmp_path / f"image.{suffix}")
    assert (got.mode, got.size) == ("RGB", (24, 18))
    if mode in ("1", "L", "LA", "P"):
        assert np.array_equal(np.asarray(got), np.asarray(image.convert("RGB")))


def test_sixteen_bits_keep_their_range_and_thirty_two_have_none(tmp_path):
    levels = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "deep.png"))[..., 0], levels >> 8)
    Image.fromarray(levels.astype(np.float32) / 65536).save(tmp_path / "deep.tif")
    with pytest.raises(BrokenImage, match=r"deep\.tif: .*32 bits, mode F"):
        open_rgb(tmp_path / "deep.tif")


UPRIGHT = np.zeros((18, 24, 3), np.uint8)
UPRIGHT[:9], UPRIGHT[:, :6] = 255, (255, 0, 0)
# What a camera stores for an upright picture, by the tag that says how to turn it back (EXIF 2.32, orientation).
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.swapaxes(0, 1),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_the_orientation_tag_is_applied(tmp_path, suffix, orientation):
    tag = Image.Exif()
    tag[274] = orientation
    pixels = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    pixels.save(
        tmp_path / f"photo.{suffix}", exif=tag, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {})
    )
    got = np.asarray(open_rgb(tmp_path / f"photo.{suffix}")).astype(int)
    assert got.shape == UPRIGHT.shape
    assert abs(got - UPRIGHT).max() <= (40 if suffix == "jpg" else 0)  # edges of a JPEG ring


def test_sixteen_bits_are_turned_too_and_a_damaged_tag_is_none(tmp_path):
    tag = Image.Exif()
    tag[274] = 6
    levels = np.arange(0, 65536, 256, dtype=np.uint16).reshape(32, 8)
    Image.fromarray(np.ascontiguousarray(np.rot90(levels))).save(tmp_path / "deep.png", exif=tag)
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "deep.png"))[..., 0], levels >> 8)
    for damaged in (b"garbage", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", tag.tobytes()[:-9]):
        picture(0).save(tmp_path / "damaged.png", exif=damaged)
        assert np.array_equal(np.asarray(open_rgb(tmp_path / "damaged.png")), np.asarray(picture(0)))


@pytest.mark.parametrize("size", [(24, 18), (18, 24), (9, 9), (40, 9), (7, 31)])
def test_the_centre_crop_is_torchvision_s(size):
    image = picture(0, *size)
    for resize, side in ((9, 8), (8, 8), (21, 8), (20, 7)):
        expected = F.center_crop(F.resize(image, resize, interpolation=F.InterpolationMode.BILINEAR), [side, side])
        assert np.array_equal(np.asarray(centre_crop(image, resize, side)), np.asarray(expected))


def test_a_random_crop_is_the_drawn_size_place_and_flip():
    """Against torchvision's steps, at both ends of every range and between."""
    image = picture(0)
    last = np.nextafter(1, 0)
    for size, shorter in ((0, 9), (0.5, 13), (last, 17)):
        resized = F.resize(image, shorter, interpolation=F.InterpolationMode.BILINEAR)
        for top, y in ((0, 0), (last, resized.height - SIDE)):
            for left, x in ((0, 0), (last, resized.width - SIDE)):
                expected = np.asarray(F.crop(resized, y, x, SIDE, SIDE))
                straight = np.asarray(random_crop(image, (9, 17), SIDE, size, top, left, 0.5))
                mirrored = np.asarray(random_crop(image, (9, 17), SIDE, size, top, left, 0.25))
                assert np.array_equal(straight, expected)
                assert np.array_equal(mirrored, expected[:, ::-1])


def test_what_is_drawn_is_uniform_and_independent():
    draws = draw_crops(0, 0, 100_000)
    counts = np.apply_along_axis(lambda column: np.histogram(column, 10, (0, 1))[0], 0, draws)
    assert abs(counts - 10_000).max() < 5 * 100
    assert abs(np.corrcoef(draws.T) - np.eye(4)).max() < 5 / 100_000**0.5


# Blocks


def test_training_images_are_drawn_cropped_and_normalised_as_configured(pictures):
    data = images(pictures, AUGMENT, "data.mean=[0.1,0.2,0.3]", "data.std=[0.5,0.6,0.7]")
    x, y = epoch(pictures, AUGMENT, "data.mean=[0.1,0.2,0.3]", "data.std=[0.5,0.6,0.7]", seed=3, number=2)
    crops = draw_crops(3, 2, 21)
    paths = [pictures / name.decode() for name in data.train.names]
    expected = [np.asarray(random_crop(open_rgb(p), (9, 17), SIDE, *c)) for p, c in zip(paths, crops, strict=True)]
    expected = (np.array(expected) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    order = folders.stream(3, 2, 0).permutation(21)
    assert y.tolist() == data.train.labels[order].tolist()
    np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), expected[order], rtol=1e-4, atol=1e-5)


def test_test_images_are_in_order_and_not_augmented(pictures):
    data = images(pictures, AUGMENT, "data.mean=[0,0,0]", "data.std=[1,1,1]")
    ((x, y, _),) = TestBlocks(data)
    expected = [centre_crop(open_rgb(pictures / name.decode()), 9, SIDE) for name in data.test.names]
    assert np.array_equal((255 * x).round().permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert y.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.trains
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_pixels_do_not_depend_on_workers_batches_or_chunks(pictures, monkeypatch, workers):
    x, y = epoch(pictures, AUGMENT)
    monkeypatch.setattr(folders, "CHUNK", 3)
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    for m in (4, 21):
        kept = 21 // m * m
        xm, ym = epoch(pictures, AUGMENT, m=m, workers=workers)
        assert torch.equal(xm, x[:kept])
        assert torch.equal(ym, y[:kept])


@pytest.mark.trains
def test_workers_start_in_a_process_of_joblib_s(pictures, monkeypatch):
    """As under `hydra/launcher=local`, whose processes make joblib's way to start others the default."""
    importlib.import_module("joblib.externals.loky.backend.context")  # makes "loky" known
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)
    multiprocessing.set_start_method("loky")
    assert len(epoch(pictures, workers=1)[1]) == 21


def test_blocks_follow_no_global_generator_and_move_none(pictures):
    x, _ = epoch(pictures, AUGMENT)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = torch.rand(1, generator=torch.Generator().manual_seed(3))
    assert torch.equal(epoch(pictures, AUGMENT)[0], x)
    assert torch.equal(torch.rand(1), expected)
    assert np.random.rand() == np.random.RandomState(3).rand()


def test_large_images_come_in_blocks_of_bounded_memory(pictures):
    large = TrainBlocks(images(pictures, "data.side=224"), 8, False, 0, 0)
    assert large.size == 104  # 4 · 3 · 224² bytes each, at most 2^26
    assert TrainBlocks(images(pictures, "data.side=32"), 8, False, 0, 0).size == 512
    assert TrainBlocks(images(pictures, "data.side=224"), 2048, False, 0, 0).size == 2048


def test_a_subset_is_stratified(pictures):
    data = images(pictures, "data.train_size=9", "data.test_size=3")
    assert [np.bincount(split.labels[split.index]).tolist() for split in (data.train, data.test)] == [[3] * 3, [1] * 3]
    _, y = epoch(pictures, "data.train_size=9", m=3)
    assert sorted(y.tolist()) == [0] * 3 + [1] * 3 + [2] * 3


# What is refused


def damage(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    path.write_bytes({"half": whole[: len(whole) // 2], "text": b"not a JPEG", "head": whole[:10]}[kind])


@pytest.mark.trains
@pytest.mark.parametrize("kind", ["half", "text", "head"])
def test_a_broken_file_is_named(own, kind):
    broken = own / "train/dog/1.jpg"
    damage(broken, kind)
    with pytest.raises(BrokenImage, match=rf"^{broken}: cannot be read as an image") as caught:
        epoch(own, workers=1)
    assert "\n" not in str(caught.value)


@pytest.mark.trains
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_over_a_broken_file_fails_with_one_line(own, tmp_path, split):
    broken = own / split / "owl/0.jpg"
    damage(broken, "half")
    cfg = config(own, "model=resnet8", "batch_size=3", "epochs=1", f"store={tmp_path}/runs", "progress=false")
    cfg.machine.accelerator, cfg.machine.workers = "cpu", 0
    run = make_run(cfg)
    train(cfg, say=print)
    result = json.loads((tmp_path / "runs" / run.key / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["error"].startswith(f"BrokenImage: {broken}: cannot be read as an image (")


def spoil_classes(root: Path) -> None:
    (root / "val/owl").rename(root / "val/emu")


def spoil_class(root: Path) -> None:
    for path in (root / "train/dog").iterdir():
        path.rename(path.with_suffix(".txt"))


def spoil_train(root: Path) -> None:
    for path in (root / "train").iterdir():
        path.rename(root / f"train-{path.name}")


def spoil_folder(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").write_text("a file")


def spoil_all_but_one(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("dog", "owl"):
            shutil.rmtree(root / split / name)


def link(name: str, target: str):
    return lambda root: (root / name).symlink_to(target)


SPOILT = {
    "no val": (lambda root: (root / "val").rename(root / "test"), r"own: has no val/; images must lie in val/CLASS/"),
    "no train": (lambda root: (root / "train").rename(root / "x"), "own: has no train/"),
    "test for val": (lambda root: (root / "val").rename(root / "test"), "rename test/ to val/"),
    "train is a file": (spoil_folder, "own: has no train/"),
    "no class": (spoil_train, "own/train: Couldn't find any class folder"),
    "one class": (spoil_all_but_one, "own: all images are of class cat; there must be at least two classes"),
    "a dangling image": (
        link("train/cat/gone.jpg", "nowhere.jpg"),
        "own/train/cat/gone.jpg: is a link to nowhere.jpg: No",
    ),
    "a dangling folder": (link("train/cat/more", "/nowhere"), "own/train/cat/more: is a link to /nowhere: No such"),
    "a dangling class": (link("val/bee", "/nowhere/bee"), "own/val/bee: is a link to /nowhere/bee: No such file"),
    "a link to itself": (link("train/cat/0.png", "0.png"), "own/train/cat/0.png: is a link to 0.png: Too many levels"),
    "a circle": (link("train/cat/again", ".."), "own/train/cat/again: is a link back to .*own/train, which holds it"),
    "a circle of one": (
        link("val/dog/again", "."),
        "own/val/dog/again: is a link back to .*own/val/dog, which holds it",
    ),
    "a circle of all": (
        link("train/again", ".."),
        "own/train/again: is a link back to .*own, which holds it; remove it",
    ),
    "a pipe": (lambda root: os.mkfifo(root / "val/owl/pipe.png"), "own/val/owl/pipe.png: holds no data"),
    "an empty class": (spoil_class, "own/train: Found no valid file for the classes dog"),
    "other classes": (spoil_classes, "own: train/ and val/ must have the same classes; only one has emu, owl"),
    "an empty file": (lambda root: (root / "val/owl/0.jpg").write_bytes(b""), "own/val/owl/0.jpg: is an empty file"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT.keys())
def test_a_folder_that_is_not_as_it_must_be_is_refused_in_one_line(own, spoil, message):
    spoil(own)
    with pytest.raises(ConfigError, match=message) as caught:
        make_run(config(own))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=absent", "data.path=absent: no such folder"),
        (f"data.path={__file__}", f"data.path={__file__}: is a file, no folder; .npz files are data=arrays"),
        ("data.side=0", "data.side=0"),
        ("data.resize=[7,9]", r"data.resize=\[7, 9\].*data.side=8"),
        ("data.resize=[12,9]", r"data.resize=\[12, 9\]"),
        ("data.resize=[9]", r"data.resize=\[9\]"),
        ("data.test_resize=7", "data.test_resize=7.*data.side=8"),
        ("data.mean=[0.5]", r"data.mean=\[0.5\]"),
        ("data.std=[0.2,0,0.2]", "data.std"),
        ("data.train_size=2", "data.train_size=2"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line_naming_it(pictures, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_run(config(pictures, override))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["nowhere", "own-link"])
def test_a_path_that_is_a_link_into_nowhere_is_named(tmp_path, target):
    (tmp_path / "own-link").symlink_to(target)
    for data in ("folder", "arrays"):
        with pytest.raises(ConfigError, match=f"own-link: is a link to {target}: "):
            make_run(compose([f"data={data}", f"data.path={tmp_path}/own-link"]))


NOBODY = """
import encodings.cp437, os, sys
from smallbatch.data import describe
from smallbatch.errors import ConfigError
if os.getuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
for path in sys.argv[1:]:
    files = {"side": 8, "resize": None, "test_resize": None, "mean": [0] * 3, "std": [1] * 3, "augment": False}
    kind, settings = ("arrays", {}) if path.endswith(".npz") else ("folder", files)
    try:
        describe({"_target_": f"smallbatch.data.sources.{kind}", "root": "nowhere", "path": path, **settings})
    except ConfigError as error:
        print(error)
"""


@pytest.mark.trains
def test_what_may_not_be_read_is_named():
    """By whoever is not root, who may read everything."""
    with tempfile.TemporaryDirectory() as folder:  # not one of pytest's, into which nobody else may look
        top = Path(folder)
        top.chmod(0o755)
        closed = [top / "0/train/cat/1.jpg", top / "1/train/dog", top / "2/val", top / "3", top / "own.npz"]
        for number in range(4):
            write(top / str(number), 2, 1)
        closed[-1].touch()
        for place in closed:
            place.chmod(0)
        command = [sys.executable, "-c", NOBODY, *(str(top / place.relative_to(top).parts[0]) for place in closed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for place in closed:
            place.chmod(0o700)
        named = [f"{place / 'train' if place.name == '3' else place}: Permission denied" for place in closed]
        assert done.stdout.splitlines() == named, done.stderr


# A whole run


@pytest.mark.trains
def test_a_run_that_was_cut_off_resumes_at_its_last_epoch_bit_for_bit(pictures, tmp_path, monkeypatch):
    def run(folder: str, workers: int):
        cfg = config(pictures, AUGMENT, "model=resnet8", "norm=batch", "batch_size=4", "epochs=2", "progress=false")
        cfg.store, cfg.machine.workers, cfg.machine.accelerator = str(tmp_path / folder), workers, "cpu"
        rows = train(cfg, say=print)[0].rows
        # As text, in which nan is like nan.
        return [str({k: v for k, v in row.items() if not k.endswith("_seconds")}) for row in rows]

    expected = run("whole", 0)
    start = SmallBatch.on_train_epoch_start

    def interrupted(self):
        if self.current_epoch:
            raise KeyboardInterrupt
        start(self)

    with monkeypatch.context() as patch:
        patch.setattr(SmallBatch, "on_train_epoch_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("cut", 1)
    assert run("cut", 1) == expected
