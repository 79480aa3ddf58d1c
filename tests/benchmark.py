"""Measure what a user's run costs against the same network in a loop written by hand. Prints tables.

    python tests/benchmark.py               # everything, about 20 minutes
    python tests/benchmark.py --only step   # one part: step, parallel, start, memory, store, wandb, peers

Images are random, of CIFAR-10's shape, so nothing is downloaded; `peers` takes CIFAR-10 if `data/` has it. Ratios are
of neighbours in time, so that a noisy machine disturbs both alike; medians are shown.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

import numpy as np
from peers import peers

SOURCE = Path(__file__).parents[1] / "src"
sys.path.insert(0, str(SOURCE))
SIZES = (2, 8, 32, 128)
TEST_IMAGES = 512
SMALL_RATE = "2**-16"  # nothing diverges, so every step does its whole work


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["step", "parallel", "start", "memory", "store", "wandb", "peers"])
    parser.add_argument(
        "--rounds", type=int, default=15, help="epochs per row of the step table; a fifth as many grids"
    )
    parser.add_argument("--small", action="store_true", help="peers: a tiny grid, to see that it works")
    parser.add_argument("--child", metavar="DATA", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_lightning_rate(Path(arguments.child), "alexnet", 2, 2048, epochs=6)))
        return
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch-lightning", "numpy"))
    print(f"{_processor()}, {platform.system()}, Python {platform.python_version()}, {packages}\n")
    with tempfile.TemporaryDirectory() as temporary:
        data = _random_images(Path(temporary))
        parts = {"step": step, "parallel": parallel, "start": start, "memory": memory, "store": store, "wandb": wandb}
        parts["peers"] = partial(peers, small=arguments.small)
        for name, part in parts.items():
            if arguments.only in (None, name):
                part(data, arguments.rounds)


def step(data: Path, rounds: int) -> None:
    """Training images/s of a run (augmentation, sums, checkpoints and all) against the hand-written loop.

    The loop takes its turn after every epoch of the run; an epoch, of about a second, is held against
    the mean of the turns before and after it.
    """
    print(f"Training, one thread, images/s: a run / by hand; medians over n = {rounds} epochs, quartiles of the ratio")
    print(
        f"{'network':<10}{'m':>5}{'run':>9}{'by hand':>9}{'ratio':>8}{'25 %':>7}{'75 %':>7}{'evaluation / epoch':>20}"
    )
    for model, sizes in (("alexnet", (256, 512, 1024, 1024)), ("resnet32", (64, 128, 128, 512))):
        for m, images in zip(SIZES, sizes, strict=True):
            rows, turns = _in_turns(data, model, m, images, rounds + 1)
            run = [row["train_seconds"] for row in rows[1:]]  # the first epoch warms up
            hand = [(before + after) / 2 for before, after in itertools.pairwise(turns)]
            ratios = [b / a for a, b in zip(run, hand, strict=True)]
            low, middle, high = quantiles(ratios, n=4)
            evaluation = median(row["eval_seconds"] for row in rows[1:]) / TEST_IMAGES * 10_000
            share = evaluation / (median(run) / images * 50_000)
            print(
                f"{model:<10}{m:>5}{images / median(run):>9.0f}{images / median(hand):>9.0f}"
                f"{middle:>8.3f}{low:>7.3f}{high:>7.3f}{share:>19.1%}",
                flush=True,
            )
    print()


def parallel(data: Path, rounds: int) -> None:
    """Images/s of two processes side by side against one alone, AlexNet, m = 2."""
    ratios = []
    for _ in range(max(1, rounds // 5)):
        alone = _children(data, 1)
        ratios.append(_children(data, 2) / alone)
    print(
        f"Two runs side by side / one, AlexNet, m = 2: {median(ratios):.2f}, n = {len(ratios)}, min {min(ratios):.2f}\n"
    )


def start(data: Path, rounds: int) -> None:
    """Wall seconds of a whole run of one update: an upper bound on the way to the first update."""
    seconds = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(1 + max(1, rounds // 5)):  # the first one unpacks the images, once for all runs
            began = time.perf_counter()
            _train(data, temporary, "batch_size=10", "data.train_size=10", "data.test_size=10", f"seed={seed}")
            seconds.append(time.perf_counter() - began)
    seconds = seconds[1:]
    print(f"Start to end of a run of one update: {median(seconds):.1f} s, n = {len(seconds)}, max {max(seconds):.1f}\n")


def memory(data: Path, rounds: int) -> None:
    """Peak resident memory of a run over 50,000 images, and of the imports alone (largest child so far)."""
    subprocess.run([sys.executable, "-c", "import smallbatch.training.fit"], check=True, cwd=SOURCE)
    imports = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with tempfile.TemporaryDirectory() as temporary:
        _train(data, temporary, "batch_size=128", "data.augment=true")
    whole = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"Peak memory, 50,000 images, m = 128: {whole / 2**20:.2f} GiB, of it imports {imports / 2**20:.2f}\n")


def store(data: Path, rounds: int) -> None:
    """Wall seconds and peak memory of the commands that read a store of 5,000 runs, which are made up."""
    with tempfile.TemporaryDirectory() as temporary:
        many, same = Path(temporary) / "many" / "runs", Path(temporary) / "same" / "runs"
        sweep = ["figure=fig01", "data=digits", f"data.root={temporary}", f"seed={','.join(map(str, range(39)))}"]
        counts = [_make_up(many, ["figure=all", "seed=0,1,2"], known=False), _make_up(same, sweep, known=True)]
        commands = {
            "draw, judge and report": (counts[0], ["figures.py", f"store={many}", f"--out={temporary}/figures"]),
            "price": (counts[1], ["plan.py", f"store={same}", *sweep]),
            "skip what is finished": (counts[1], ["train.py", "-m", *sweep, f"store={same}"]),
        }
        for name, (count, command) in commands.items():
            seconds, peak = _timed([sys.executable, str(SOURCE / command[0]), *command[1:]])
            print(f"{name:<24}{count:>6,} runs {seconds:>7.1f} s {peak:>6.2f} GiB", flush=True)
    print()


def _make_up(folder: Path, arguments: list[str], known: bool) -> int:
    """Write run folders of a grid with random results; the data are described as here if `known`, else made up too."""
    from smallbatch import store as runs
    from smallbatch.data import describe
    from smallbatch.ended import Ended
    from smallbatch.grids.expand import expand

    ended, random = Ended({}), np.random.RandomState(0)
    points = expand(arguments, describe if known else ended.describe, lambda _, m: dict.fromkeys(m, 2.0**-8))
    columns = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")
    rest = {"status": "finished", "chance": 0.1, "train_images": 50_000, "test_images": 10_000, "seconds": 9.0}
    with patch("os.fsync"):  # nobody needs these after a power cut
        for point in points.points:
            path = runs.folder(folder, point.run)
            path.mkdir(parents=True)
            values = random.random_sample((point.run.epochs, len(columns))).tolist()
            rows = [
                {"epoch": e + 1, **dict(zip(columns, row, strict=True)), "updates": e, "images": e}
                for e, row in enumerate(values)
            ]
            runs.write_result(path, point.run, rows, rest | {"score": float(random.random_sample())})
    return len(points.points)


def _timed(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak memory in GiB of a command."""
    began = time.perf_counter()
    process, peak = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0
    while process.poll() is None:  # its resource usage would count this process's memory too, from which it was forked
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - began, peak / 2**20


def wandb(data: Path, rounds: int) -> None:
    """What W&B costs a short run on the digits, m = 2: wall time in turns with a run without, and processor time.

    The latter does not depend on what else the machine does. It is that of the process's other threads and of
    W&B's own processes, against the training thread's.
    """
    from smallbatch.compose import compose
    from smallbatch.tracking import live
    from train import train

    def run(seed: int, logger: str) -> tuple[float, float, float]:
        """Seconds: wall, processor of this thread, processor of the others."""
        words = [f"data.root={data.parent}", f"store={data.parent}/{logger}/runs", f"logger={logger}", f"seed={seed}"]
        cfg = compose(["batch_size=2", "epochs=2", "progress=false", "machine.accelerator=cpu", *words])
        wall, process, thread = time.perf_counter(), time.process_time(), time.thread_time()
        train(cfg, say=lambda line: None)
        wall, thread = time.perf_counter() - wall, time.thread_time() - thread
        return wall, thread, time.process_time() - process - thread

    os.environ.setdefault("WANDB_MODE", "offline")
    run(0, "none")
    first = run(0, "wandb")
    count = max(3, rounds // 2)
    logged, plain = zip(*[(run(seed, "wandb"), run(seed, "none")) for seed in range(1, 1 + count)], strict=True)
    for uploader in live._uploaders.values():
        uploader.process.stdin.close()
        uploader.process.wait()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = (usage.ru_utime + usage.ru_stime) / (count + 1)
    low, middle, high = quantiles([a[0] / b[0] - 1 for a, b in zip(logged, plain, strict=True)], n=4)
    others = median(run[2] for run in logged) - median(run[2] for run in plain)
    thread = median(run[1] for run in logged)
    print(f"W&B {os.environ['WANDB_MODE']}, digits, m = 2, runs of 2 epochs and {thread:.1f} s, n = {count}:")
    print(f"wall time {middle:+.1%}, quartiles {low:+.1%} to {high:+.1%}")
    print(
        f"processor time {others / thread:.2%} on our thread, {own / thread:.2%} in W&B's processes, from their start"
    )
    print(f"the first run of a process: {first[1] - thread:.1f} s more\n")


def _train(data: Path, store: str, *overrides: str) -> None:
    command = [sys.executable, str(SOURCE / "train.py"), "data=arrays", f"data.path={data}", f"data.root={data.parent}"]
    extra = [f"base_lr={SMALL_RATE}", "epochs=1", f"store={store}", "machine.accelerator=cpu", *overrides]
    subprocess.run([*command, *extra], check=True, capture_output=True)


def _children(data: Path, count: int) -> float:
    command = [sys.executable, __file__, "--child", str(data)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return float(sum(json.loads(process.communicate()[0]) for process in processes))


def _lightning_rate(data: Path, model: str, m: int, images: int, epochs: int) -> float:
    """Training images/s of a run as a user has it, without its first epoch."""
    rows = _rows(data, model, m, images, epochs)[1:]
    return images * len(rows) / sum(row["train_seconds"] for row in rows)


def _in_turns(data: Path, model: str, m: int, images: int, epochs: int) -> tuple[list[dict[str, float]], list[float]]:
    """The epochs of a run, and the seconds of the hand-written loop after each."""
    from smallbatch.training.fit import KeepRun

    by_hand, turns = _hand_loop(data, model, m, images), []
    keep = KeepRun.on_train_epoch_end

    def keep_and_take_turn(self: Any, trainer: Any, module: Any) -> None:
        keep(self, trainer, module)
        began = time.perf_counter()
        by_hand()
        turns.append(time.perf_counter() - began)

    with patch.object(KeepRun, "on_train_epoch_end", keep_and_take_turn):
        return _rows(data, model, m, images, epochs), turns


def _rows(data: Path, model: str, m: int, images: int, epochs: int) -> list[dict[str, float]]:
    from train import train

    cfg, _ = _config(data, model, m, images, epochs)
    with tempfile.TemporaryDirectory() as temporary:
        cfg.store = temporary
        return train(cfg, say=print)[0].rows


def _hand_loop(data: Path, model: str, m: int, images: int) -> Callable[[], None]:
    """A plain PyTorch loop: the same network, channels-last, fused SGD, augmented tensors ready in memory."""
    import torch
    from omegaconf import OmegaConf
    from torch.nn import functional as F

    from smallbatch.data import describe, load
    from smallbatch.data.blocks import TrainBlocks
    from smallbatch.models import build

    torch.set_num_threads(1)
    cfg, run = _config(data, model, m, images, 1)
    arrays = load(describe(OmegaConf.to_container(cfg.data)))  # type: ignore[arg-type]
    blocks = TrainBlocks(arrays, m, True, 0, 0)
    batches = [pair for x, y in blocks for pair in zip(x.split(m), y.split(m), strict=True)]
    network = build(run, arrays.channels, arrays.classes)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=run.base_lr * m, weight_decay=run.weight_decay, fused=True)

    def loop() -> None:
        for x, y in batches:
            loss = F.cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return loop


def _config(data: Path, model: str, m: int, images: int, epochs: int):  # type: ignore[no-untyped-def]
    from smallbatch.compose import compose
    from smallbatch.run import make_run

    norm = "none" if model == "alexnet" else "batch"
    cfg = compose(
        [
            *(f"model={model}", f"norm={norm}", "data=arrays", f"data.path={data}", f"data.root={data.parent}"),
            *("data.augment=true", f"data.train_size={images}", f"data.test_size={TEST_IMAGES}", f"batch_size={m}"),
            *(f"base_lr={SMALL_RATE}", f"epochs={epochs}", "progress=false", "machine.accelerator=cpu"),
        ]
    )
    return cfg, make_run(cfg)


def _random_images(folder: Path) -> Path:
    random = np.random.RandomState(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 50_000), ("test", 10_000)):
        arrays[f"{split}_images"] = random.randint(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(folder / "random.npz", allow_pickle=False, **arrays)
    return folder / "random.npz"


def _processor() -> str:
    from smallbatch.machine import processor

    return processor()


if __name__ == "__main__":
    main()
