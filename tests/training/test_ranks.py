"""A run on several ranks is the run on one: in float64, weights within 1e-10; and what becomes of it if a rank dies."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import nn

from smallbatch import store
from smallbatch.compose import compose
from smallbatch.errors import ConfigError
from smallbatch.grids.expand import expand
from smallbatch.grids.progress import Results
from smallbatch.grids.sweep import _without_refused
from smallbatch.models.norm import GhostBatchNorm
from smallbatch.ranks import RankError, Ranks
from smallbatch.training import helpers, module
from smallbatch.training.train import train

pytestmark = pytest.mark.trains

FORK = multiprocessing.get_context("forkserver")
# 6 updates an epoch; 41 test images are no multiple of any number of ranks.
SIZES = ["data=digits16", "data.train_size=48", "data.test_size=41", "batch_size=8", "data.augment=true"]
WORDS = [*SIZES, "model=resnet8", "base_lr=2**-10", "optimizer=momentum", "epochs=3", "precision=64-true"]
NORMS = {
    "none": ["norm=none"],
    "within a rank": ["norm=batch", "bn_batch_size=2"],
    "across ranks": ["norm=batch"],
}
CLUSTER = {
    **{"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"},
    **{"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "it"},
}


class Forked(ProcessPoolExecutor):
    """Helpers that are forked from a process that has torch, which takes them no seconds; else as loky's."""

    def shutdown(self, wait=True, *, kill_workers=False, **rest):
        for process in list(self._processes.values()) if kill_workers else []:
            process.kill()
        super().shutdown(wait, **rest)


@cache
def forked(count: int) -> Forked:
    return Forked(count, mp_context=FORK)


# --- modules that each rank trains


class Kept(module.SmallBatch):
    """Leaves what each rank's network is in the end."""

    folder: Path

    def on_train_end(self):
        torch.save(self.network.state_dict(), self.folder / f"{self.ranks.rank}.pt")


class Bare(Kept):
    def manual_backward(self, loss, *_, **__):
        loss.backward()


class Dying(Kept):
    def training_step(self, block, index):
        if (self.ranks.rank, self.current_epoch) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        super().training_step(block, index)


class Raising(Kept):
    def training_step(self, block, index):
        if self.ranks.rank == 1:
            raise MemoryError("too small")
        super().training_step(block, index)


HELP = helpers._help


def helping(kind: type[Kept], folder: Path, *arguments) -> None:
    kind.folder, helpers.SmallBatch = folder, kind
    HELP(*arguments)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def now(root, tmp_path, monkeypatch):
    """(ranks, overrides, module) → the record, and the final state of each rank's network."""
    monkeypatch.setattr(helpers, "_pool", forked)

    def run(ranks: int, *overrides: str, kind: type[Kept] = Kept, **groups):
        for file in tmp_path.glob("*.pt"):
            file.unlink()
        monkeypatch.setattr(kind, "folder", tmp_path, raising=False)
        monkeypatch.setattr(module, "SmallBatch", kind)
        monkeypatch.setattr(helpers, "_help", partial(helping, kind, tmp_path))
        words = [f"trainer.devices={ranks}", f"store={tmp_path}/{ranks}", f"data.root={root}"]
        cfg = compose([*WORDS, *words, "progress=false", "machine.accelerator=cpu", *overrides])
        for name, node in groups.items():
            cfg[name] = node
        record, _ = train(cfg, print)
        files = sorted(tmp_path.glob("*.pt"))
        return record, [torch.load(file, weights_only=True) for file in files]

    return run


def numbers(record) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in record.rows]


def assert_equal(a: dict, b: dict) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("norm", NORMS)
def test_ranks_have_the_weights_of_one_process(now, norm):
    alone, (expected,) = now(1, *NORMS[norm])
    for ranks in (2, 4):
        record, states = now(ranks, *NORMS[norm])
        assert (record.result["status"], record.result["machine"]["devices"], len(states)) == ("finished", ranks, ranks)
        for state in states[1:]:
            assert_equal(state, states[0])
        for name, value in expected.items():
            torch.testing.assert_close(states[0][name], value, rtol=0, atol=1e-10)
        assert record.run.key == alone.run.key
        assert record.result["score"] == alone.result["score"]
        for ours, theirs in zip(numbers(record), numbers(alone), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9, nan_ok=True)
    assert "devices" not in alone.result["machine"]
    assert alone.rows[-1]["updates"] == 18


def test_a_backward_that_bypasses_lightning_is_noticed(now, monkeypatch):
    record, _ = now(2, kind=Bare)
    assert record.result["status"] == "failed"
    assert "differs between ranks" in record.result["error"]
    monkeypatch.setattr(Ranks, "check_equal", lambda *_: None)
    monkeypatch.setattr(helpers, "_pool", cache(lambda count: Forked(count, mp_context=FORK, initializer=unchecked)))
    _, (first, second) = now(2, kind=Bare)
    assert max((value - second[name]).abs().max() for name, value in first.items()) > 1e-6


def unchecked() -> None:
    Ranks.check_equal = lambda *_: None


def test_a_killed_rank_ends_the_run_which_goes_on_as_if_nothing_had_been(now, tmp_path):
    whole, (expected, _) = now(2, *NORMS["across ranks"])
    (idle,) = forked(1)._processes.values()
    idle.kill()  # of which the next run takes no notice
    idle.join()
    words = [*NORMS["across ranks"], f"store={tmp_path}/again"]
    begin = time.monotonic()
    record, _ = now(2, *words, kind=Dying)
    assert time.monotonic() - begin < 30
    assert record.result["status"] == "failed"
    assert record.result["error"].startswith("RankError: one of 2 ranks was killed, or crashed")
    assert len(record.rows) == 1
    record, states = now(2, *words)
    assert_equal(states[0], expected)
    assert_equal(states[1], expected)
    assert repr(numbers(record)) == repr(numbers(whole))
    files = sorted(file.name for file in store.folder(tmp_path / "again", record.run).iterdir())
    assert files == ["config.json", "epochs.csv", "result.json", "weights.ckpt"][: len(files)]


def test_what_a_rank_raises_is_told_and_ends_the_run(now):
    record, _ = now(2, kind=Raising)
    assert record.result["error"] == "RankError: rank 1 of 2: MemoryError: too small"


def test_whether_to_stop_is_agreed(now):
    record, states = now(2, "base_lr=2**19")
    assert (record.result["status"], len(states)) == ("diverged", 2)
    assert numbers(record)[0]["epoch"] == len(record.rows) == 1
    early = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "train_loss", "min_delta": 100}
    record, states = now(2, callbacks={"mine": early | {"patience": 1}})  # which rank 0 alone has
    assert "a callback ended the run after epoch 2 of 3" in record.result["error"]
    assert len(states) == 2


# --- what is refused


class TorchNorm(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, classes), nn.BatchNorm1d(classes))

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.devices=3"], "trainer.devices=3: does not divide batch_size=8"),
        (["trainer.devices=0"], "trainer.devices=0: must be a whole number in"),
        (
            ["trainer.devices=2", "batch_size=12", "norm=batch", "bn_batch_size=4"],
            "trainer.devices=2: model=resnet8: groups of 4 neither divide a device's 6 images nor hold them whole",
        ),
        (["trainer.devices=2", "machine.accelerator=mps"], "machine.accelerator=mps: has one device"),
        (["trainer.strategy=ddp"], "trainer.strategy: use trainer.devices"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_before_anything_is_written(root, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        train(compose([*WORDS, f"data.root={root}", f"store={tmp_path}", "progress=false", *words]), print)
    assert not list(tmp_path.iterdir())


def test_so_is_a_batch_norm_that_is_not_ours(now, tmp_path):
    with pytest.raises(ConfigError, match=r"model=mine: body\.2 is torch's BatchNorm1d, which would see one device's"):
        now(2, model={"_target_": f"{__name__}.TorchNorm", "name": "mine"})
    assert not list(tmp_path.iterdir())


def test_a_grid_leaves_out_what_devices_do_not_divide(root, tmp_path, capsys):
    words = ["data=digits16", "data.train_size=48", "model=resnet8", f"data.root={root}", f"store={tmp_path}"]
    grid = expand(["batch_size=1,2,3,6", "norm=batch", "bn_batch_size=2", *words])
    left = _without_refused(grid, Results(tmp_path, grid.points), 2)
    assert [point.run.batch_size for point in left.points] == [2]


# --- the layer, and the ranks' own words


def batch(m: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(m, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 2


def layer(b: int, ranks: Ranks, memory: int = 40) -> GhostBatchNorm:
    norm = GhostBatchNorm(5, b, memory=memory).double()
    torch.manual_seed(1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.ranks = ranks
    return norm


LAYERS = [(b, shape) for b in (2, 4, 8, 16) for shape in ((5,), (5, 3, 2))]


def steps(b: int, shape: tuple[int, ...], ranks: Ranks) -> dict[str, torch.Tensor]:
    """Two steps of a batch of 16: this rank's outputs and gradients of a loss that weighs each output differently."""
    norm, mine = layer(b, ranks), torch.arange(16).chunk(ranks.world)[ranks.rank]
    for step in range(2):
        x = batch(16, shape, step)[mine].requires_grad_()
        y = norm(x)
        of_x, *affine = torch.autograd.grad((y * batch(16, shape, 9)[mine]).sum(), [x, norm.weight, norm.bias])
    return {"y": y.detach(), "of x": of_x, "of γ": affine[0], "of β": affine[1], **norm.state_dict()}


def each_rank(ranks: Ranks, folder: str) -> None:
    torch.set_num_threads(1)
    helpers._join(ranks, folder)
    found = {case: steps(*case, ranks) for case in LAYERS}
    half = layer(8, ranks).float()(batch(16, (5, 3, 2), 0).chunk(ranks.world)[ranks.rank].bfloat16())
    found["bfloat16"] = half.detach()
    # Parameter 1 is used by rank 1 only, parameter 2 by none.
    used = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    used[0].grad = torch.full((2,), 1.0 + ranks.rank)
    used[1].grad = torch.ones(2) if ranks.rank == 1 else None
    ranks.sum_gradients(used)
    found["gradients"] = [parameter.grad for parameter in used]
    found["agreed"] = ranks.agree(ranks.rank == 1, False)
    net = nn.BatchNorm1d(2)
    nn.init.constant_(net.weight, 1.0 + ranks.rank)
    ranks.start_equal(net)
    ranks.check_equal(net)
    net.running_mean += ranks.rank
    with pytest.raises(RankError, match="running_mean differs between ranks"):
        ranks.check_equal(net)
    found["weight"] = net.weight.detach()
    torch.save(found, f"{folder}/{ranks.rank}.pt")
    helpers._leave()


@pytest.mark.parametrize("world", [2, 4])
def test_the_layer_alone_equals_one_process(tmp_path, world):
    processes = [FORK.Process(target=each_rank, args=(Ranks(r, world), str(tmp_path))) for r in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for case in LAYERS:
        expected = steps(*case, Ranks())
        ours = [one[case] for one in found]
        whole = {name: torch.cat([one[name] for one in ours]) for name in ("y", "of x")}
        whole |= {name: sum(one[name] for one in ours) for name in ("of γ", "of β")}
        whole |= {name: ours[0][name] for name in ("running_mean", "running_var", "num_batches_tracked")}
        for name, value in whole.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-13, atol=1e-13, msg=f"{case} {name}")
        for one in ours:
            assert torch.equal(one["running_mean"], ours[0]["running_mean"])
            assert torch.equal(one["running_var"], ours[0]["running_var"])
    whole, x = torch.cat([one["bfloat16"] for one in found]), batch(16, (5, 3, 2), 0).bfloat16()
    assert whole.dtype is torch.bfloat16
    torch.testing.assert_close(whole, layer(8, Ranks()).float()(x), rtol=2**-7, atol=2**-7)  # its last bit
    for one in found:
        first, second, none = one["gradients"]
        assert first.tolist() == [sum(range(1, world + 1))] * 2
        assert second.tolist() == [1, 1]
        assert none is None
        assert one["agreed"] == [True, False]
        assert one["weight"].tolist() == [1, 1]


# --- real helpers, in a cluster's environment


def command(folder: str, root: str) -> None:
    os.environ.update(CLUSTER)
    words = [*WORDS, "trainer.devices=2", f"store={folder}", f"data.root={root}", "progress=false"]
    train(compose([*words, "machine.accelerator=cpu", "logger=csv"]), print)
    train(compose([*words, "machine.accelerator=cpu", "epochs=100000", "schedule=constant"]), print)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes where Linux has them")
def test_no_variable_of_a_cluster_counts_and_helpers_die_with_rank_0(root, tmp_path):
    rank0 = FORK.Process(target=command, args=(str(tmp_path), str(root)))
    rank0.start()
    try:
        while len(list(tmp_path.glob("*/epochs.csv"))) < 2:
            assert rank0.is_alive()
            time.sleep(0.1)
        (record,) = store.ended(tmp_path).values()
        assert (record.result["status"], record.result["machine"]["devices"]) == ("finished", 2)
        assert list(tmp_path.glob("*/lightning/csv/version_0/metrics.csv"))  # nobody took it for rank 2 or 3
        children = Path(f"/proc/{rank0.pid}/task/{rank0.pid}/children").read_text().split()
        assert children
    finally:
        rank0.kill()
        rank0.join()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.1)
