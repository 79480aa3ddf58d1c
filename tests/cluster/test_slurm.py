"""On a real Slurm of two nodes: whatever happens to its tasks, a grid ends as on one machine and leaves nothing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from smallbatch import lock, store

pytestmark = [pytest.mark.trains, pytest.mark.cluster]

HERE = Path(__file__).parent
TRAIN = [sys.executable, str(HERE.parents[1] / "src/train.py")]
SMALL = ["data.train_size=256", "data.test_size=40", "machine.accelerator=cpu"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.workers=2", "hydra.launcher.time=0:20:00"]
COUNT = '''
from pathlib import Path
import pytorch_lightning as pl

class Count(pl.Callback):
    """Notes each start of a run, and fails one."""

    def __init__(self, file):
        self.file = Path(file)

    def on_fit_start(self, trainer, module):
        with self.file.open("a") as file:
            file.write(f"{module.run.key}\\n")
        if module.run.batch_size == 16:
            raise RuntimeError("not this one")
'''


@pytest.fixture(scope="module")
def cluster():
    """The environment in which there is one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children would inherit SIG_IGN
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short, for its sockets
    script = HERE / "cluster.sh"
    up = subprocess.run([script, "up", folder], capture_output=True, text=True)
    if up.returncode == 3:
        shutil.rmtree(folder)
        pytest.skip(f"no Slurm here: {(up.stdout + up.stderr).strip()}")
    assert up.returncode == 0, up.stdout + up.stderr
    words = subprocess.run(["bash", "-c", f". {folder}/env.sh && env -0"], capture_output=True, text=True, check=True)
    yield dict(word.split("=", 1) for word in words.stdout.split("\0") if word)
    subprocess.run([script, "down", folder], check=True)
    shutil.rmtree(folder)


class Place:
    """A folder to train in, and what was started there."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.runs = folder / "outputs/runs"
        self.started: list[subprocess.Popen] = []

    def start(self, *words: str, before: tuple[str, ...] = ()) -> subprocess.Popen:
        with (self.folder / "out").open("a") as out:
            command = [*before, *TRAIN, *words, *SMALL, "data.root=data"]
            self.started.append(
                subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=out, stderr=out)
            )
        return self.started[-1]

    def train(self, *words: str, before: tuple[str, ...] = ()) -> int:
        return self.start(*words, before=before).wait(600)

    def tell(self, *words: str) -> str:
        return subprocess.run(words, env=self.environment, capture_output=True, text=True).stdout

    @property
    def said(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def array(self) -> str:
        return self.said.rpartition("submitted array ")[2].partition(" ")[0]

    def records(self) -> dict[str, store.Record]:
        return {path.name: record for path, record in store.read_all(self.runs) if isinstance(record, store.Record)}

    def held(self) -> set[str]:
        return {path.name for path in self.runs.glob("*") if path.name[0] != "." and lock.holder(path)}

    def begun(self) -> set[str]:
        """Runs in training that have whole epochs behind them."""
        return {key for key in self.held() if (self.runs / key / "epochs.csv").exists()}

    def stray(self) -> set[str]:
        """What is no data, no file of a run, its lock, a figure or a worker's log."""
        ours = (
            r"data/.*|out|outputs/(runs/\w{16}/(config.json|epochs.csv|result.json)|runs/.locks/\w{16}.(lock|txt)"
            r"|slurm/\d+_\d+.log|calibration.json|figures/[\w-]+.(png|svg|csv))"
        )
        files = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        return {file for file in files if not re.fullmatch(ours, file)}


@pytest.fixture
def place(cluster, tmp_path):
    (tmp_path / "outputs").mkdir()
    made = Place(tmp_path, cluster)
    yield made
    for process in made.started:
        process.kill()
    made.tell("scancel", "--name=smallbatch")
    until(lambda: not made.tell("squeue", "-h"))


def until(condition, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes(array: str, task: int) -> list[int]:
    """Of a task of an array, by what Slurm tells them."""
    named = {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if named <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def numbers(records: dict[str, store.Record]):
    """What has to be equal, whoever trained it."""
    return {
        key: [{name: value for name, value in row.items() if "seconds" not in name} for row in record.rows]
        for key, record in records.items()
    }


GRID = ["-m", "batch_size=8,16", "seed=0,1", "epochs=8"]


def test_a_grid_ends_as_on_one_machine_though_a_worker_is_killed_one_requeued_and_all_are_preempted(
    place, tmp_path_factory, cluster
):
    driver = place.start(*GRID, *SLURM)
    until(lambda: len(place.begun()) == 2)
    for process in processes(place.array, 0):
        os.kill(process, signal.SIGKILL)
    place.tell("scontrol", "requeue", f"{place.array}_1")
    first = place.array
    until(place.begun)
    place.tell("sbatch", "--partition=urgent", "--array=0-1", "--output=/dev/null", "--wrap", "sleep 1")
    assert driver.wait(600) == 0
    assert not place.tell("squeue", "-h")
    assert place.said.splitlines()[-1] == "4 finished"
    log = (place.folder / "outputs/slurm" / f"{first}_1.log").read_text()
    assert log.count("4 runs: ") >= 2, "it was not started again"
    assert not place.stray()
    alone = Place(tmp_path_factory.mktemp("alone"), cluster)
    assert alone.train(*GRID, "hydra/launcher=local") == 0
    assert numbers(place.records()) == numbers(alone.records())


def test_ctrl_c_cancels_the_array_of_a_grid_of_1500_points(place):
    driver = place.start("-m", "batch_size=8", "seeds=1500", "epochs=100", *SLURM, "hydra.launcher.workers=5")
    until(lambda: len(place.begun()) == 2)
    assert "1500 runs: 0 finished before, 1500 to train" in place.said
    assert len(place.tell("squeue", "-h", "-r").splitlines()) == 5
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130
    assert not place.tell("squeue", "-h")
    assert not place.held()
    assert "interrupted: the same command goes on from here" in place.said
    assert not {file for file in place.stray() if not file.endswith("/checkpoint.ckpt")}


def test_an_array_outlives_its_first_process_and_the_same_command_joins_it(place):
    driver = place.start(*GRID, *SLURM)
    until(lambda: len(place.begun()) == 2)
    driver.kill()
    driver.wait()
    assert len(place.tell("squeue", "-h", "-r").splitlines()) == 2
    assert place.train(*GRID, "hydra/launcher=local", "hydra.launcher.n_jobs=1") == 0
    assert len(place.records()) == 4
    until(lambda: not place.tell("squeue", "-h"))
    logs = [file.read_text() for file in (place.folder / "outputs/slurm").glob("*.log")]
    assert len(logs) == 2
    assert not any("rror" in log for log in logs)


def test_no_run_is_trained_twice_by_workers_not_to_overwrite_it_nor_where_it_fails(place):
    conf = place.folder / "mine/callbacks/count.yaml"
    conf.parent.mkdir(parents=True)
    conf.write_text(f"count:\n  _target_: counting.Count\n  file: {place.folder}/starts.csv\n")
    (place.folder / "counting.py").write_text(COUNT)
    place.environment = place.environment | {"PYTHONPATH": str(place.folder)}
    words = ["--config-dir", "mine", "-m", "callbacks=[count]", "batch_size=8,16,32", "seed=0,1", "epochs=1", *SLURM]
    for more in ([], ["overwrite=true"]):
        (place.folder / "starts.csv").unlink(missing_ok=True)
        assert place.train(*words, "hydra.launcher.workers=4", *more) == 1
        starts = (place.folder / "starts.csv").read_text().split()
        assert sorted(starts) == sorted(place.records())
        assert len(starts) == 6
        assert "4 finished, 2 failed" in place.said.splitlines() or "2 failed, 4 finished" in place.said.splitlines()
        (place.folder / "out").unlink()


def test_a_search_goes_round_by_round_on_one_array(place):
    words = ["-m", "batch_size=8", "base_lr=search", "seeds=2", "epochs=1", "search.points=4"]
    assert place.train(*words, *SLURM) == 0
    assert place.said.count("submitted array") == 1
    assert "search: alexnet" in place.said
    assert {record.run.seed for record in place.records().values()} == {1, 2}
    assert place.said.splitlines()[-1] == f"{len(place.records())} finished"


def test_a_cluster_that_refuses_is_one_line(place):
    assert place.train(*GRID, *SLURM, "hydra.launcher.partition=nowhere") == 1
    last = place.said.splitlines()[-1]
    assert last.startswith("error: hydra/launcher=slurm: sbatch refuses: invalid partition specified: nowhere; ")
    assert "Traceback" not in place.said


def test_workers_that_all_fail_are_one_line_with_the_cause(place):
    assert place.train(*GRID, *SLURM, "hydra.launcher.arguments=['--export=ALL,PYTHONHOME=/nowhere']") == 1
    lines = [line for line in place.said.splitlines() if "Slurm's array" in line]
    assert len(lines) == 1
    assert lines[0].startswith("the launcher broke off: Slurm's array ")
    assert "No module named 'encodings'" in lines[0]
    assert f" ({place.folder}/outputs/slurm/" in lines[0]
    assert not place.tell("squeue", "-h")


@pytest.mark.parametrize("words", [["batch_size=8"], ["-m", "batch_size=8,16"]], ids=["run", "grid"])
def test_copies_under_srun_share_what_there_is_to_train(place, words):
    assert place.train(*words, "epochs=2", "logger=csv", before=("srun", "-n2", "--quiet")) == 0
    assert len(place.records()) == len(words)
    for key in place.records():
        assert (place.runs / key / "lightning/csv/version_0/metrics.csv").read_text().count("\n") > 1
    assert "rror" not in place.said
    assert "srun" not in place.said
    assert not list(place.folder.rglob("hpc_ckpt*"))
