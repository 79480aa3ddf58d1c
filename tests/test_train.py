"""`python src/train.py` as a person meets it: output, exit status, what is left on disk."""

import csv
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from smallbatch import lock, store

pytestmark = pytest.mark.trains

REPOSITORY = Path(__file__).parents[1]
FORK = multiprocessing.get_context("forkserver")
SMALL = ["data.train_size=64", "data.test_size=40", "machine.accelerator=cpu"]
FRAGILE = """
from smallbatch.models.alexnet import AlexNet


class Fragile(AlexNet):
    def forward(self, x):
        if self.training and len(x) == 4:
            raise RuntimeError("no fours, please")
        return super().forward(x)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def start(root):
    """Start `python src/train.py` on the small digits and a store, in its own process group."""
    (root / "fragile.py").write_text(FRAGILE)
    # Where the tests run as a background job Ctrl-C is ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def popen(folder: Path, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "src/train.py", *arguments, *SMALL, f"data.root={root}/data", f"store={folder}"]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return popen


def _command(arguments, out, errors):
    os.chdir(REPOSITORY)
    for file, descriptor in ((out, 1), (errors, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["src/train.py", *arguments]
    runpy.run_path("src/train.py", run_name="__main__")


@pytest.fixture(scope="module")
def command(root):
    """`python src/train.py` to its end, forked from a process that has torch already: seconds less than `start`."""

    def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        words = [*arguments, *SMALL, f"data.root={root}/data", f"store={folder}"]
        files = root / "out", root / "errors"
        process = FORK.Process(target=_command, args=(words, *files))
        process.start()
        process.join(600)
        return subprocess.CompletedProcess(words, process.exitcode, *(file.read_text() for file in files))

    return run


def end(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    try:
        output, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def runs(folder: Path) -> dict[int, store.Record]:
    """The ended runs of a store, sound, by batch size."""
    records = [store.read(path) for path in sorted(folder.iterdir()) if path.is_dir()]
    return {record.run.batch_size: record for record in records if record}


def rows(folder: Path, record: store.Record) -> list[dict[str, str]]:
    """The epochs as written, without the seconds."""
    with (store.folder(folder, record.run) / "epochs.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in csv.DictReader(file)]


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if ".locks" not in path.parts}


# --- one run


@pytest.fixture(scope="module")
def single(start, root):
    return end(start(root / "single", "batch_size=8", "base_lr=1/512", "epochs=2"))


def test_a_run_prints_one_line_with_status_score_seconds_and_folder(single, root):
    (record,) = runs(root / "single").values()
    folder = store.folder(root / "single", record.run)
    score = re.escape(f"{record.result['score']:.4f}")
    line = rf"alexnet digits m=8 η̃=2\^-9 s=0: finished, score {score}, \d+\.\d s, {re.escape(str(folder))}\n"
    assert re.fullmatch(line, single.stdout)
    assert (single.returncode, single.stderr) == (0, "")


@pytest.mark.parametrize("progress", ["true", "false"])
def test_the_same_run_again_trains_nothing_and_says_so(single, command, root, progress):
    before = snapshot(root / "single")
    again = command(root / "single", "batch_size=8", "base_lr=2**-9", "epochs=2", f"progress={progress}")
    assert again.stdout == single.stdout.replace(": finished,", ": finished before,")
    assert (again.returncode, again.stderr) == (0, "")
    assert snapshot(root / "single") == before


# --- a grid, in process and in parallel processes, with a point that fails


@pytest.fixture(scope="module")
def grids(start, root):
    grid = ["-m", "model._target_=fragile.Fragile", "batch_size=4,8,16", "base_lr=1/512", "epochs=2"]
    processes = [
        start(root / launcher, *grid, f"hydra/launcher={launcher}", "data.augment=true")
        for launcher in ("basic", "local")
    ]
    return dict(zip(("basic", "local"), map(end, processes), strict=True))


@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_a_failing_point_stops_no_other_and_is_named_with_its_reason(grids, root, launcher):
    grid = grids[launcher]
    statuses = {m: record.result["status"] for m, record in runs(root / launcher).items()}
    assert statuses == {4: "failed", 8: "finished", 16: "finished"}
    assert grid.returncode == 1
    assert grid.stdout.startswith("3 runs: 0 finished before, 3 to train")
    assert sorted(grid.stdout.splitlines()[-1].split(", ")) == ["1 failed", "2 finished"]
    (problem,) = grid.stderr.splitlines()
    assert problem.startswith("failed: alexnet digits m=4 ")
    assert "RuntimeError: no fours, please" in problem


def test_a_run_in_a_parallel_worker_is_bit_equal_to_one_in_process(grids, root):
    here, there = runs(root / "basic"), runs(root / "local")
    assert here.keys() == there.keys()
    for m in (8, 16):
        assert rows(root / "basic", here[m]) == rows(root / "local", there[m])
        assert len(rows(root / "basic", here[m])) == 2


def test_a_finished_grid_again_trains_nothing(grids, command, root):
    before = snapshot(root / "basic")
    model = "model._target_=fragile.Fragile"
    again = command(root / "basic", "-m", model, "batch_size=8,16", "base_lr=1/512", "epochs=2", "data.augment=true")
    assert again.stdout.startswith("2 runs: 2 finished before, 0 to train")
    assert (again.returncode, again.stderr) == (0, "")
    assert snapshot(root / "basic") == before


# --- Ctrl-C


def signal_at(
    process: subprocess.Popen[str], folder: Path, pattern: str, what: signal.Signals
) -> subprocess.CompletedProcess[str]:
    """A signal to the whole group when a file is there."""
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline and not list(folder.glob(pattern)):
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, what)
    return end(process)


def interrupt_at(process: subprocess.Popen[str], folder: Path, pattern: str) -> subprocess.CompletedProcess[str]:
    """Ctrl-C, as a terminal sends it."""
    return signal_at(process, folder, pattern, signal.SIGINT)


def test_ctrl_c_leaves_a_run_that_the_same_command_goes_on_with(start, command, tmp_path):
    words = ["batch_size=8", "epochs=40"]
    stopped = interrupt_at(start(tmp_path, *words), tmp_path, "*/epochs.csv")
    assert stopped.returncode not in (0, None)
    assert stopped.stderr == "interrupted: the same command goes on after the last whole epoch\n"
    assert stopped.stdout == ""
    (path,) = (file.parent for file in tmp_path.glob("*/config.json"))
    assert sorted(file.name for file in path.iterdir()) == ["checkpoint.ckpt", "config.json", "epochs.csv"]
    before = (path / "epochs.csv").read_text()
    assert 2 <= before.count("\n") < 40
    resumed = command(tmp_path, *words)
    assert resumed.returncode == 0
    assert len(runs(tmp_path)[8].rows) == 40
    assert (path / "epochs.csv").read_text().startswith(before)  # seconds too: not trained again


@pytest.fixture(scope="module")
def interrupted(start, root):
    """Two grids of two runs each, interrupted when the first run has ended."""
    grid = ["-m", "batch_size=8,16", "epochs=40"]
    folders = {"basic": root / "interrupted-basic", "local": root / "interrupted-local"}
    processes = [
        start(folders["basic"], *grid, "hydra/launcher=basic"),
        start(folders["local"], *grid, "hydra/launcher=local", "hydra.launcher.n_jobs=1"),
    ]
    with ThreadPoolExecutor() as pool:
        ended = pool.map(interrupt_at, processes, folders.values(), ["*/result.json"] * 2)
        return dict(zip(folders, zip(folders.values(), ended, strict=True), strict=True))


@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_ctrl_c_keeps_a_grids_finished_runs_and_frees_the_rest(interrupted, launcher):
    folder, grid = interrupted[launcher]
    assert grid.returncode == 130
    assert "Traceback" not in grid.stdout + grid.stderr
    assert grid.stderr.splitlines()[-1] == "interrupted: the same command goes on from here"
    assert {m: record.result["status"] for m, record in runs(folder).items()} == {8: "finished"}
    assert not any(lock.holder(path) for path in folder.iterdir())


# --- two grids on one store


@pytest.mark.long
def test_of_two_equal_grids_in_parallel_processes_one_is_killed_and_the_other_trains_all(start, tmp_path):
    grid = ["-m", "batch_size=8,16", "epochs=12", "hydra/launcher=local", "hydra.launcher.n_jobs=2"]
    first, second = start(tmp_path, *grid), start(tmp_path, *grid)
    assert signal_at(first, tmp_path, "*/epochs.csv", signal.SIGKILL).returncode == -signal.SIGKILL
    ended = end(second)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == "2 finished"
    records = [record for _, record in store.read_all(tmp_path)]
    assert [len(record.rows) for record in records] == [12] * 2


# --- doubtful data


@pytest.fixture
def doubtful(tmp_path):
    """Labels from one, in a file with a name that Hydra's grammar cannot read."""
    pixels = np.random.RandomState(0).randint(0, 256, (104, 8, 8, 3), dtype=np.uint8)
    path = tmp_path / "it's (é, =3).npz"
    labels = {"train_labels": 1 + np.arange(64) % 4, "test_labels": 1 + np.arange(40) % 4}
    np.savez(path, train_images=pixels[:64], test_images=pixels[64:], **labels)
    return path


@pytest.mark.parametrize("how", ["", "-m", "-m hydra/sweeper=basic"])
def test_what_is_doubtful_is_told_once_a_command_and_trains(command, doubtful, tmp_path, how):
    axes = ["seed=1,2", "base_lr=1/512,1/1024"] if how else []
    words = ["data=arrays", f"data.path={doubtful}", "model=resnet8", "epochs=1", "batch_size=8", "progress=false"]
    done = command(tmp_path / "runs (2)", *how.split(), *words, *axes)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"{doubtful}: class 0 has no image (labels count from 0)"]
    assert len([record for _, record in store.read_all(tmp_path / "runs (2)")]) == (4 if how else 1)


# --- bad input


BAD = {
    "bach_size=2": "bach_size",
    "model=nosuch": "resnet32",  # names what there is
    "batch_size=two": "batch_size",
    "batch_size=0": "batch_size=0: must be a whole number in [1, 2147483647]",
    "batch_size=100000": "batch_size=100000: larger than the training set of 64 images",
    "norm=batch batch_size=8 bn_batch_size=3": "bn_batch_size=3 does not divide batch_size=8; choose one of 1, 2, 4, 8",
    "norm=batch batch_size=1": "bn_batch_size",
    "data=arrays data.path=/nonexistent.npz": "/nonexistent.npz: no such file",
    "figure=fig01": "python src/train.py -m figure=fig01",
    "base_lr=abc": "base_lr=abc: must be a number in (0, 1e6], such as 1/512 or 2**-9",
    "-m bach_size=2,4": "did you mean batch_size?",
    "-m model=nosuch,alexnet": "resnet32",
    "-m batch_size=two,2": "batch_size=two",
    "-m batch_size=0,8": "batch_size=0: must be a whole number in [1, 2147483647]",
    "-m batch_size=1000,100000": "no point of this grid can be trained",
    "-m figure=nosuch": "fig01",
    "batch_size=[2": "batch_size=[2: cannot be read",
    "+callbackz=x": "there is no setting callbackz; did you mean callbacks?",
    "+machine.thread=2": "there is no setting machine.thread; did you mean machine.threads?",
    "+trainer.max_epochs=3": "trainer.max_epochs: use epochs",
    "+logger.foo=3": "logger.foo: logger=none has nothing to set",
    "callbacks=early_stopping": "use stop=early_stopping",
    "lr=0.1": "use base_lr; the learning rate is base_lr × batch_size",
    "stop=null": "stop=null: is chosen by the name of a file, such as stop=none",
    "seed=${oc.env:NO_SUCH_VARIABLE}": "seed: KeyError raised while resolving interpolation",
    "-m +callbackz=x,y": "there is no setting callbackz; did you mean callbacks?",
    "-m weight_decay=interval(0,1)": "a grid takes neither globs nor intervals; list the values",
    "-m hydra/launcher=loca batch_size=2": "did you mean local?",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_gets_one_clear_message_and_writes_no_run(command, tmp_path, arguments):
    refused = command(tmp_path / "runs", *arguments.split())
    assert refused.returncode not in (0, None)
    assert BAD[arguments] in refused.stderr
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    assert refused.stdout == ""
    assert not (tmp_path / "runs").exists()
