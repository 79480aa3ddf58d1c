"""Arrays that cannot be right are refused with the way to mend them, and what is only doubtful is told in one line."""

import re

import numpy as np
import pytest

from smallbatch.compose import compose
from smallbatch.data import arrays, checks, describe, load
from smallbatch.errors import ConfigError
from smallbatch.run import make_run

RANDOM = np.random.RandomState(1)
LABELS, TEST_LABELS = np.arange(20) % 4, np.arange(10) % 4


def images(count: int, *shape: int) -> np.ndarray:
    return RANDOM.randint(0, 256, (count, *shape), dtype=np.uint8)


def both(*shape: int) -> dict:
    return {"train_images": images(20, *shape), "test_images": images(10, *shape)}


def tiny(train: int, test: int, side: int, classes: int) -> dict:
    pixels = {"train_images": images(train, side, side, 3), "test_images": images(test, side, side, 3)}
    return pixels | {"train_labels": np.arange(train) % classes, "test_labels": np.arange(test) % classes}


def source(path, **settings) -> dict:
    return {"_target_": "smallbatch.data.sources.arrays", "root": str(path.parent), "path": str(path), **settings}


TRAIN = images(20, 4, 4, 3)
FLOATS = images(20, 4, 4, 3) / 255
REFUSED = {
    "planes first": (both(3, 32, 32), r"train_images is .*looks like \(N, C, H, W\).*np\.moveaxis\(images, 1, -1\)"),
    "grey planes": (both(1, 28, 28), r"looks like \(N, C, H, W\)"),
    "oblong planes": (both(4, 20, 60), r"looks like \(N, C, H, W\)"),
    "planes of the test": ({"test_images": images(10, 3, 8, 8)}, r"test_images is .*looks like \(N, C, H, W\)"),
    "images last": ({"train_images": images(4, 4, 3, 20)}, r"looks like \(H, W, C, N\).*np\.moveaxis\(images, -1, 0\)"),
    "no channels": (both(4, 4), r"images\[\.\.\., None\]"),
    "rows": (both(48), "reshape each row"),
    "to 1": ({"train_images": FLOATS}, r"np\.rint\(255 \* images\)\.astype\('uint8'\)"),
    "to 255": ({"train_images": (FLOATS * 255).astype(np.float32)}, r": np\.rint\(images\)\.astype\('uint8'\)"),
    "normalised": ({"train_images": FLOATS - 0.5}, r"from -0\.5 to 0\.5: .*training normalises them"),
    "beyond 255": ({"train_images": FLOATS * 1000}, "to 1000: scale"),
    "NaN": ({"train_images": np.where(FLOATS > 0.99, np.nan, FLOATS)}, "it has NaN or infinite values"),
    "infinite": ({"test_images": np.where(FLOATS > 0.99, np.inf, FLOATS)[:10]}, "test_images .*it has NaN or infinite"),
    "16 bits": ({"train_images": TRAIN.astype(np.uint16) * 257}, "from 0 to 65535: scale .*// 257"),
    "wide": ({"train_images": TRAIN.astype(np.int64)}, r": images\.astype\('uint8'\)"),
    "black and white": ({"train_images": TRAIN > 99}, r"images\.astype\('uint8'\) \* 255"),
    "float labels": ({"train_labels": LABELS * 1.0}, r"labels\.astype\(int\)"),
    "measured": ({"train_labels": LABELS * 0.3}, "classes are no measured values"),
    "NaN label": ({"test_labels": np.where(TEST_LABELS, TEST_LABELS, np.nan)}, "test_labels .*NaN"),
    "one-hot": ({"train_labels": np.eye(4)[LABELS]}, r"labels\.argmax\(axis=1\)"),
    "column": ({"train_labels": LABELS[:, None]}, r"labels\.ravel\(\)"),
    "names": ({"train_labels": np.array(list("abcd"))[LABELS]}, r"np\.unique"),
    "yes or no": ({"train_labels": LABELS > 1}, r"labels\.astype\(int\)"),
    "durations": ({"train_labels": LABELS.astype("m8[s]")}, "timedelta64"),
    "dates": ({"train_labels": LABELS.astype("M8[s]")}, "datetime64"),
    "fewer labels": ({"train_labels": LABELS[:19]}, r"it must be integers \(20,\), one an image"),
    "negative": ({"train_labels": LABELS - 1}, "negative label -1; number classes from 0"),
    "codes": ({"train_labels": LABELS * 10, "test_labels": TEST_LABELS * 10}, "4 different labels go up to 30; number"),
    "beyond int64": (
        {"train_labels": np.where(LABELS, LABELS, 2**63 + 5).astype(np.uint64)},
        "5 different labels go up",
    ),
    "one class": ({"train_labels": LABELS * 0, "test_labels": TEST_LABELS * 0}, "are of class 0; .*at least two"),
    "one trained": ({"train_labels": LABELS * 0 + 2}, "all training images are of class 2"),
    "one, and two names": (
        {"train_labels": LABELS * 0, "test_labels": TEST_LABELS * 0, "classes": np.array(["a", "b"])},
        "all training images are of class 0",
    ),
    "objects": ({"classes": np.array(list("abcd"), object)}, "never unpickled"),
    "no image": ({"test_images": TRAIN[:0], "test_labels": LABELS[:0]}, "test_images .*and not empty"),
    "sizes": ({"test_images": images(10, 5, 4, 3)}, "differ in shape: 4×4 of 3 channels and 5×4 of 3 channels"),
    "channels": ({"test_images": images(10, 4, 4, 1)}, "and 4×4 of 1 channel$"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_right_is_refused_with_the_way_to_mend_it_and_nothing_is_written(write_npz, changes, message):
    path = write_npz(**changes)
    with pytest.raises(ConfigError, match=message) as caught:
        describe(source(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert [p.name for p in path.parent.rglob("*")] == [path.name]


def test_the_advice_mends(write_npz):
    """Of planes first, of codes and of values up to 1: what each message says makes the same data of them."""
    whole = tiny(20, 10, 8, 4)
    expected = describe(source(write_npz("whole.npz", **whole))).fingerprint
    spoilt = {
        "train_images": np.moveaxis(whole["train_images"], -1, 1),
        "train_labels": whole["train_labels"] * 100 + 7,
        "test_labels": whole["test_labels"] * 100 + 7,
        "test_images": whole["test_images"] / 255,
    }
    numbers = np.unique(spoilt["train_labels"])
    mended = {
        "train_images": np.moveaxis(spoilt["train_images"], 1, -1),
        "train_labels": np.searchsorted(numbers, spoilt["train_labels"]),
        "test_labels": np.searchsorted(numbers, spoilt["test_labels"]),
        "test_images": np.rint(255 * spoilt["test_images"]).astype("uint8"),
    }
    assert describe(source(write_npz("mended.npz", **mended))).fingerprint == expected


SHARED = images(10, 4, 4, 3)
SHARED[:3] = TRAIN[5:8]
OPAQUE = both(4, 4, 4)
for part in OPAQUE.values():
    part[..., 3] = 255
TWICE = np.concatenate([TRAIN[:10], TRAIN[:10]])
DOUBTFUL = {
    "labels from one": (
        {"train_labels": LABELS + 1, "test_labels": TEST_LABELS + 1},
        r"class 0 has no image \(labels count from 0\)",
    ),
    "a gap": (
        {"train_labels": LABELS + (LABELS > 1), "test_labels": TEST_LABELS + (TEST_LABELS > 1)},
        "class 2 has no image",
    ),
    "a gap among names": ({"classes": np.array(list("abcdefghijk"))}, "classes 4, 5, 6, 7, 8 and 2 more have no image"),
    "an untrained class": (
        {"test_labels": np.arange(10) % 5},
        "class 4 has no training image, but 2 of 10 test images",
    ),
    "an untested class": ({"test_labels": TEST_LABELS % 3}, "class 3 has no test image"),
    "shared": ({"train_images": TRAIN, "test_images": SHARED}, "3 of 10 test images are training images"),
    "all shared": ({"train_images": TRAIN, "test_images": TRAIN[:10]}, "10 of 10 test images are training images"),
    "copies": (
        {"train_images": TWICE, "train_labels": np.tile(LABELS[:10], 2)},
        "10 of 20 training images are copies of others",
    ),
    "contrary": (
        {"train_images": np.concatenate([TRAIN[:19], TRAIN[:1]])},
        "2 of 20 training images are there under another label too; 1 of 20 .* copies of others",
    ),
    "opaque": (OPAQUE, "of 4 channels 1 never varies"),
    "up to 1": ({"train_images": TRAIN % 2}, "no pixel is above 1 of 255: scale them before they become uint8"),
    "tiny planes": (both(3, 4, 4), r"images are 3×4 of 4 channels: if they are \(N, C, H, W\), turn them"),
    "signals": (both(1, 100, 6), r"images are 1×100 of 6 channels: if .*"),
}


@pytest.mark.parametrize(("changes", "doubt"), DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_what_is_only_doubtful_is_one_line(write_npz, changes, doubt):
    path = write_npz(**changes)
    assert re.fullmatch(f"{re.escape(str(path))}: {doubt}", describe(source(path)).notice)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        both(4, 4, 1),
        both(4, 4, 4),
        both(8, 8, 12),
        both(3, 4, 3),
        both(1, 1, 3),
        {"classes": np.array(list("abcd"))},
    ],
    ids=["colour", "grey", "transparent", "spectra", "low", "one pixel", "named"],
)
def test_sound_data_are_not_talked_about(write_npz, changes):
    assert describe(source(write_npz(**changes))).notice == ""


def test_the_embedded_data_are_sound(root):
    for enlarge in (2, 4):
        digits = {"_target_": "smallbatch.data.sources.digits", "root": str(root), "enlarge": enlarge}
        assert describe(digits).notice == ""


def test_what_lies_in_a_published_set_is_not_told_each_time(write_npz, monkeypatch):
    path = write_npz(train_images=TRAIN, test_images=SHARED)
    monkeypatch.setitem(arrays.PUBLISHED, "tiny", ((4, 4, 3), 4, 20, 10))
    assert describe(source(path, name="tiny")).notice == ""
    assert describe(source(path, name="mine")).notice
    monkeypatch.setitem(arrays.PUBLISHED, "tiny", ((4, 4, 3), 4, 21, 10))  # other data under its name
    assert describe(source(path, name="tiny")).notice


def test_a_notice_is_kept_and_names_the_path_as_given(write_npz, monkeypatch):
    path = write_npz(train_images=TRAIN, test_images=SHARED)
    describe(source(path))
    arrays._unpacked.cache_clear()  # as a new process
    monkeypatch.setattr(arrays, "_read_npz", lambda path: pytest.fail("read again"))
    monkeypatch.chdir(path.parent)
    assert describe(source(path) | {"path": path.name}).notice.startswith(f"{path.name}: 3 of 10")


def test_what_older_versions_did_not_look_at_is_looked_at_now(write_npz, monkeypatch):
    path = write_npz(train_images=TRAIN, test_images=SHARED)
    with monkeypatch.context() as older:
        older.setattr("smallbatch.data.cache.CHECKS", 0)
        older.setattr(arrays, "doubts", lambda *found: [])
        assert describe(source(path)).notice == ""
    arrays._unpacked.cache_clear()
    assert describe(source(path)).notice


@pytest.mark.parametrize(("train", "test"), [(20, 5), (20, 1), (5, 10)])
def test_fewer_images_than_classes_are_legal(write_npz, train, test):
    path = write_npz(**tiny(train, test, 4, 10))
    found = describe(source(path))
    assert (found.classes, found.train_size, found.test_size) == (10, train, test)
    run = make_run(compose(["data=arrays", f"data.path={path}", "batch_size=4", f"data.root={path.parent}"]))
    assert (run.data["train_size"], run.data["test_size"]) == (None, None)
    assert len(load(found).test) == test
    given = describe(source(path, test_size=test))
    assert given.identity == found.identity
    with pytest.raises(ConfigError, match=r"data\.test_size=11: must lie between"):
        describe(source(path, test_size=11))


def test_as_many_bits_as_there_are_do_not_wrap():
    """Codes are told apart before they become int64."""
    labels = np.array([2**64 - 1, 0], np.uint64)
    with pytest.raises(ConfigError, match="go up to 18446744073709551615"):
        checks._count_classes("file", {"train_labels": labels, "test_labels": labels})
