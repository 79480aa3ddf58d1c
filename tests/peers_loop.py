"""A grid in a loop written by hand, as fast as we can write it: `tests/peers.py` measures it.

python tests/peers_loop.py ROWS JOBS THREADS WORDS…: runs at a time, threads of each, and the words of a grid. Data
come ready in memory from this package, in the same order and with the same crops, so that losses are equal bit for bit.
"""

import csv
import itertools
import multiprocessing
import sys
import time
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from smallbatch.compose import compose
from smallbatch.data import load_images
from smallbatch.data.blocks import TestBlocks, TrainBlocks
from smallbatch.models import build
from smallbatch.run import make_run


def train(words: list[str], point: tuple[str, str]) -> tuple[Any, ...]:
    """One run: m, η̃, accuracy on the test images after the last epoch, when it began and ended."""
    began = time.time()
    cfg = compose([*words, f"batch_size={point[0]}", f"base_lr={point[1]}"])
    run, images = make_run(cfg), load_images(cfg)
    m = run.batch_size
    torch.set_flush_denormal(True)
    network = build(run, images.channels, images.classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=run.base_lr * m, weight_decay=run.weight_decay, fused=True)
    test = [(x, y) for x, y, _ in TestBlocks(images)]
    accuracy = 0.0
    for epoch in range(run.epochs):
        network.train()
        for block in TrainBlocks(images, m, run.data["augment"], run.seed, epoch):
            for x, y in zip(*(part.split(m) for part in block), strict=True):
                optimizer.zero_grad()
                F.cross_entropy(network(x), y).backward()
                optimizer.step()
        network.eval()
        with torch.inference_mode():
            hits = sum(int((network(x).argmax(1) == y).sum()) for x, y in test)
        accuracy = hits / len(images.test)
    return m, run.base_lr, accuracy, began, time.time()


def main(rows: str, jobs: str, threads: str, *words: str) -> None:
    """Train the product of the grid's axes, write a row for each, print the table."""
    axes = [
        next(w.partition("=")[2].split(",") for w in words if w.startswith(f"{a}=")) for a in ("batch_size", "base_lr")
    ]
    common = [word for word in words if not word.startswith(("batch_size=", "base_lr="))]
    one, points = partial(train, common), list(itertools.product(*axes))
    torch.set_num_threads(int(threads))
    if jobs == "1":
        done = [one(point) for point in points]
    else:
        with multiprocessing.get_context("fork").Pool(int(jobs)) as pool:
            done = pool.map(one, points, chunksize=1)
    with open(rows, "w", newline="") as file:
        csv.writer(file).writerows(done)
    for m, rate, accuracy, began, ended in done:
        print(f"m = {m:>3}, η̃ = {rate:.6f}: {accuracy:.4f} in {ended - began:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
