"""However a run was interrupted, the same call ends it as if nothing had happened, bit for bit."""

import csv
import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from smallbatch import lock, store
from smallbatch.compose import compose
from smallbatch.models.alexnet import AlexNet
from smallbatch.run import make_run
from smallbatch.training import module
from train import train

pytestmark = pytest.mark.trains

FORK = multiprocessing.get_context("forkserver")
BUSY = 3
GHOST = ["norm=batch", "bn_batch_size=4", "batch_size=8", "optimizer=momentum", "data.augment=true", "base_lr=1/4096"]
SMALL = ["data.train_size=64", "data.test_size=40", "progress=false", "machine.accelerator=cpu"]
EPOCHS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def config(root):
    """(folder, overrides) → the run and its config."""

    def make(folder: Path, *overrides: str):
        cfg = compose([*SMALL, f"epochs={EPOCHS}", f"data.root={root}", f"store={folder}", *overrides])
        return make_run(cfg), cfg

    return make


# --- children


class Digested(module.SmallBatch):
    """Leaves a digest of the trained network beside the run folder."""

    def on_train_end(self):
        state = self.network.state_dict()
        values = [v.numpy().tobytes() if isinstance(v, torch.Tensor) else repr(v).encode() for v in state.values()]
        digest = hashlib.sha256(b"".join(values)).hexdigest()
        Path(self.digest_to).write_text(digest)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(name: str, nth: int, when: str):
    """Be killed at the nth writing of a file: with half of it written, all of it, or when it is in its place."""
    seen = 0
    replace, save = Path.replace, pl.Trainer.save_checkpoint

    def dying_replace(self, target):
        nonlocal seen
        seen += Path(target).name == name
        if seen == nth and Path(target).name == name:
            if when == "half":
                os.truncate(self, self.stat().st_size // 2)
            if when == "placed":
                replace(self, target)
            _die()
        return replace(self, target)

    def dying_save(self, path, *rest):
        save(self, path, *rest)
        if when == "half" and seen == nth - 1:
            os.truncate(path, Path(path).stat().st_size // 2)
            _die()

    Path.replace = dying_replace
    if name == store.CHECKPOINT:
        pl.Trainer.save_checkpoint = dying_save


def _child(run, cfg, death=None, barrier=None):
    Digested.digest_to = f"{cfg.store}/digest"
    module.SmallBatch = Digested
    if death:
        _die_at(*death)
    if barrier:
        barrier.wait()
    said: list[str] = []
    try:
        _, skipped = train(cfg, said.append)
    except lock.Busy:
        os._exit(BUSY)
    Path(cfg.store, "said").write_text("".join(line + "\n" for line in said))
    assert barrier is None or not skipped


def start(run, cfg, **settings):
    process = FORK.Process(target=_child, args=(run, cfg), kwargs=settings)
    process.start()
    return process


def finish(run, cfg, **settings) -> int:
    process = start(run, cfg, **settings)
    process.join()
    return process.exitcode


def trained(run, cfg):
    """All that training computed: epoch rows as written, seconds apart, the result's score, the final network."""
    path = store.folder(Path(cfg.store), run)
    record = store.read(path)
    assert record is not None
    return rows(path), record.result["status"], record.result["score"], Path(cfg.store, "digest").read_text()


def rows(path: Path):
    with (path / "epochs.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    """What the run with ghost BN, momentum and augmentation computes, and the seconds its process takes."""
    run, cfg = config(tmp_path_factory.mktemp("uninterrupted"), *GHOST)
    first = FORK.Process(target=int)  # the server that forks imports torch first
    first.start()
    first.join()
    begin = time.monotonic()
    assert finish(run, cfg) == 0
    return trained(run, cfg), time.monotonic() - begin


# --- resuming


def test_kills_at_random_moments_change_nothing(config, tmp_path, uninterrupted):
    expected, seconds = uninterrupted
    moments, kills, resumed = random.Random(0), 0, 0
    while kills < 8:
        run, cfg = config(tmp_path / f"after{kills}", *GHOST)
        path = store.folder(Path(cfg.store), run)
        exitcode = None
        while exitcode != 0:
            process = start(run, cfg)
            process.join(moments.uniform(0, seconds) if kills < 8 else None)
            process.kill()
            process.join()
            exitcode = process.exitcode
            assert exitcode in (0, -signal.SIGKILL)
            kills += exitcode != 0
            resumed += exitcode != 0 and (path / store.CHECKPOINT).exists()
        assert trained(run, cfg) == expected
    assert resumed > 0


@pytest.mark.parametrize("when", ["half", "whole", "placed"])
@pytest.mark.parametrize(
    ("file", "nth"),
    [("config.json", 1), (store.CHECKPOINT, 1), (store.CHECKPOINT, 4), ("epochs.csv", 3), ("result.json", 1)],
)
def test_a_kill_in_any_write_changes_nothing(config, tmp_path, uninterrupted, file, nth, when):
    run, cfg = config(tmp_path, *GHOST)
    assert finish(run, cfg, death=(file, nth, when)) == -signal.SIGKILL
    assert finish(run, cfg) == 0
    assert trained(run, cfg) == uninterrupted[0]
    assert (tmp_path / "said").read_text() == ""


@pytest.mark.parametrize("when", ["half", "whole", "placed"])
def test_nothing_but_its_own_files_stays_of_a_finished_run_that_was_killed(config, tmp_path, when):
    run, cfg = config(tmp_path, "batch_size=8", "save_weights=true")
    assert finish(run, cfg, death=("result.json", 1, when)) == -signal.SIGKILL
    assert finish(run, cfg) == 0
    files = sorted(file.name for file in store.folder(tmp_path, run).iterdir())
    assert files == ["config.json", "epochs.csv", "result.json", "weights.ckpt"]


@pytest.mark.parametrize("how", [[], ["overwrite=true", "grid_since=0"]], ids=["alone", "overwritten by a grid's"])
def test_a_resumed_run_goes_on_at_its_last_whole_epoch(config, tmp_path, how):
    run, cfg = config(tmp_path, *GHOST, *how)
    finish(run, cfg, death=("epochs.csv", 4, "placed"))
    path = store.folder(tmp_path, run)
    before = (path / "epochs.csv").read_text()
    assert before.count("\n") == 1 + 4
    assert finish(run, cfg) == 0
    assert (path / "epochs.csv").read_text().startswith(before)  # the seconds too: these epochs were not run again


@pytest.mark.parametrize("damage", ["truncated", "empty", "of another run", "of an old form"])
def test_an_unusable_checkpoint_is_reported_and_the_run_starts_again(config, tmp_path, uninterrupted, damage):
    run, cfg = config(tmp_path, *GHOST)
    finish(run, cfg, death=("epochs.csv", 3, "placed"))
    checkpoint = store.folder(tmp_path, run) / store.CHECKPOINT
    if damage == "of another run":
        torch.save({"smallbatch": {"key": "0" * 16}}, checkpoint)
    elif damage == "of an old form":  # ghost batch norm once kept its count beside the tensors
        state = torch.load(checkpoint, weights_only=True)
        counts = [name for name in state["state_dict"] if name.endswith("num_batches_tracked")]
        for name in counts:
            del state["state_dict"][name]
            state["state_dict"][name.replace("num_batches_tracked", "_extra_state")] = {"images_seen": 48}
        torch.save(state, checkpoint)
    else:
        os.truncate(checkpoint, checkpoint.stat().st_size // 2 if damage == "truncated" else 0)
    assert finish(run, cfg) == 0
    (said,) = (tmp_path / "said").read_text().splitlines()
    assert said.startswith(f"{checkpoint}: ")
    assert said.endswith("starting from the first epoch")
    assert trained(run, cfg) == uninterrupted[0]


def test_of_two_processes_on_one_run_one_trains_and_the_other_is_told_busy(config, tmp_path):
    run, cfg = config(tmp_path, "batch_size=8", "epochs=12")
    barrier = FORK.Barrier(2)
    processes = [start(run, cfg, barrier=barrier) for _ in range(2)]
    for process in processes:
        process.join()
    assert sorted(process.exitcode for process in processes) == [0, BUSY]
    assert len(trained(run, cfg)[0]) == 12


def test_a_run_stopped_while_another_asks_for_it_loses_nothing(config, tmp_path, uninterrupted):
    """As on a laptop that sleeps: nobody takes the run over, and it ends as if nothing had been."""
    run, cfg = config(tmp_path, *GHOST)
    process = start(run, cfg)
    while not (store.folder(tmp_path, run) / "epochs.csv").exists():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        before = snapshot(tmp_path)
        with pytest.raises(lock.Busy, match=f"process {process.pid} on .* is training it"):
            now(cfg)
        assert snapshot(tmp_path) == before
    finally:
        os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0
    assert trained(run, cfg) == uninterrupted[0]


# --- what is in the store already


def now(cfg):
    """Train in this process: the record, whether it was there, and what was said."""
    said: list[str] = []
    return *train(cfg, said.append), said


def snapshot(folder: Path):
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*") if p.parent.name != ".locks"}


def test_a_finished_run_is_skipped_and_untouched(config, tmp_path):
    _, cfg = config(tmp_path, "epochs=1")
    first, trained_before, _ = now(cfg)
    before = snapshot(tmp_path)
    second, there, said = now(cfg)
    assert (trained_before, there, said) == (False, True, [])
    assert second == first
    assert snapshot(tmp_path) == before


def test_overwrite_trains_a_finished_run_again(config, tmp_path):
    _, cfg = config(tmp_path, "epochs=1")
    now(cfg)
    before = snapshot(tmp_path)
    cfg.overwrite = True
    assert not now(cfg)[1]
    after = snapshot(tmp_path)
    assert before.keys() == after.keys()
    assert all(before[p] != after[p] for p in before)


def test_a_damaged_finished_run_is_reported_and_trained_again(config, tmp_path):
    run, cfg = config(tmp_path, "epochs=2")
    first, *_ = now(cfg)
    path = store.folder(tmp_path, run)
    expected = rows(path)
    (path / "epochs.csv").write_text((path / "epochs.csv").read_text().replace("2,", "3,"))
    second, there, said = now(cfg)
    assert not there
    assert len(said) == 1
    assert said[0].startswith(f"damaged, training it again: {path}: ")
    assert rows(path) == expected
    assert second.result["score"] == first.result["score"]
    assert store.done(path)


def test_a_run_whose_last_update_spoils_the_network_is_diverged(config, tmp_path):
    """The losses of both updates are finite; the network that they leave has none."""
    _, cfg = config(tmp_path, "base_lr=1", "epochs=1")
    result = now(cfg)[0].result
    assert (result["status"], result["score"]) == ("diverged", 0.1)


def test_a_diverging_run_is_a_result_scored_at_chance(config, tmp_path):
    run, cfg = config(tmp_path, "base_lr=1")
    result = now(cfg)[0].result
    assert (result["status"], result["score"], result["chance"]) == ("diverged", 0.1, 0.1)
    assert store.done(store.folder(tmp_path, run))
    assert now(cfg)[1]


def test_a_run_that_diverges_at_its_very_end_scores_chance_too(config, tmp_path):
    _, cfg = config(tmp_path, "epochs=8", "base_lr=1/4096", "schedule.drops=[0.9]", "schedule.drop_factor=1e30")
    record = now(cfg)[0]
    assert [row["test_accuracy"] > 0.1 for row in record.rows[-2:]] == [True, False]
    assert (record.result["status"], record.result["score"]) == ("diverged", 0.1)


class Fragile(AlexNet):
    """Raises at its third call of a training step."""

    whole = False

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3 and not Fragile.whole:
            raise RuntimeError("third call\nand more")
        return super().forward(x)


def test_a_failing_run_leaves_its_reason_and_is_tried_again(config, tmp_path, monkeypatch):
    run, cfg = config(tmp_path, f"model._target_={__name__}.Fragile", "epochs=2")
    path = store.folder(tmp_path, run)
    for _ in range(2):
        record, there, _ = now(cfg)
        assert not there
        assert record.result["status"] == "failed"
        assert record.result["error"] == "RuntimeError: third call"
        assert json.loads((path / "result.json").read_text())["score"] is None
        assert 'raise RuntimeError("third call' in (path / "traceback.txt").read_text()
        assert not store.done(path)
        assert lock.holder(path) is None
    monkeypatch.setattr(Fragile, "whole", True)
    record, *_ = now(cfg)
    assert record.result["status"] == "finished"
    assert store.done(path)
    assert not (path / "traceback.txt").exists()
