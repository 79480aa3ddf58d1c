"""Under a scheduler or someone else's launcher a run is as anywhere, and nothing of Lightning's own stays."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from smallbatch import store
from smallbatch.compose import compose
from smallbatch.run import make_run
from smallbatch.training.train import train

pytestmark = pytest.mark.trains

FORK = multiprocessing.get_context("forkserver")
TRAIN = str(Path(__file__).parents[2] / "src/train.py")
SMALL = ["data.train_size=64", "data.test_size=40", "machine.accelerator=cpu", "progress=false", "logger=csv"]
SLURM = {
    **{"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "grid", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
    **{"SLURM_NODEID": "0", "SLURM_NODELIST": "n1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_ARRAY_JOB_ID": "7"},
}
TORCHRUN = {
    **{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "localhost", "MASTER_PORT": "29999", "TORCHELASTIC_RUN_ID": "none"},
}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMI_SIZE": "2", "PMI_RANK": "1"}
LSF = {"LSB_JOBID": "7", "LSB_DJOB_RANKFILE": "hosts", "JSM_NAMESPACE_LOCAL_RANK": "1", "JSM_NAMESPACE_SIZE": "2"}
KUBEFLOW = {"KUBERNETES_PORT": "1", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.filterwarnings("error:The .srun. command is available")
@pytest.mark.parametrize(
    "variables", [SLURM, TORCHRUN, MPI, LSF, KUBEFLOW], ids=["slurm", "torchrun", "mpi", "lsf", "kubeflow"]
)
def test_a_run_that_is_one_of_several_copies_is_a_run_of_its_own(root, tmp_path, monkeypatch, variables):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # Lightning reads the variables when it is imported
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cfg = compose([*SMALL, "epochs=2", f"data.root={root}", f"store={tmp_path / 'runs'}"])
    record, _ = train(cfg, print)
    assert record.result["status"] == "finished", record.result
    logged = store.folder(tmp_path / "runs", record.run) / "lightning/csv/version_0/metrics.csv"
    assert logged.read_text().count("\n") > 1


def _train(variables, words):
    os.environ.update(variables)
    train(compose(words), print)
    os._exit(0)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_of_slurms_leaves_no_file_of_lightnings_and_the_same_call_ends_the_run(root, tmp_path, number):
    words = [*SMALL, "epochs=20", f"data.root={root}", f"store={tmp_path / 'runs'}"]
    path = store.folder(tmp_path / "runs", make_run(compose(words)))
    process = FORK.Process(target=_train, args=(SLURM, words))
    process.start()
    deadline = time.monotonic() + 60
    while not (path / "epochs.csv").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode != 0
    assert store.read(path) is None
    done = (path / "epochs.csv").read_text()
    again = FORK.Process(target=_train, args=(SLURM, words))
    again.start()
    again.join(60)
    record = store.read(path)
    assert record.result["status"] == "finished"
    assert (path / "epochs.csv").read_text().startswith(done)
    assert not list(tmp_path.rglob("hpc_ckpt*"))


@pytest.mark.long
def test_of_torchruns_copies_one_trains_a_run_and_the_other_waits(root, tmp_path):
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", TRAIN, *SMALL, "epochs=9"]
    ended = subprocess.run(
        [sys.executable, *command, f"data.root={root}"], cwd=tmp_path, text=True, capture_output=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    records = [record for _, record in store.read_all(tmp_path / "outputs/runs")]
    assert [record.result["status"] for record in records] == ["finished"]
    assert (ended.stdout.count(": finished, "), ended.stdout.count(": finished before, ")) == (1, 1)
