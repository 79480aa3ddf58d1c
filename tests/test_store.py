"""Run folders read back what was written or say that they are damaged; a run has at most one trainer."""

import csv
import json
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from smallbatch import lock, store
from smallbatch.config import Norm, Schedule
from smallbatch.files import replacing, write_text
from smallbatch.lock import Busy, Claim
from smallbatch.run import Run
from smallbatch.store import DamagedRun

SPAWN = multiprocessing.get_context("spawn")
N = 8


def make(seed: int = 0) -> Run:
    return Run(
        model={"_target_": "smallbatch.models.alexnet.AlexNet", "name": "alexnet"},
        data={"name": "digits", "fingerprint": "0123", "train_size": 64, "test_size": None, "augment": False},
        norm=Norm(),
        optimizer={"_target_": "torch.optim.SGD", "name": "sgd", "momentum": 0.0, "nesterov": False},
        schedule=Schedule(drops=[0.5]),
        batch_size=8, base_lr=2**-9, bn_batch_size=None, epochs=3, weight_decay=5e-4, seed=seed, precision="32-true",
    )  # fmt: skip


def rows(*test_losses: float) -> list[store.Row]:
    return [
        {"epoch": i, "train_loss": 0.1 + 0.2 * i, "test_loss": loss, "updates": 8 * i, "images": 64 * i}
        for i, loss in enumerate(test_losses, 1)
    ]


RESULT = {"status": "finished", "score": 1 / 3, "seconds": 1.25, "versions": {"torch": "2"}}


def write(folder: Path, run: Run | None = None, *losses: float, status: str = "finished") -> Path:
    run = run or make()
    path = store.folder(folder, run)
    path.mkdir(parents=True)
    store.write_result(path, run, rows(*(losses or (2.3, 1e-17, 0.1))), RESULT | {"status": status})
    return path


def exact(record: store.Record) -> tuple[object, ...]:
    """All of a record, NaN equal to NaN, 1 unlike 1.0."""
    return record.run, repr(record.rows), repr(record.result)


# --- writing and reading


@pytest.mark.parametrize("loss", [0.1 + 0.2, 5e-324, math.nan, math.inf])
def test_what_is_written_reads_back_bit_equal(tmp_path, loss):
    path = write(tmp_path, make(), 2.5, loss)
    assert exact(store.read(path)) == (make(), repr(rows(2.5, loss)), repr(RESULT))


@pytest.mark.parametrize("status", ["finished", "diverged", "failed"])
def test_only_finished_and_diverged_count_as_done(tmp_path, status):
    assert store.is_done(write(tmp_path, status=status)) == (status != "failed")


def test_a_folder_without_a_result_has_not_ended(tmp_path):
    store.write_config(tmp_path, make())
    assert store.read(tmp_path) is None
    assert not store.is_done(tmp_path)


@pytest.mark.parametrize("loss", [0.1 + 0.2, math.nan, math.inf])
def test_an_exported_run_added_to_another_store_is_the_same_and_done(tmp_path, loss):
    paths = [write(tmp_path / "here", make(seed), 2.5, loss) for seed in range(3)]
    text = store.export([store.read(path) for path in paths])
    assert text.count("\n") == 3
    for record in store.parse_export(text):
        assert store.add(tmp_path / "there", record)
        assert not store.add(tmp_path / "there", record)
    for path in paths:
        copy = tmp_path / "there" / path.name
        assert exact(store.read(copy)) == exact(store.read(path))
        assert store.is_done(copy)
        assert not lock.claimed(copy)


def test_an_export_keeps_text_with_any_line_separator(tmp_path):
    record = store.Record(make(), [], RESULT | {"status": "failed", "score": None, "error": "η̃\u2028\x85\x1c\n"})
    assert [exact(r) for r in store.parse_export(store.export([record, record]))] == [exact(record)] * 2


def test_adding_mends_a_damaged_run_and_leaves_a_run_in_training_alone(tmp_path):
    record = store.read(write(tmp_path / "here"))
    path = write(tmp_path / "there")
    (path / "epochs.csv").unlink()
    with Claim(path):
        assert not store.add(tmp_path / "there", record)
    assert store.add(tmp_path / "there", record)
    assert exact(store.read(path)) == exact(record)


@pytest.mark.parametrize("damage", ["[]", "{}", '{"key": 1', '{"key": "0", "config": {}, "result": {}, "epochs": {}}'])
def test_a_damaged_export_names_its_line(tmp_path, damage):
    text = store.export([store.read(write(tmp_path))])
    with pytest.raises(DamagedRun, match="line 2"):
        store.parse_export(text + damage + "\n")


def _truncate_result(path: Path) -> None:
    os.truncate(path / "result.json", 40)


def _change_a_digit(path: Path) -> None:
    epochs = path / "epochs.csv"
    epochs.write_text(epochs.read_text().replace("2.3", "2.4"))


def _change_the_score(path: Path) -> None:
    result = json.loads((path / "result.json").read_text())
    (path / "result.json").write_text(json.dumps(result | {"score": 0.9}))


def _drop_a_row(path: Path) -> None:
    with (path / "epochs.csv").open() as file:
        kept = list(csv.reader(file))[:-1]
    (path / "epochs.csv").write_text("".join(",".join(row) + "\n" for row in kept))


def _take_another_config(path: Path) -> None:
    store.write_config(path, make(seed=1))


def _take_another_folder(path: Path) -> None:
    other = write(path.parent / "other", make(seed=1))
    for name in ("config.json", "epochs.csv", "result.json"):
        (other / name).replace(path / name)


def _lose_rows(path: Path) -> None:
    (path / "epochs.csv").unlink()


def _lose_config(path: Path) -> None:
    (path / "config.json").unlink()


def test_a_folder_sealed_before_a_setting_existed_is_sound(tmp_path):
    """A new setting at its default changes no key, and must not break the checksums of the runs that are there."""
    path = write(tmp_path)
    config = json.loads((path / "config.json").read_text())
    del config["norm"]["layers"]
    result = json.loads((path / "result.json").read_text())
    del result["sha256"]
    sealed = result | {"sha256": store._seal(config, (path / "epochs.csv").read_text(), result)}
    (path / "config.json").write_text(json.dumps(config))
    (path / "result.json").write_text(json.dumps(sealed))
    record = store.read(path)
    assert record is not None
    assert record.run == make()


@pytest.mark.parametrize(
    "damage",
    [_truncate_result, _change_a_digit, _change_the_score, _drop_a_row, _take_another_config, _take_another_folder,
     _lose_rows, _lose_config],
)  # fmt: skip
def test_a_damaged_folder_is_reported_and_never_done(tmp_path, damage):
    path = write(tmp_path)
    damage(path)
    with pytest.raises(DamagedRun, match=path.name):
        store.read(path)
    assert not store.is_done(path)
    assert isinstance(dict(store.read_all(tmp_path))[path], DamagedRun)


# --- atomic writing


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_succeeds_leaves_the_new_content_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


# --- claims


def _claim_all(paths, barrier, wins):
    """Rounds of N: everyone tries at once, and who wins holds until everyone has tried."""
    for path in paths:
        barrier.wait()
        try:
            with Claim(path) as claim:
                barrier.wait()
                won = claim.is_held()
        except Busy:
            won = False
            barrier.wait()
        wins.put((path.name, won))


def _claim_and_hang(paths, ready):
    for path in paths:
        Claim(path).__enter__()
    ready.set()
    time.sleep(600)


def _enter_and_leave(path, until, barrier, counts):
    """Take the claim as often as possible; on the inside nobody else may be."""
    entered = trespasses = 0
    barrier.wait()
    while time.time() < until.value:
        try:
            with Claim(path):
                try:
                    (path / "inside").touch(exist_ok=False)
                    time.sleep(0.0005)
                    (path / "inside").unlink()
                    entered += 1
                except OSError:
                    trespasses += 1
        except Busy:
            pass
    counts.put((entered, trespasses))


def _start(target, *arguments, count=1):
    processes = [SPAWN.Process(target=target, args=arguments, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


def _kill_claims_of(paths):
    """Claims of a process that is then SIGKILLed."""
    ready = SPAWN.Event()
    (process,) = _start(_claim_and_hang, paths, ready)
    assert ready.wait(60)
    assert all(lock.claimed(path) for path in paths)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("killed", [0, 1, 2], ids=["free", "after one killed", "after two killed"])
def test_of_n_processes_at_once_exactly_one_gets_the_claim(tmp_path, killed):
    paths = [tmp_path / f"run{i}" for i in range(20)]
    for _ in range(killed):
        _kill_claims_of(paths)
        assert not any(lock.claimed(path) for path in paths)
    wins, barrier = SPAWN.Queue(), SPAWN.Barrier(N)
    processes = _start(_claim_all, paths, barrier, wins, count=N)
    outcomes = [wins.get(timeout=60) for _ in range(N * len(paths))]
    for process in processes:
        process.join()
    for path in paths:
        assert sorted(won for name, won in outcomes if name == path.name) == [False] * (N - 1) + [True]
        assert list(path.iterdir()) == []


def test_nobody_is_ever_inside_with_another(tmp_path):
    _kill_claims_of([tmp_path / "run"])
    _kill_claims_of([tmp_path / "run"])
    counts, barrier = SPAWN.Queue(), SPAWN.Barrier(N + 1)
    until = SPAWN.Value("d", math.inf)
    processes = _start(_enter_and_leave, tmp_path / "run", until, barrier, counts, count=N)
    barrier.wait(60)
    until.value = time.time() + 2
    entered, trespasses = zip(*[counts.get(timeout=60) for _ in range(N)], strict=True)
    for process in processes:
        process.join()
    assert sum(entered) > N
    assert sum(trespasses) == 0
    assert list((tmp_path / "run").iterdir()) == []


def test_release_leaves_no_claim_even_after_an_error(tmp_path):
    def failing():
        with Claim(tmp_path / "run") as claim:
            assert claim.is_held()
            assert lock.claimed(tmp_path / "run")
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert list((tmp_path / "run").iterdir()) == []
    assert not lock.claimed(tmp_path / "run")


def test_busy_says_who_has_it(tmp_path):
    with Claim(tmp_path / "run"), pytest.raises(Busy, match=f"process {os.getpid()} on .* is training it"):
        Claim(tmp_path / "run").__enter__()


def _claim_file(path: Path) -> Path:
    (file,) = path.iterdir()
    return file


def _leave_claim(path: Path, text: str, age: float = 0.0) -> None:
    """A claim as another process would have left it, `age` seconds after its last heartbeat."""
    with Claim(path):
        file = _claim_file(path)
    file.write_text(text)
    os.utime(file, (time.time() - age,) * 2)


def _by(host: str, pid: int, started: str | None) -> str:
    return json.dumps({"host": host, "pid": pid, "started": started})


OLD, FRESH = lock.STALE + 10, lock.STALE - 30


@pytest.mark.parametrize(
    "text",
    [_by("elsewhere/0", os.getpid(), "1"), "", '{"host": "elsew'],
    ids=["of another host", "empty", "torn"],
)
def test_a_claim_that_says_nothing_of_this_host_is_stale_only_by_its_age(tmp_path, text):
    _leave_claim(tmp_path / "fresh", text, FRESH)
    with pytest.raises(Busy):
        Claim(tmp_path / "fresh").__enter__()
    assert lock.claimed(tmp_path / "fresh")
    _leave_claim(tmp_path / "old", text, OLD)
    assert not lock.claimed(tmp_path / "old")
    with Claim(tmp_path / "old") as claim:
        assert claim.is_held()


def test_a_claim_of_a_living_process_here_is_not_stale_however_old(tmp_path):
    _leave_claim(tmp_path / "run", _by(lock.host(), os.getpid(), lock.process_start(os.getpid())), OLD)
    with pytest.raises(Busy):
        Claim(tmp_path / "run").__enter__()


def test_a_reused_process_number_is_not_the_process_that_claimed(tmp_path):
    _leave_claim(tmp_path / "run", _by(lock.host(), os.getpid(), "1"))
    assert not lock.claimed(tmp_path / "run")
    with Claim(tmp_path / "run") as claim:
        assert claim.is_held()


def test_the_heartbeat_renews_the_time_of_a_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    with Claim(tmp_path / "run"):
        file = _claim_file(tmp_path / "run")
        os.utime(file, (0, 0))
        end = time.time() + 30
        while file.stat().st_mtime == 0 and time.time() < end:
            time.sleep(0.01)
        assert abs(time.time() - file.stat().st_mtime) < 30


def test_a_superseded_owner_notices_and_leaves_the_new_claim_alone(tmp_path):
    """An owner that slept too long: to the next one it is of another host and silent."""
    with Claim(tmp_path / "run") as asleep:
        file = _claim_file(tmp_path / "run")
        file.write_text(_by("elsewhere/0", 1, "1"))
        os.utime(file, (0, 0))
        with Claim(tmp_path / "run") as awake:
            assert awake.is_held()
            assert not asleep.is_held()
            asleep.__exit__()
            assert awake.is_held()
    assert list((tmp_path / "run").iterdir()) == []
