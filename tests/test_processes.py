"""Each worker process has a card of its own, from its first job until it ends. No card is needed to see that."""

import os
import signal
import time
from collections import Counter

import pytest
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from smallbatch import machine, processes
from smallbatch.errors import SmallBatchError

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def _workers_of_its_own(monkeypatch):
    monkeypatch.setattr(processes, "_held", [])
    processes._folder.cache_clear()
    yield
    get_reusable_executor().shutdown(kill_workers=True)
    processes._folder.cache_clear()


@pytest.fixture
def cards(monkeypatch):
    """So many cards, of which the parent knows the names only."""

    def there_are(*names: str) -> None:
        monkeypatch.setattr(processes, "devices", lambda: list(names))

    return there_are


def meet(folder, count: int) -> tuple[int, str | None]:
    """Wait for as many processes; which this is, and the card that CUDA would show it."""
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + 60
    while len(list(folder.iterdir())) < count and time.monotonic() < until:
        time.sleep(0.01)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def all_meet(folder, count: int, jobs: int) -> dict[int, str | None]:
    """The card of each process, which is the same in all of its jobs."""
    folder.mkdir(exist_ok=True)
    met = set(processes.in_parallel(meet, [(folder, count)] * jobs, count))
    assert len(met) == len(dict(met)) == count
    return dict(met)


@pytest.mark.parametrize(("names", "count"), [(["0", "GPU-7"], 4), (["3"], 2)])
def test_workers_take_the_cards_in_turn_and_keep_them(cards, tmp_path, names, count):
    cards(*names)
    first = all_meet(tmp_path / "first", count, 2 * count)
    assert Counter(first.values()) == dict.fromkeys(names, count // len(names))
    assert all_meet(tmp_path / "again", count, count) == first  # a search's next round has the same processes


def test_without_cards_a_worker_sees_what_the_parent_sees(cards, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cards()
    assert set(all_meet(tmp_path / "met", 2, 2).values()) == {""}


def test_one_process_is_the_parent_whose_cards_stay_as_they_are(cards, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cards("0", "1")
    assert processes.in_parallel(os.getpid, [()], 1) == [os.getpid()]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def die(folder, count: int) -> None:
    """Once all are there, and have a card."""
    meet(folder, count)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_takes_a_killed_workers_place_gets_its_card(cards, tmp_path):
    cards("0", "1", "2")
    first = all_meet(tmp_path / "first", 3, 3)
    with pytest.raises(TerminatedWorkerError):
        processes.in_parallel(die, [(tmp_path / "first", 3)], 3)
    again = all_meet(tmp_path / "again", 3, 3)
    assert sorted(again.values()) == ["0", "1", "2"]
    assert not first.keys() & again.keys()


def test_a_place_is_taken_as_soon_as_its_process_has_ended(tmp_path, monkeypatch):
    assert [processes.take_place(tmp_path, 2), processes.take_place(tmp_path, 2)] == [0, 1]
    monkeypatch.setattr(processes, "PATIENCE", 0.3)
    with pytest.raises(SmallBatchError, match="none of its 2 places for processes is free"):
        processes.take_place(tmp_path, 2)
    processes._held.pop(0).release()
    assert processes.take_place(tmp_path, 2) == 0


def test_apart_is_another_process_only_where_there_are_cards_and_it_ends_soon(cards, monkeypatch):
    monkeypatch.setattr(processes, "IDLE", 0.2)
    cards()
    assert processes.apart(os.getpid) == os.getpid()
    cards("0")
    other = processes.apart(os.getpid)
    assert other != os.getpid()
    until = time.monotonic() + 60
    while os.path.exists(f"/proc/{other}/status") and time.monotonic() < until:
        time.sleep(0.05)
    assert processes.apart(os.getpid) not in (other, os.getpid())


@pytest.mark.parametrize(
    ("accelerator", "names", "jobs_per_device", "count"),
    [
        ("auto", ["0", "1"], 1, 2),
        ("gpu", ["0", "1"], 3, 6),
        ("cuda", ["MIG-1"], 1, 1),
        ("cpu", ["0", "1"], 3, 7),
        ("auto", [], 3, 7),
        ("mps", [], 3, 7),
    ],
)
def test_there_are_as_many_processes_as_cards_take_or_cores(monkeypatch, accelerator, names, jobs_per_device, count):
    monkeypatch.setattr(machine, "devices", lambda: names)
    monkeypatch.setattr("joblib.cpu_count", lambda: 7)
    assert machine.processes(accelerator, jobs_per_device) == count


@pytest.mark.parametrize(
    ("asked", "count", "names"),
    [
        (None, 0, []),
        (None, 3, ["0", "1", "2"]),
        ("", 0, []),
        ("-1", 0, []),
        ("NoDevFiles", 0, []),
        ("3", 1, ["3"]),
        ("3, 1", 2, ["3", "1"]),
        ("1,9", 1, ["1"]),  # CUDA stops at the first that there is not
        ("0,-1,1", 1, ["0"]),
        ("1,1", 0, []),  # CUDA sees none
        ("GPU-5ea1,GPU-07", 2, ["GPU-5ea1", "GPU-07"]),
        ("MIG-1", 1, ["MIG-1"]),
        ("MIG-1,MIG-2", 1, ["MIG-1", "MIG-2"]),  # CUDA shows a process one of them
        ("MIG-1,MIG-2", 0, []),
        ("MIG-GPU-5ea1/1/0,MIG-GPU-5ea1/2/0", 1, ["MIG-GPU-5ea1/1/0", "MIG-GPU-5ea1/2/0"]),
    ],
)
def test_cards_have_the_names_that_cuda_knows_them_by(asked, count, names):
    assert machine.visible(asked, count) == names


def test_what_torch_counts_is_what_has_names(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert machine.devices() == ["5", "2"]
