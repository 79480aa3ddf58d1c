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
from smallbatch.training import fit, module
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
        state = as_before(checkpoint)
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


@pytest.fixture(scope="module")
def cut_off(config, tmp_path_factory):
    """A run whose process died after its second epoch: run, folder, checkpoint's bytes."""
    folder = tmp_path_factory.mktemp("cut")
    run, cfg = config(folder, *GHOST)
    finish(run, cfg, death=("epochs.csv", 2, "placed"))
    path = store.folder(folder, run)
    return run, path, (path / store.CHECKPOINT).read_bytes()


@pytest.mark.parametrize("older", [False, True], ids=["with its checksum", "of before there were any"])
def test_no_damaged_checkpoint_is_used(cut_off, older):
    run, path, whole = cut_off
    file, chance = path / store.CHECKPOINT, random.Random(0)
    file.write_bytes(whole)
    if older:
        torch.save(as_before(file), file)
        whole = file.read_bytes()
    images = [1, 10, 64]
    expected = state_bytes(file)
    fits = module.SmallBatch(run, *images)
    used = 0
    for number in range(60):
        damaged = bytearray(whole)
        if number % 3:
            for _ in range(number % 3):
                damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        else:
            del damaged[-1 if number == 0 else chance.randrange(len(damaged)) :]
        file.write_bytes(damaged)
        said: list[str] = []
        if fit.usable_checkpoint(path, fits, said.append):
            used += 1
            assert state_bytes(file) == expected  # in what holds no number, as a date in the archive
            assert not said
        else:
            (line,) = said
            assert line.startswith(f"{file}: ")
            assert line.endswith("; starting from the first epoch")
            assert not file.exists()
    assert used == 0 or older
    file.write_bytes(whole)
    assert fit.usable_checkpoint(path, fits, pytest.fail)


def as_before(file: Path) -> dict:
    """A checkpoint's state as older versions wrote it, without a checksum."""
    state = torch.load(file, weights_only=True)
    del state["smallbatch"]["checksum"]
    return state


def state_bytes(file: Path) -> str:
    return repr(torch.load(file, weights_only=True))


class Mine:
    """A user's own class: weights_only=True does not load it."""


class Remembers(pl.Callback):
    def state_dict(self):
        return {"mine": Mine()}


def test_a_checkpoint_that_could_never_be_loaded_again_is_said_when_it_is_first_saved(config, tmp_path):
    run, cfg = config(tmp_path, "epochs=3", f"+callbacks.mine._target_={__name__}.Remembers")
    saved, save = [], pl.Trainer.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl.Trainer, "save_checkpoint", lambda *a, **k: (saved.append(1), save(*a, **k)))
        record, _, said = now(cfg)
    assert record.result["status"] == "finished"
    (line,) = said
    assert line.startswith(f"{run.label}: its checkpoint cannot be loaded again, for it holds a {__name__}.Mine, ")
    assert len(saved) == 1


# --- only what is ours is removed or replaced


def test_overwriting_a_folder_with_what_is_not_ours_is_refused_with_the_names(config, tmp_path):
    run, cfg = config(tmp_path, "epochs=1")
    now(cfg)
    path = store.folder(tmp_path, run)
    (path / "notes.txt").write_text("x")
    (path / "my plots").mkdir()
    (path / ".hidden").write_text("x")
    (tmp_path / "important").write_text("x")
    (path / "traceback.txt").symlink_to(tmp_path / "important")
    before = snapshot(path)
    assert now(cfg)[1]
    cfg.overwrite = True
    with pytest.raises(store.NotOurs, match=r"remove \.hidden, my plots, notes\.txt, traceback\.txt, which we did not"):
        now(cfg)
    assert snapshot(path) == before


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_folder_that_is_a_link_is_read_and_never_written(config, tmp_path, ended):
    run, cfg = config(tmp_path / "here", "epochs=1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if ended:
        now(cfg)
        store.folder(tmp_path / "here", run).rename(elsewhere / run.key)
    else:
        (elsewhere / run.key).mkdir()
        (tmp_path / "here").mkdir()
    store.folder(tmp_path / "here", run).symlink_to(elsewhere / run.key)
    before = snapshot(elsewhere)
    if ended:
        assert now(cfg)[1]
        cfg.overwrite = True
    with pytest.raises(store.NotOurs, match="is a link"):
        now(cfg)
    assert snapshot(elsewhere) == before


@pytest.mark.parametrize("name", ["config.json", "epochs.csv", "result.json", store.CHECKPOINT, "."])
def test_what_lies_in_a_files_place_is_kept_and_the_run_trained(config, tmp_path, name):
    run, cfg = config(tmp_path, "epochs=2")
    path = store.folder(tmp_path, run)
    if name == ".":
        path.write_text("x")
    else:
        (path / name).mkdir(parents=True)
        (path / name / "mine").write_text("x")
    record, there, said = now(cfg)
    assert (record.result["status"], there) == ("finished", False)
    (line,) = said
    assert line.startswith(f"damaged, training it again: {path}: ")
    (kept,) = (tmp_path / store.DAMAGED).glob(f"{run.key}-*/{run.key}")
    assert (kept if name == "." else kept / name / "mine").read_text() == "x"
    assert store.done(path)


def test_a_grid_leaves_alone_what_is_not_ours_says_it_once_and_trains_the_rest(config, tmp_path):
    run, cfg = config(tmp_path, "batch_size=8", "epochs=1")
    now(cfg)
    (store.folder(tmp_path, run) / "notes.txt").write_text("x")
    out = tmp_path / "out"
    words = [w for w in SMALL if not w.startswith("progress")]
    words += ["batch_size=8,16", "epochs=1", f"data.root={cfg.data.root}", f"store={tmp_path}", "overwrite=true"]
    child = FORK.Process(target=_grid, args=(words, out))
    child.start()
    child.join()
    assert child.exitcode == 1
    text = out.read_text()
    assert text.count("notes.txt") == 1
    assert "1 finished, 1 without a result" in text or "1 without a result, 1 finished" in text
    assert len(store.ended(tmp_path)) == 2


def _grid(words, out):
    import runpy
    import sys

    for descriptor in (1, 2):
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(Path(__file__).parents[2])
    sys.argv = ["src/train.py", "-m", *words]
    runpy.run_path("src/train.py", run_name="__main__")


# --- two at once


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
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*") if ".locks" not in p.parts}


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
