"""What surrounds a command decides nothing: neither its numbers, nor its record, nor its exit status."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smallbatch import lock, store
from smallbatch.errors import ConfigError
from smallbatch.files import write_text

pytestmark = pytest.mark.trains

REPOSITORY = Path(__file__).parents[1]
FOREIGN = {
    "HOME": None, "XDG_CACHE_HOME": "/proc/none", "MPLCONFIGDIR": "/proc/none",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline", "HYDRA_MAIN_MODULE": "none",
    "PL_TRAINER_MAX_STEPS": "1", "PL_TRAINER_GRADIENT_CLIP_VAL": "1e-6", "RANK": "colonel", "LOCAL_RANK": "3",
    "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
}  # fmt: skip


def command(name, *words, here, env=None, streams="", **settings):
    """A command by way of a shell, which closes or redirects its streams."""
    changed = {"OMP_NUM_THREADS": "1", **(env or {})}
    environment = {k: v for k, v in (os.environ | changed).items() if v is not None}
    line = f'exec "$@" {streams}'
    words = (sys.executable, str(REPOSITORY / "src" / f"{name}.py"), *words)
    return subprocess.run(
        ["bash", "-c", line, "bash", *words], cwd=here, env=environment, capture_output=True, timeout=300, **settings
    )


def rows(folder):
    found = store.ended(folder)
    return {k: [{n: v for n, v in row.items() if "seconds" not in n} for row in r.rows] for k, r in found.items()}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with data of an odd name, modules named as ours are, and the store of one plain run."""
    path = tmp_path_factory.mktemp("it's here, (é=1) & da")
    random = np.random.default_rng(0)
    split = {
        f"{part}_{what}": value
        for part in ("train", "test")
        for what, value in (("images", random.integers(0, 256, (40, 8, 8, 3), np.uint8)), ("labels", np.arange(40) % 4))
    }
    np.savez(path / "epoch=3, run(1) é.npz", **split)
    for name in ("data", "config", "utils"):
        (path / f"{name}.py").write_text("raise RuntimeError('of the user')\n")
    (path / "matplotlibrc").write_text("font.size: 40\n")
    plain = command("train", *WORDS, "store=plain", here=path)
    assert (plain.returncode, plain.stderr) == (0, b"")
    return path


WORDS = ["data=arrays", "data.path=epoch=3, run(1) é.npz", "data.root=.", "model=resnet8", "epochs=2"]
WORDS += ["batch_size=8", "machine.accelerator=cpu"]


@pytest.mark.parametrize(("env", "streams"), [(FOREIGN, ""), ({}, ">&- 2>/dev/full <&-")])
def test_a_run_is_the_same_whatever_surrounds_it(here, tmp_path, env, streams):
    env = {**env, "PYTHONPATH": str(here)}
    ended = command("train", *WORDS, f"store={tmp_path}/s s", here=here, env=env, streams=streams)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert rows(tmp_path / "s s") == rows(here / "plain") != {}


@pytest.mark.long
def test_a_grid_goes_on_when_nobody_reads_what_it_prints_and_leaves_nothing_behind(here, tmp_path):
    before = {path.name for path in here.iterdir()}
    reader, writer = os.pipe()
    os.close(reader)
    words = ["-m", *WORDS[:-2], "batch_size=8,16", "hydra/launcher=local", f"store={tmp_path}/runs"]
    process = subprocess.Popen(
        [sys.executable, REPOSITORY / "src/train.py", *words, "machine.accelerator=cpu"],
        cwd=here, stdout=writer, stderr=writer,
    )  # fmt: skip
    os.close(writer)
    assert process.wait(300) == 0
    assert len(rows(tmp_path / "runs")) == 2
    assert rows(tmp_path / "runs").items() > rows(here / "plain").items()
    assert {path.name for path in here.iterdir()} == before


def test_a_list_that_is_lost_is_said_to_be_and_one_that_nobody_wants_is_not(here):
    lost = command("runs", "list", "store=plain", here=here, streams=">/dev/full")
    assert (lost.returncode, lost.stderr) == (1, b"error: what was printed is lost: No space left on device\n")
    unwanted = command("runs", "list", "store=plain", here=here, streams=">&-")
    assert (unwanted.returncode, unwanted.stderr) == (0, b"")


def test_a_store_where_none_can_be_is_one_line_and_goes_on_when_it_is_mended(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "away")
    with pytest.raises(ConfigError, match=r"link: is a link into nowhere; make .*away, or bring its disk back"):
        _hold(tmp_path / "link" / ("0" * 16))
    (tmp_path / "away").mkdir()
    _hold(tmp_path / "link" / ("0" * 16))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/.locks: Not a directory; a file, or a link into nowhere, is where"):
        _hold(tmp_path / "file" / ("0" * 16))
    assert store.read(tmp_path / "file" / ("0" * 16)) is None


def _hold(path):
    with lock.hold(path):
        pass


def test_a_full_disk_is_told_of_the_file_that_had_no_room(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_text(tmp_path / "table.csv", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.filename == str(tmp_path / "table.csv")
    assert list(tmp_path.iterdir()) == []
