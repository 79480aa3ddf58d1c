"""Shared by the tests: hypothesis without deadlines, small .npz files, one data root a session."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny tensors on busy cores are 5 times slower with 2

# Children that tests start are forked from one process that has torch: a tenth of a second instead of seven.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["pytest", "wandb", "smallbatch.training.fit", "smallbatch.tracking.live", "train"])

settings.register_profile("smallbatch", deadline=None)
settings.load_profile("smallbatch")


@pytest.fixture(autouse=True)
def _denormals():
    """Training in this process turns them off, and hypothesis needs them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


def pytest_ignore_collect(collection_path, config):
    """What is marked as a whole is not even imported for `make test-fast`: Lightning alone takes seconds."""
    whole = "\npytestmark = pytest.mark.trains\n"
    if config.option.markexpr == "not trains" and collection_path.suffix == ".py":
        return True if whole in collection_path.read_text(encoding="utf-8") else None
    return None


@pytest.fixture(autouse=True)
def _fast_is_fast(request, monkeypatch):
    """A test that is not marked `trains` trains nothing and starts no process, so that `make test-fast` stays fast."""
    if request.node.get_closest_marker("trains"):
        return

    popen = subprocess.Popen.__init__

    def refuse(*arguments, **settings):
        if "ldconfig" in str(arguments[1:2]):  # the import of torch asks where a library is
            return popen(*arguments, **settings)
        return pytest.fail("trains, or starts a process: mark it with pytest.mark.trains")

    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", refuse)
    if "pytorch_lightning" in sys.modules:
        monkeypatch.setattr("pytorch_lightning.Trainer.fit", refuse)


def tiny_arrays(train: int = 20, test: int = 10, side: int = 4, channels: int = 3, classes: int = 4) -> dict:
    random = np.random.RandomState(0)
    return {
        "train_images": random.randint(0, 256, (train, side, side, channels), dtype=np.uint8),
        "train_labels": np.arange(train) % classes,
        "test_images": random.randint(0, 256, (test, side, side, channels), dtype=np.uint8),
        "test_labels": np.arange(test) % classes,
    }


@pytest.fixture
def write_npz(tmp_path):
    """Write a small valid data set as an .npz; keywords replace an array, or drop it where None."""

    def write(name="tiny.npz", save=np.savez, **changes):
        arrays = {k: v for k, v in {**tiny_arrays(), **changes}.items() if v is not None}
        path = tmp_path / name
        save(path, **arrays)
        return path

    return write


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A data root with the digits and, as cifar10.npz, 10,240 + 5,000 images of one pixel."""
    path = tmp_path_factory.mktemp("data")
    np.savez(path / "cifar10.npz", **tiny_arrays(10240, 5000, side=1, classes=10))
    return path
