"""What Slurm is asked for, and its refusals, with commands that stand in for its own (a real one: tests/cluster/)."""

import os
import shlex
import sys
import time
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra.utils import instantiate

from hydra_plugins import slurm_launcher
from smallbatch.compose import compose
from smallbatch.errors import ConfigError

pytestmark = pytest.mark.trains

JOBS = [["batch_size=8", "grid_since=1234"]]
SBATCH = """#!/bin/bash
printf '%s\\n' "$@" > "$SLURM_HERE/asked"
if [ -e "$SLURM_HERE/refusal" ]; then cat "$SLURM_HERE/refusal" >&2; exit 1; fi
for word; do case $word in --output=*) log=${word#--output=};; esac; done
log=$(sed 's/%A/77/; s/%%/%/g' <<< "$log")
echo "77;here"
for task in 0 1; do bash -c "${@: -1}" > "${log//%a/$task}" 2>&1 & echo $! >> "$SLURM_HERE/tasks"; done
wait
"""
SCANCEL = """#!/bin/bash
echo "$@" >> "$SLURM_HERE/cancelled"
if [ -e "$SLURM_HERE/lost" ]; then echo "scancel: error: no controller" >&2; exit 1; fi
[ "$1" = --state=PENDING ] || xargs kill < "$SLURM_HERE/tasks" 2> /dev/null || true
"""
SQUEUE = """#!/bin/bash
for task in $(cat "$SLURM_HERE/tasks"); do kill -0 $task 2> /dev/null && echo $task; done
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to be in, of a name that shells and Slurm might read otherwise, on a machine with Slurm's commands."""
    folder = tmp_path / "it's 100 %"
    (folder / "bin").mkdir(parents=True)
    for name, text in {"sbatch": SBATCH, "scancel": SCANCEL, "squeue": SQUEUE}.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("SLURM_HERE", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_launcher, "POLL", 0.02)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def launcher(here, monkeypatch):
    """(words, what a worker runs) → the launcher of a command line with these words."""
    made = []

    def make(*words: str, runs: tuple[str, ...] = ("-c", "print('well', 'done')")) -> slurm_launcher.SlurmLauncher:
        compose([])  # Hydra is there
        cfg = hydra_compose("train", ["hydra/launcher=slurm", *words], return_hydra_config=True)
        monkeypatch.setattr(sys, "orig_argv", ["python", *runs])
        made.append(instantiate(cfg.hydra.launcher))
        made[-1].setup(hydra_context=None, task_function=None, config=cfg)
        return made[-1]

    yield make
    for one in made:
        one.close(at_once=True)


def asked(here: Path) -> list[str]:
    return (here / "asked").read_text().splitlines()


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def over(launcher) -> str:
    """What is said of an array that has gone."""
    with pytest.raises(RuntimeError, match="Slurm's array 77 is over: ") as error:
        until(lambda: not launcher.at_work())
    return str(error.value)


def test_the_array_is_asked_for_in_sbatchs_words(launcher, here):
    words = ["workers=3", "cpus=4", "partition=gpu", "time=1-12:00:00", "memory=16G", "gres=gpu:1", "account=me"]
    slurm = launcher(*(f"hydra.launcher.{word}" for word in words), "hydra.launcher.arguments=['--qos=low','--nice']")
    assert list(slurm.launch(JOBS, 0)) == []
    assert asked(here)[:15] == [
        *("--parsable", "--wait", "--requeue", "--job-name=smallbatch", "--open-mode=append"),
        f"--output={here}/outputs/slurm/%A_%a.log".replace("100 %", "100 %%", 1),
        *("--array=0-2", "--cpus-per-task=4", "--mem=16G", "--partition=gpu", "--time=1-12:00:00"),
        *("--gres=gpu:1", "--account=me", "--qos=low", "--nice"),
    ]
    assert slurm.n_jobs == 4


def test_what_is_not_said_is_the_clusters_own(launcher, here):
    slurm = launcher("hydra.launcher.n_jobs=2", "store=elsewhere/runs")
    slurm.launch(JOBS, 0)
    assert asked(here)[5:-2] == [
        f"--output={here}/elsewhere/slurm/%A_%a.log".replace("100 %", "100 %%", 1),
        *("--array=0-3", "--cpus-per-task=1"),
    ]
    assert slurm.n_jobs == 2


def test_a_worker_is_the_same_command_in_the_same_folder_with_one_word_more(launcher, here):
    runs = (
        "-c",
        "import os, sys; print('error:', os.getcwd(), sys.argv)",
        "-m",
        "wandb.notes='a b'",
        "--config-dir",
        "mine",
    )
    slurm = launcher("wandb.notes='a b'", runs=runs)
    slurm.launch(JOBS, 0)
    assert asked(here)[-1].endswith(shlex.join([sys.executable, *runs[:3], JOBS[0][1], *runs[3:]]))
    said = over(slurm)
    words = ["-c", "-m", "grid_since=1234", "wandb.notes='a b'", "--config-dir", "mine"]
    assert said.startswith(f"Slurm's array 77 is over: error: {here} {words} ({here}/outputs/slurm/77_")


def test_workers_are_asked_for_once_and_again_when_they_are_gone(launcher, here):
    slurm = launcher(runs=("-c", "import time; time.sleep(1)"))
    slurm.launch(JOBS, 0)
    (here / "asked").unlink()
    slurm.launch(JOBS, 1)
    assert slurm.at_work()
    assert not (here / "asked").exists()
    assert "its log is empty" in over(slurm)
    slurm.launch(JOBS, 1)
    assert (here / "asked").exists()


def test_a_folder_that_a_node_has_not_is_named_and_nothing_is_trained_elsewhere(launcher, here, monkeypatch):
    slurm = launcher(runs=("-c", f"open({str(here / 'trained')!r}, 'w')"))
    monkeypatch.setattr(os, "getcwd", lambda: f"{here}/gone")
    slurm.launch(JOBS, 0)
    assert "gone: No such file or directory" in over(slurm)
    assert not (here / "trained").exists()


@pytest.mark.parametrize("at_once", [True, False])
def test_in_the_end_no_worker_is_left(launcher, here, capsys, at_once):
    slurm = launcher(runs=("-c", f"import time; time.sleep({100 if at_once else 0.5})"))
    slurm.launch(JOBS, 0)
    slurm.close(at_once)
    assert not capsys.readouterr().err
    cancelled = (here / "cancelled").read_text().splitlines()
    assert cancelled == (["77"] if at_once else ["--state=PENDING 77", "77"])
    assert slurm.sbatch is None


def test_an_array_that_cannot_be_cancelled_is_named(launcher, here, capsys, monkeypatch):
    monkeypatch.setattr(slurm_launcher, "PATIENCE", 0.1)
    (here / "lost").touch()
    slurm = launcher(runs=("-c", "import time; time.sleep(1)"))
    slurm.launch(JOBS, 0)
    slurm.close(at_once=True)
    assert capsys.readouterr().err == "array 77 may still be in the queue. scancel: error: no controller\n"


def test_an_array_whose_sbatch_has_gone_is_at_work_as_long_as_it_is_in_the_queue(launcher):
    slurm = launcher(runs=("-c", "import time; time.sleep(1)"))
    slurm.launch(JOBS, 0)
    slurm.sbatch.kill()
    slurm.sbatch.wait()
    assert slurm.at_work()
    over(slurm)


def test_a_cluster_that_refuses_gives_its_reason_in_one_line(launcher, here):
    (here / "refusal").write_text("sbatch: error: invalid partition: x\nsbatch: error: Batch job submission failed\n")
    slurm = launcher()
    with pytest.raises(ConfigError, match=r"sbatch refuses: invalid partition: x; Batch job submission failed$"):
        slurm.launch(JOBS, 0)
    slurm.close(at_once=False)


def test_without_slurm_it_says_so(launcher, here, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="there is no sbatch here; use hydra/launcher=local"):
        launcher().launch(JOBS, 0)


def test_another_sweeper_is_refused(launcher):
    with pytest.raises(ConfigError, match="leave out hydra/sweeper"):
        launcher().launch([["batch_size=8"]], 0)


def test_a_time_that_yaml_took_for_a_number_is_refused(launcher):
    with pytest.raises(ConfigError, match=r"hydra.launcher.time=14400: write hours:minutes:seconds"):
        launcher("hydra.launcher.time=14400").launch(JOBS, 0)
