"""A grid ends when its points have results, whoever trained them."""

import errno
import io
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from smallbatch import lock, store
from smallbatch.compose import compose
from smallbatch.errors import ConfigError
from smallbatch.files import now
from smallbatch.grids import progress
from smallbatch.grids.sweep import sweep, train_grid
from smallbatch.run import make_run
from train import main

pytestmark = pytest.mark.trains

SOURCE = Path(__file__).parents[2] / "src"
FORK = multiprocessing.get_context("forkserver")
SMALL = ["data.train_size=64", "data.test_size=40", "machine.accelerator=cpu", "base_lr=1/4096"]
RESULT = {"status": "finished", "score": 0.5, "seconds": 1.0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(progress, "POLL", 0.05)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def grid(data, tmp_path):
    """Two points, of m = 8 and 16, in a store of the test's own, and more words."""

    def words(*more: str) -> list[str]:
        return ["batch_size=8,16", "epochs=1", *SMALL, f"data.root={data}", f"store={tmp_path / 'runs'}", *more]

    return words


def config(words: list[str], m: int = 8):
    """The config of one of its points."""
    return compose([*(word.partition(",")[0] for word in words), f"batch_size={m}"])


def folder_of(words: list[str], m: int) -> Path:
    cfg = config(words, m)
    return store.folder(Path(cfg.store), make_run(cfg))


def trained(jobs) -> None:
    """What a launcher does that trains."""
    for job in jobs:
        main(compose(list(job)))


def written(jobs, **changes) -> None:
    """What a launcher does, without the training."""
    for job in jobs:
        cfg = compose(list(job))
        run = make_run(cfg)
        path = store.folder(Path(cfg.store), run)
        path.mkdir(parents=True, exist_ok=True)
        store.write_result(path, run, [], RESULT | changes)


def status(words: list[str], launch=written) -> int:
    """The exit status of the grid, trained in this process."""
    try:
        sweep(words, launch, config(words))
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0


def _child(words, launch, name):
    progress.POLL = 0.05
    signal.signal(signal.SIGINT, signal.default_int_handler)
    write = store.write_result

    def noted(path, *rest):
        write(path, *rest)
        with (path.parents[1] / "trained").open("a") as file:
            file.write(f"{path.name} {name}\n")

    store.write_result = noted
    folder = Path(config(words).store).parent
    with (folder / f"{name}.out").open("a") as out, redirect_stdout(out), redirect_stderr(out):
        code = status(words, launch)
    os._exit(code)


def start(words, name, launch=trained):
    process = FORK.Process(target=_child, args=(words, launch, name))
    process.start()
    return process


def exit_code(process) -> int:
    process.join(120)
    return process.exitcode


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def said(folder: Path, name: str) -> str:
    file = folder / f"{name}.out"
    return file.read_text() if file.exists() else ""


# --- several processes on one store


def table(folder: Path, name: str) -> str:
    text = said(folder, name)
    return text[text.index("\nscore") : text.rindex("\n", 0, -1)]


@pytest.mark.long
def test_of_three_equal_grids_one_is_killed_and_the_others_train_each_run_once(grid, tmp_path):
    words = grid("epochs=12", "seed=0,1")
    first = start(words, "first")
    until(lambda: list((tmp_path / "runs").glob("*/epochs.csv")))
    others = [start(words, name) for name in ("second", "third")]
    until(lambda: all(said(tmp_path, name) for name in ("second", "third")))
    first.kill()
    assert [exit_code(process) for process in others] == [0, 0]
    assert exit_code(start(words, "first")) == 0
    runs = [line.split()[0] for line in (tmp_path / "trained").read_text().splitlines()]
    assert len(runs) == len(set(runs)) == 4
    assert table(tmp_path, "first") == table(tmp_path, "second") == table(tmp_path, "third")
    for path, record in store.read_all(tmp_path / "runs"):
        assert sorted(file.name for file in path.iterdir()) == ["config.json", "epochs.csv", "result.json"]
        assert len(record.rows) == 12


@pytest.mark.cluster
@pytest.mark.parametrize("killed", [0, 1], ids=["here", "elsewhere"])
def test_so_it_is_between_machines_of_one_disk(grid, tmp_path, killed):
    """The second command has a host name and process numbers of its own, as on another machine or in a container."""
    elsewhere = ["unshare", "-u", "-p", "-f", "--kill-child", "--mount-proc"]
    try:
        subprocess.run([*elsewhere, "hostname", "elsewhere"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system gives no host name and process numbers of their own to who is not root")
    name = [platform.node(), "elsewhere", platform.node()]
    renamed = [*elsewhere, "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    path = os.pathsep.join([str(SOURCE), str(Path(__file__).parent)])
    with ExitStack() as stack:

        def begin(which: int):
            code = f"import test_sweep as t; t._child({grid('epochs=8')}, t.trained, '{which}')"
            command = [*(renamed if which == 1 else []), sys.executable, "-c", code]
            process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, start_new_session=True)
            stack.callback(process.kill)
            return process

        first = begin(killed)
        until(lambda: list((tmp_path / "runs").glob("*/epochs.csv")))
        os.killpg(first.pid, signal.SIGSTOP)  # while it has a run, which stays its own
        others = {which: begin(which) for which in {0, 1, 2} - {killed}}
        until(lambda: any(f"on {name[killed]} since" in said(tmp_path, str(which)) for which in others))
        first.kill()
        assert [process.wait(120) for process in others.values()] == [0, 0]
    by = dict(line.split() for line in (tmp_path / "trained").read_text().splitlines())
    assert len(by) == len((tmp_path / "trained").read_text().splitlines()) == 2
    assert str(killed) not in by.values()


def test_a_grid_waits_for_a_run_in_training_elsewhere_and_takes_it_over(grid, tmp_path):
    with lock.hold(folder_of(grid(), 16)):
        process = start(grid(), "grid", written)
        until(lambda: "waiting" in said(tmp_path, "grid"))
        time.sleep(0.3)
        assert process.is_alive()
    assert exit_code(process) == 0
    lines = said(tmp_path, "grid").splitlines()
    (line,) = [line for line in lines if line.startswith("waiting for 1 run in training elsewhere: ")]
    assert re.search(rf"m=16 .* \(process {os.getpid()} on \S+ since .*\)", line)
    assert lines[-1] == "2 finished"


@pytest.mark.parametrize(("result", "code"), [("finished", 0), ("diverged", 0), ("failed", 1)])
def test_what_another_process_ends_while_a_grid_waits_counts_as_what_it_is(grid, tmp_path, result, code):
    with lock.hold(folder_of(grid(), 16)):
        process = start(grid(), "grid", written)
        until(lambda: "waiting" in said(tmp_path, "grid"))
        written([[*grid("batch_size=16")][1:]], status=result, error="no")
        assert exit_code(process) == code
    assert f"1 {result}" in said(tmp_path, "grid") or "2 finished" in said(tmp_path, "grid")
    assert (tmp_path / "trained").read_text().count("\n") == 1


def test_ctrl_c_ends_the_wait(grid, tmp_path):
    with lock.hold(folder_of(grid(), 16)):
        process = start(grid(), "grid", written)
        until(lambda: "waiting" in said(tmp_path, "grid"))
        os.kill(process.pid, signal.SIGINT)
        assert exit_code(process) == 130
    assert said(tmp_path, "grid").endswith("interrupted: the same command goes on from here\n")


def test_a_grid_that_does_not_wait_names_what_is_missing_and_exits_1(grid, capsys):
    with lock.hold(folder_of(grid(), 16)):
        assert status(grid("wait=false")) == 1
    output, errors = capsys.readouterr()
    assert output.splitlines()[-1] == "1 finished, 1 without a result"
    assert errors.startswith(f"in training by process {os.getpid()} on ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_a_run_that_ends_between_the_look_and_the_launch_counts(grid, capsys, tmp_path, overwrite):
    def slow(jobs):
        written(jobs)
        trained(jobs)

    assert status(grid(f"overwrite={overwrite}"), slow) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 finished"
    assert not any(record.rows for _, record in store.read_all(tmp_path / "runs"))


# --- a process that helps another's grid: its command says when that began


@pytest.mark.parametrize("overwrite", ["false", "true"])
@pytest.mark.parametrize("ended", ["finished", "failed"])
def test_one_that_helps_trains_nothing_again_that_was_trained_since(grid, capsys, tmp_path, overwrite, ended):
    assert status(grid()) == 0
    words = grid("batch_size=8,16,32", f"overwrite={overwrite}")
    cfg = config(words)
    cfg.grid_since = now(tmp_path / "runs")
    written([grid("batch_size=16")[1:]], status=ended, error="no")
    launched = []

    def launch(jobs):
        launched.extend(compose(list(job)).batch_size for job in jobs)
        written(jobs)

    capsys.readouterr()
    assert train_grid(launch, cfg, words, None, helps=True) == (ended == "finished")
    assert sorted(launched) == ([8, 32] if overwrite == "true" else [32])
    assert capsys.readouterr().out.startswith(f"3 runs: {2 - len(launched)} finished before, {len(launched)} to train")


def test_one_that_helps_leaves_what_others_train(grid):
    cfg = config(grid())
    cfg.grid_since = 0
    with lock.hold(folder_of(grid(), 16)):
        assert not train_grid(written, cfg, grid(), None, helps=True)
    assert store.done(folder_of(grid(), 8))
    assert not store.done(folder_of(grid(), 16))


# --- launchers that go on by themselves


class Workers:
    def __init__(self, at_work):
        self.at_work, self.closed = at_work, []

    def close(self, at_once):
        self.closed.append(at_once)


def test_it_waits_for_a_launcher_that_goes_on_by_itself(grid, capsys):
    launched = []

    def launch(jobs):
        thread = threading.Timer(0.5, written, [jobs])
        thread.start()
        launched.append(Workers(thread.is_alive))
        return launched[-1]

    assert status(grid("wait=false"), launch) == 0
    assert [workers.closed for workers in launched] == [[]]
    assert capsys.readouterr().out.splitlines()[-1] == "2 finished"


def test_ctrl_c_ends_it_before_anything_else(grid, capsys):
    def interrupted():
        raise KeyboardInterrupt

    workers = Workers(interrupted)
    assert status(grid(), lambda jobs: workers) == 130
    assert workers.closed == [True]


def test_why_it_went_is_told_once(grid, capsys):
    def gone():
        raise RuntimeError("no Python there")

    assert status(grid(), lambda jobs: Workers(gone)) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "the launcher broke off: no Python there"
    assert [line[:14] for line in errors[1:]] == ["not trained: a"] * 2


def test_what_will_do_for_no_point_ends_it_in_one_line(grid, capsys):
    def refuse(jobs):
        raise ConfigError("no such partition")

    assert status(grid(), refuse) == 1
    assert capsys.readouterr().err == "error: no such partition\n"


# --- launchers that break off


def test_a_launcher_that_breaks_off_is_started_again_with_what_is_left(grid, capsys):
    launched = []

    def breaking(jobs):
        launched.append(len(jobs))
        written(jobs[:1])
        if len(jobs) > 1:
            raise RuntimeError("a worker was killed\nand more")

    assert status(grid("seed=0,1"), breaking) == 0
    assert launched == [4, 3, 2, 1]
    assert capsys.readouterr().err == "the launcher broke off: a worker was killed\n" * 3


def test_a_launcher_that_gets_nowhere_is_given_up(grid, capsys):
    launched = []
    assert status(grid(), launched.append) == 1
    assert len(launched) == 2
    output, errors = capsys.readouterr()
    assert output.splitlines()[-1] == "2 without a result"
    assert [line[:14] for line in errors.splitlines()] == ["not trained: a"] * 2


def test_what_each_process_would_read_otherwise_is_refused_before_it_trains(grid, tmp_path, capsys):
    assert status(grid("seed=${now:%f}"), trained) == 1
    why = "error: a setting written as ${…} has another value in each process: write the value itself"
    assert capsys.readouterr().err.startswith(f"{why}\nnot trained: ")
    assert not list((tmp_path / "runs").glob("*/config.json"))


# --- reading and telling


def test_each_result_is_read_once(grid, tmp_path, monkeypatch):
    read, seen = store.read, []
    monkeypatch.setattr(store, "read", lambda path: seen.append(path.name) or read(path))
    for _ in range(2):
        assert status(grid()) == 0
        assert len(seen) == len(set(seen)) == 2
        seen.clear()


def test_every_run_that_ends_is_told_in_a_log_and_scores_make_a_table(grid, capsys):
    assert status(grid()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 runs: 0 finished before, 2 to train (12 updates, 128 images)")
    assert [line[:18] for line in lines[2:4]] == ["1/2 alexnet digits", "2/2 alexnet digits"]
    assert lines[-5:-2] == ["score", "     η̃     m=8    m=16", " 2^-12  0.5000  0.5000"]
    assert lines[-2].startswith("next: the best η̃ of m=8,16 is the lowest")
    assert lines[-1] == "2 finished"
    assert status(grid("batch_size=8,16,32")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 finished before, 1 finished"


def test_it_ends_with_the_answer_of_its_own_runs(grid, tmp_path, capsys):
    drawn = []

    def tell(records, folder):
        drawn.extend(record.run.batch_size for record in records)
        return [f"an answer, in {folder}"]

    sweep(grid(), written, config(grid()), tell)
    assert f"an answer, in {tmp_path}" in capsys.readouterr().out.splitlines()
    sweep(grid("batch_size=16,32"), written, config(grid()), tell)
    assert drawn == [8, 16, 16, 32]
    sweep(
        [f"store={tmp_path / 'runs'}", f"data.root={tmp_path}", "wait=false", "figure=fig01", "scale=smoke"],
        written,
        config(grid()),
        tell,
    )
    assert len(drawn) == 4
    output = capsys.readouterr().out
    where = f"store={tmp_path / 'runs'} data.root={tmp_path}"
    assert f"to see this: python src/figures.py figure=fig01 {where} scale=smoke\n" in output


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_with_counts(grid, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())

    def slow(jobs):
        written(jobs[:1])
        time.sleep(0.5)
        written(jobs[1:])

    assert status(grid(), slow) == 0
    assert "1/2 done (0 skipped, 1 finished, 0 diverged, 0 failed), 0 running, about " in sys.stderr.getvalue()


def test_a_closed_output_harms_nothing(grid, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert status(grid(), trained) == 0


# --- disks that will not


@contextmanager
def mounted(folder: Path, options: str):
    """A disk of its own, in memory; a function to change it."""
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a disk")
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "-l", folder], check=True)
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def alone(cfg) -> str | int | None:
    with pytest.raises(SystemExit) as stop:
        main(cfg)
    return stop.value.code


FILE = "/[0-9a-f]{16}/config.json"  # that had no room


def test_a_full_disk_is_one_line_and_the_same_command_goes_on_when_there_is_room(grid, tmp_path, capfd):
    with mounted(tmp_path / "disk", "size=8k") as remount:
        words = grid(f"store={tmp_path / 'disk' / 'runs'}")
        (tmp_path / "disk" / "filler").write_bytes(b"x" * 8192)
        why = (
            f"error: {tmp_path / 'disk' / 'runs'}: {os.strerror(errno.ENOSPC)}; make room, and the same command goes on"
        )
        assert re.sub(FILE, "", alone(config(words))) == why
        assert status(words, trained) == 1
        output, errors = capfd.readouterr()
        errors = re.sub(FILE, "", errors)
        assert errors.splitlines() == [why, *[line for line in errors.splitlines() if line.startswith("not trained: ")]]
        assert output.splitlines()[-1] == "2 without a result"
        remount("size=64m")
        assert status(words, trained) == 0


def test_a_store_that_is_read_only_is_one_line_before_anything_is_done(grid, tmp_path, capfd):
    with mounted(tmp_path / "disk", "size=64k") as remount:
        words = grid(f"store={tmp_path / 'disk' / 'runs'}")
        remount("ro")
        why = f"runs: {os.strerror(errno.EROFS)}; put the store elsewhere, with store=…"
        assert str(alone(config(words))).endswith(why)
        assert status(words, trained) == 1
        assert capfd.readouterr() == ("", f"error: {tmp_path / 'disk' / why}\n")


def test_a_finished_grid_on_a_read_only_disk_is_finished(grid, tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as remount:
        words = grid(f"store={tmp_path / 'disk' / 'runs'}")
        assert status(words) == 0
        (folder_of(words, 8) / store.CHECKPOINT).touch()  # what a killed process left
        remount("ro")
        assert status(words) == 0
