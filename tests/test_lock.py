"""A run has at most one trainer, for as long as that lives, and no longer."""

import errno
import fcntl
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from smallbatch import lock
from smallbatch.errors import ConfigError
from smallbatch.lock import Busy, hold, holder

pytestmark = pytest.mark.trains

SOURCE = Path(__file__).parents[1] / "src"
FORK = multiprocessing.get_context("forkserver")
N = 4


def _start(target, *arguments):
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def _is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state not in "ZX"


# --- one at a time


def _hold_all(paths, barrier, wins):
    """Everyone tries at once, and who wins holds until everyone has tried."""
    for path in paths:
        barrier.wait()
        try:
            with hold(path):
                barrier.wait()
                wins.put((path.name, True))
        except Busy:
            barrier.wait()
            wins.put((path.name, False))


def test_of_n_processes_at_once_exactly_one_gets_the_lock(tmp_path):
    paths = [tmp_path / f"run{i}" for i in range(8)]
    wins, barrier = FORK.Queue(), FORK.Barrier(N)
    processes = [_start(_hold_all, paths, barrier, wins) for _ in range(N)]
    outcomes = [wins.get(timeout=60) for _ in range(N * len(paths))]
    for process in processes:
        process.join()
    for path in paths:
        assert sorted(won for name, won in outcomes if name == path.name) == [False] * (N - 1) + [True]
        assert holder(path) is None


def _enter_and_leave(path, until, barrier, counts):
    """Take the lock as often as possible; on the inside nobody else may be."""
    entered = trespasses = 0
    barrier.wait()
    while time.time() < until.value:
        with suppress(Busy), hold(path):
            try:
                path.touch(exist_ok=False)
                time.sleep(0.0005)
                path.unlink()
                entered += 1
            except OSError:
                trespasses += 1
    counts.put((entered, trespasses))


def test_nobody_is_ever_inside_with_another(tmp_path):
    counts, barrier, until = FORK.Queue(), FORK.Barrier(N + 1), FORK.Value("d", math.inf)
    processes = [_start(_enter_and_leave, tmp_path / "run", until, barrier, counts) for _ in range(N)]
    barrier.wait(60)
    until.value = time.time() + 1
    entered, trespasses = zip(*[counts.get(timeout=60) for _ in range(N)], strict=True)
    for process in processes:
        process.join()
    assert sum(entered) > N
    assert sum(trespasses) == 0


def test_a_lock_is_freed_after_an_error_and_its_file_stays(tmp_path):
    def fail():
        with hold(tmp_path / "run"):
            assert holder(tmp_path / "run")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert holder(tmp_path / "run") is None
    assert [path.name for path in tmp_path.rglob("*")] == [".locks", "run.lock"]


def test_busy_says_who_has_it_where_and_since_when(tmp_path):
    who = rf"process {os.getpid()} on {os.uname().nodename} since \d{{4}}-\d\d-\d\d \d\d:\d\d UTC"
    with hold(tmp_path / "run"):
        with pytest.raises(Busy, match=rf"run: {who} is training it"):
            hold(tmp_path / "run").__enter__()
        (tmp_path / ".locks" / "run.txt").unlink()  # for people only: nothing hangs on it
        with pytest.raises(Busy, match="run: another process is training it"):
            hold(tmp_path / "run").__enter__()


def test_looking_makes_nothing_and_keeps_nobody_out(tmp_path):
    assert holder(tmp_path / "run") is None
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path / "run"):
        pass
    looker = FORK.Event()
    process = _start(_look, tmp_path / "run", looker)
    for _ in range(200):
        with hold(tmp_path / "run"):
            pass
    looker.set()
    process.join()


def _look(path, stop):
    while not stop.is_set():
        holder(path)


# --- the owner stops, dies, or has children


def _hold_with_child(path, kind, pids):
    with hold(path):
        if kind == "fork":
            child = os.fork()
            if not child:
                time.sleep(600)
        elif kind == "multiprocessing":
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
            process.start()
            child = process.pid
        elif kind == "DataLoader":
            child = _data_loader_worker()
        else:
            child = 0
        pids.put((os.getpid(), child))
        time.sleep(600)


def _data_loader_worker() -> int:
    from torch.utils.data import DataLoader

    batches = iter(DataLoader(list(range(1000)), num_workers=1, multiprocessing_context="fork"))
    next(batches)
    _data_loader_worker.kept = batches
    return batches._workers[0].pid


@contextmanager
def _owner(path, kind="alone"):
    """The process numbers of another owner and its child, both gone in the end."""
    pids = FORK.Queue()
    process = _start(_hold_with_child, path, kind, pids)
    owner, child = pids.get(timeout=60)
    try:
        yield owner, child
    finally:
        process.kill()
        process.join()
        if child:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["alone", "fork", "multiprocessing", "DataLoader"])
def test_a_killed_owners_lock_is_free_at_once_whatever_children_it_leaves(tmp_path, kind):
    with _owner(tmp_path / "run", kind) as (owner, child):
        assert f"process {owner} " in holder(tmp_path / "run")
        os.kill(owner, signal.SIGKILL)
        deadline = time.monotonic() + 1
        while holder(tmp_path / "run") and time.monotonic() < deadline:
            time.sleep(0.01)
        with hold(tmp_path / "run"):
            assert not child or _is_alive(child)


def test_a_stopped_owner_keeps_its_lock(tmp_path):
    with _owner(tmp_path / "run") as (owner, _):
        os.kill(owner, signal.SIGSTOP)
        for _ in range(3):
            with pytest.raises(Busy):
                hold(tmp_path / "run").__enter__()
        os.kill(owner, signal.SIGCONT)
        assert f"process {owner} " in holder(tmp_path / "run")


ASK = "import sys; from pathlib import Path; from smallbatch.lock import holder; print(holder(Path(sys.argv[1])))"


def test_a_process_with_its_own_process_numbers_sees_the_lock(tmp_path):
    """As in another container of the same host."""
    apart = ["unshare", "-pf", "--mount-proc"]
    try:
        subprocess.run([*apart, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system gives no process numbers of their own to who is not root")
    asked = [*apart, sys.executable, "-c", ASK, tmp_path / "run"]
    with hold(tmp_path / "run"):
        answer = subprocess.run(asked, env=os.environ | {"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True)
    assert f"process {os.getpid()} on " in answer.stdout, answer.stderr


# --- disks that will not


def _refusal(path) -> str:
    with pytest.raises(ConfigError) as caught:
        hold(path).__enter__()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_disk_without_locks_is_refused_with_what_to_do(tmp_path, monkeypatch, code):
    def flock(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert _refusal(tmp_path / "run") == (
        f"{tmp_path / 'run'}: {os.strerror(code)}; "
        "this disk cannot lock files; put the store on one that can, with store=…"
    )


def _as_other_user(path, answers):
    os.setgid(65534)
    os.setuid(65534)
    try:
        with hold(path):
            answers.put("held")
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("first", [False, True], ids=["who comes second", "to a run trained before"])
def test_another_user_without_rights_is_told_what_to_set(first):
    if os.getuid():
        pytest.skip("only root can act for two users")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        os.chmod(folder, 0o755)
        path = Path(folder) / "run"
        if first:
            before = os.umask(0o022)
            with hold(path):
                pass
            os.umask(before)
        answers = FORK.Queue()
        _start(_as_other_user, path, answers).join()
        refused = Path(folder) / ".locks" / ("run.lock" if first else "")
        assert answers.get(timeout=60) == (
            f"ConfigError: {refused}: Permission denied; to share a store, its owner says `chmod -R g+w` on it once, "
            "and all say `umask 002` before they train"
        )


@pytest.mark.parametrize(("code", "advice"), [(errno.ENOSPC, "make room"), (errno.EROFS, "put the store elsewhere")])
def test_a_disk_that_takes_no_file_is_named_with_its_reason_until_it_does(tmp_path, monkeypatch, code, advice):
    opened = os.open

    def refuse(path, *arguments, **keywords):
        if str(path).endswith(".lock"):
            raise OSError(code, os.strerror(code), path)
        return opened(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        file = tmp_path / ".locks" / "run.lock"
        assert _refusal(tmp_path / "run").startswith(f"{file}: {os.strerror(code)}; {advice}")
    with hold(tmp_path / "run"):
        assert lock.holder(tmp_path / "run")
