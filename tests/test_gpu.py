"""On a graphics card, all is what it is on the CPU. Skipped on a machine that has none."""

import copy
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import smallbatch
from smallbatch import machine, processes, store
from smallbatch.models.norm import GhostBatchNorm, precise_statistics

pytestmark = [
    pytest.mark.trains,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no graphics card"),
]

REPOSITORY = Path(__file__).parents[1]
SETTINGS = {"data": "digits16", "data.train_size": 240, "data.test_size": 40, "batch_size": 12, "base_lr": "1/4096"}
CASES = {
    "no norm": {"model": "alexnet", "data": "digits"},
    "ghost batch norm": {"model": "resnet8", "norm": "batch", "bn_batch_size": 4, "optimizer": "momentum"},
    "batch norm": {"model": "resnet8", "norm": "batch", "data.augment": True},
    "group norm": {"model": "resnet8", "norm": "group", "schedule": "cosine"},
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """A run in float64 on an accelerator, in a store of its own."""
    root = tmp_path_factory.mktemp("data")

    def now(accelerator: str, folder, **more):
        own = {"data.root": str(root), "store": str(folder), "machine.accelerator": accelerator}
        return smallbatch.train(**(SETTINGS | {"epochs": 3, "precision": "64-true", "progress": False} | own | more))

    return now


@pytest.mark.parametrize("case", CASES)
def test_a_run_has_the_losses_that_it_has_on_the_cpu(train, tmp_path, case):
    there, here = (train(name, tmp_path / name, **CASES[case]) for name in ("gpu", "cpu"))
    assert there.run.key == here.run.key
    assert there.result["machine"]["device"] == torch.cuda.get_device_name()
    assert here.result["machine"]["device"] != torch.cuda.get_device_name()
    for a, b in zip(there.rows, here.rows, strict=True):
        assert a.keys() == b.keys()
        for column in set(a) - {"train_seconds", "eval_seconds"}:
            assert a[column] == pytest.approx(b[column], rel=1e-6, abs=1e-9, nan_ok=True), column


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has one graphics card")
@pytest.mark.parametrize("case", ["no norm", "ghost batch norm", "batch norm"])
def test_so_has_one_on_two_cards(train, tmp_path, case):
    more = {"trainer.devices": 2, **CASES[case]} | ({"bn_batch_size": 3} if case == "ghost batch norm" else {})
    there = train("gpu", tmp_path / "two", **more)
    here = train("cpu", tmp_path / "one", **more | {"trainer.devices": 1})
    assert there.result["machine"]["devices"] == 2
    for a, b in zip(there.rows, here.rows, strict=True):
        for column in set(a) - {"train_seconds", "eval_seconds"}:
            assert a[column] == pytest.approx(b[column], rel=1e-6, abs=1e-9, nan_ok=True), column


def test_a_run_that_was_cut_off_ends_as_if_nothing_had_happened(train, tmp_path, monkeypatch):
    def numbers(record):
        rows = [{name: value for name, value in row.items() if "seconds" not in name} for row in record.rows]
        return repr(rows)  # in which nan is like nan

    more = CASES["ghost batch norm"] | {"precision": "32-true", "data.augment": True, "epochs": 4}
    expected = train("gpu", tmp_path / "whole", **more)
    write = store.write_rows

    def cut(path, rows):
        write(path, rows)
        if len(rows) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_rows", cut)
        with pytest.raises(KeyboardInterrupt):
            train("gpu", tmp_path / "cut", **more)
    assert numbers(train("gpu", tmp_path / "cut", **more)) == numbers(expected)


def test_weights_trained_there_are_loaded_here(train, tmp_path):
    record = train("gpu", tmp_path, save_weights=True, **CASES["batch norm"])
    network = smallbatch.load(record.run.key, str(tmp_path)).network
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


def step(layer: GhostBatchNorm, x: torch.Tensor, run):
    """What a step and an evaluation give: outputs, gradients, running statistics, on the CPU."""
    x = x.to(layer.weight.device, copy=True).requires_grad_()
    y = run(x)
    (y**3).sum().backward()
    assert x.grad is not None
    given = [y, x.grad, layer.weight.grad, layer.running_mean, layer.running_var, layer.num_batches_tracked]
    return [tensor.detach().cpu().clone() for tensor in given]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("compiled", [False, True])
def test_ghost_batch_norm_gives_what_it_gives_on_the_cpu(groups, compiled):
    torch.manual_seed(0)
    here = GhostBatchNorm(3, 12 // groups, memory=40).double()
    there = copy.deepcopy(here).cuda()
    run = torch.compile(there) if compiled else there
    for _ in range(3):
        x = torch.randn(12, 3, 5, 5, dtype=torch.float64)
        for a, b in zip(step(there, x, run), step(here, x, here), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_so_do_precise_statistics():
    torch.manual_seed(0)
    here = nn.Sequential(nn.Conv2d(3, 4, 3), GhostBatchNorm(4, 2)).double()
    there = copy.deepcopy(here).cuda()
    x, batches = torch.randn(6, 3, 8, 8).double(), [torch.randn(5, 3, 8, 8).double() for _ in range(3)]
    given = []
    for network in (here, there):
        device = next(network.parameters()).device
        with precise_statistics(network, [batch.to(device) for batch in batches]), torch.no_grad():
            given.append(network(x.to(device)).cpu())
    torch.testing.assert_close(*given, rtol=1e-12, atol=1e-12)


def test_a_grid_of_two_processes_shares_the_card(train, tmp_path):
    settings = SETTINGS | CASES["ghost batch norm"] | {"batch_size": [8, 16], "epochs": 1, "machine.accelerator": "gpu"}
    frame = smallbatch.grid(processes=2, store=str(tmp_path / "runs"), **{"data.root": str(tmp_path)} | settings)
    assert frame["status"].tolist() == ["finished"] * 2


def card(folder: Path) -> tuple[int, int, str]:
    """The process, once there are two, how many cards it sees, and where a tensor goes."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    return os.getpid(), torch.cuda.device_count(), torch.ones(1).cuda().device.type


def test_two_jobs_on_one_card_are_two_processes_that_see_this_card_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", machine.devices()[0])
    count = machine.processes("gpu", jobs_per_device=2)
    assert count == 2
    seen = set(processes.in_parallel(card, [(tmp_path,)] * 4, count))
    assert [where[1:] for where in seen] == [(1, "cuda")] * 2


def test_a_grid_has_as_many_processes_as_its_cards_take(tmp_path):
    grid = ["batch_size=8,16", "base_lr=1/4096", "epochs=1", "data=digits16", "data.train_size=240"]
    local = ["hydra/launcher=local", "hydra.launcher.jobs_per_device=2", "machine.accelerator=gpu"]
    where = [f"data.root={tmp_path}/data", f"store={tmp_path}/runs"]
    subprocess.run([sys.executable, "src/train.py", "-m", *grid, *local, *where], cwd=REPOSITORY, check=True)
    records = [record for _, record in store.read_all(tmp_path / "runs")]
    assert [record.result["machine"]["device"] for record in records] == [torch.cuda.get_device_name()] * 2
