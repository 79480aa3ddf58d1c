"""Whether training still gives the numbers that are committed: `make reproduce`; `--update` writes them anew.

Two parts. Steps: losses, rates and weights' norms of some updates of each network × norm, ghost groups, schedules,
augmentation and optimizers, on the embedded digits in float64, where one tolerance fits every processor. Grid: a small
grid in float32, trained, drawn and judged; its verdicts and counts are equal, and its accuracies as near as those of
repeated runs on other instruction sets. `--against REV` trains the steps and the grid with the code of another commit,
here and now, and compares bit for bit. Exit status 1 if anything departs.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
NUMBERS = ROOT / "outputs" / "reference" / "reproduce" / "numbers.json"
TOLERANCE = 1e-8  # relative, of float64: see README.md beside the numbers
UPDATES = 30
REPEATED = 2.8  # standard deviations: a difference of two runs exceeds that in 5 % of cases (√2 × 1.96)
# 240 images in batches of 8 are 30 updates, so that both drops and a warm-up lie within them.
BASE = ["data=digits", "data.train_size=240", "data.test_size=40", "epochs=1", "batch_size=8", "base_lr=1/512"]
BASE += ["precision=64-true", "machine.accelerator=cpu"]
# Name: what it changes, and how many updates are compared: with batch norm over four values in a dense layer a last bit
# grows to 1e-3 in 24 updates.
CASES: dict[str, tuple[list[str], int]] = {
    "resnet8, none": (["model=resnet8"], UPDATES),
    "resnet8, batch": (["model=resnet8", "norm=batch"], UPDATES),
    "resnet8, group": (["model=resnet8", "norm=group"], UPDATES),
    "resnet20, none": (["model=resnet20", "base_lr=2**-16"], 10),
    "resnet20, batch": (["model=resnet20", "norm=batch", "base_lr=2**-16"], 10),
    "resnet32, none": (["model=resnet32", "base_lr=2**-20"], 10),
    "resnet32, batch": (["model=resnet32", "norm=batch", "base_lr=2**-16"], 10),
    "alexnet, none": (["model=alexnet"], UPDATES),
    "alexnet, BN in convolutions": (["model=alexnet", "norm=batch", "norm.layers=conv"], UPDATES),
    "alexnet, BN in all layers": (["model=alexnet", "norm=batch"], 2),
    "alexnet, group": (["model=alexnet", "norm=group"], UPDATES),
    "ghost groups of 4": (["model=resnet8", "norm=batch", "bn_batch_size=4"], UPDATES),
    "dense ghost groups of 4": (["model=alexnet", "norm=batch", "bn_batch_size=4"], 2),
    "m = 2": (["model=resnet8", "norm=batch", "batch_size=2"], UPDATES),
    "warm-up": (["model=resnet8", "schedule.warmup=0.2"], UPDATES),
    "constant": (["model=resnet8", "schedule=constant"], UPDATES),
    "cosine": (["model=resnet8", "schedule=cosine"], UPDATES),
    "augmented": (["model=resnet8", "data.augment=true"], UPDATES),
    "second epoch, augmented": (["model=resnet8", "data.augment=true", "epochs=2"], 2 * UPDATES),
    "momentum": (["model=resnet8", "optimizer=momentum", "base_lr=2**-12"], UPDATES),
    "adamw": (["model=resnet8", "optimizer=adamw", "base_lr=2**-14"], UPDATES),
}  # fmt: skip
GRID = ["figure=fig02", "scale=smoke", "seed=1,2,3", "machine.accelerator=cpu"]
Numbers = dict[str, Any]


def steps(words: list[str], updates: int) -> Numbers:
    """Loss, learning rate and weights' norm at each of the first updates, and the test's result at the end."""
    import pytorch_lightning as pl
    import torch

    from smallbatch.compose import compose
    from smallbatch.data import blocks, load_images
    from smallbatch.run import make_run
    from smallbatch.training import fit
    from smallbatch.training.module import SmallBatch

    class Recorder(pl.Callback):
        """Sees each update."""

        def __init__(self) -> None:
            self.loss: list[float] = []
            self.rate: list[float] = []
            self.norm: list[float] = []

        def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
            self.loss.append(loss.item())

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            self.rate.append(float(optimizer.param_groups[0]["lr"]))

        def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
            self.norm.append(torch.nn.utils.get_total_norm([p.detach() for p in module.network.parameters()]).item())

    torch.set_num_threads(1)
    cfg = compose([*_without(BASE, words), *words])
    run, images, seen = make_run(cfg), load_images(cfg), Recorder()
    module = SmallBatch(run, *images.sizes)
    found: Numbers = {"initial": [torch.nn.utils.get_total_norm(list(module.network.parameters())).item()]}
    _redraw(module.network)
    ours = partial(_normalise, blocks.normalise)
    with tempfile.TemporaryDirectory() as folder, patch.object(blocks, "normalise", ours):
        settings = fit.trainer_settings(cfg, run, Path(folder)) | {"callbacks": [seen], "enable_progress_bar": False}
        fit.fit(module, images, **settings)
    found |= {name: getattr(seen, name)[:updates] for name in ("loss", "rate", "norm")}
    whole = run.epochs * (len(images.train) // run.batch_size) == updates
    return found | ({"test_loss": [row["test_loss"] for row in module.rows]} if whole else {})


def _normalise(theirs: Any, pixels: Any, images: Any) -> Any:
    """As the package does, but in float64: in float32 a fused multiply-add gives another last bit."""
    import torch

    found = (
        torch.as_tensor((pixels - images.mean) / images.std)
        .movedim(-1, 1)
        .contiguous(memory_format=torch.channels_last)
    )
    assert torch.allclose(found.float(), theirs(pixels, images), atol=1e-5)
    return found


def _redraw(network: Any) -> None:
    """Draw the weights by numpy: torch's normal numbers differ in float32's last bits between instruction sets."""
    import numpy as np
    import torch

    random = np.random.RandomState(0)
    for weight in (weight for weight in network.parameters() if weight.dim() > 1):
        fan_in = weight[0].numel()
        drawn = random.standard_normal(tuple(weight.shape)) * (2 / fan_in) ** 0.5
        weight.data = torch.as_tensor(drawn)


def _without(words: list[str], others: list[str]) -> list[str]:
    """A setting that is given twice counts once, the second time."""
    named = {word.partition("=")[0] for word in others}
    return [word for word in words if word.partition("=")[0] not in named]


def all_steps() -> dict[str, Numbers]:
    """Of each case."""
    return {name: steps(words, updates) for name, (words, updates) in CASES.items()}


def grid(store: Path, root: Path = ROOT) -> None:
    """Train the small grid with the code of a checkout."""
    command = [sys.executable, str(root / "src" / "train.py"), "-m", *GRID, f"store={store}", "progress=false"]
    subprocess.run([*command, "hydra/launcher=local"], check=True, stdout=subprocess.DEVNULL, cwd=root)


def read_grid(store: Path) -> Numbers:
    """Draw and judge it: scores by run, counts, verdicts."""
    from smallbatch import store as folders
    from smallbatch.claims.judge import judge
    from smallbatch.ended import Ended
    from smallbatch.figures import draw
    from smallbatch.figures.collect import collect

    ended = folders.ended(store)
    runs = collect("fig02", "smoke", ["seed=1,2,3"], Ended(ended))
    draw.draw(runs)
    verdicts = {
        f"{row.id} {verdict.column}": verdict.state
        for row in judge({"fig02": runs})
        for verdict in row.verdicts
        if verdict.column == "fig02"
    }
    return {
        "scores": {record.run.label: record.result["score"] for record in ended.values()},
        "counts": dict(Counter(record.result["status"] for record in ended.values())),
        "verdicts": verdicts,
    }


def depart(old: dict[str, Numbers], new: dict[str, Numbers], tolerance: float) -> list[str]:
    """Where the steps depart, a line each: the case, the number, the update, both values."""
    lines = [f"{name}: only {'there' if name in old else 'here'}" for name in sorted(old.keys() ^ new.keys())]
    for name in (name for name in new if name in old):
        for number, values in new[name].items():
            before = old[name].get(number, [])
            if len(before) != len(values):
                lines.append(f"{name}: {number}: {len(before)} values before, {len(values)} now")
                continue
            # The first weights are torch's float32 normal numbers, whose last bits depend on the instruction set.
            most = tolerance and (1e-6 if number == "initial" else tolerance)
            pairs = enumerate(zip(before, values, strict=True), 1)
            off = [(i, a, b) for i, (a, b) in pairs if not math.isclose(a, b, rel_tol=most)]  # nan is close to nothing
            if off:
                at, a, b = off[0]
                relative = abs(a - b) / max(abs(a), abs(b))
                lines.append(
                    f"{name}: {number} departs from update {at} on: {a!r} before, {b!r} now (relative {relative:.1e})"
                )
    return lines


def depart_grid(old: Numbers, new: Numbers, deviation: dict[str, float]) -> list[str]:
    """Where the grid departs: other verdicts or counts, and scores further off than repeated runs are.

    One in twenty is that far off by chance: so many are not told.
    """
    from scipy.stats import binom

    lines = [
        f"grid: {what} {name}: {old[what].get(name)} before, {new[what].get(name)} now"
        for what in ("counts", "verdicts")
        for name in sorted(old[what].keys() | new[what].keys())
        if old[what].get(name) != new[what].get(name)
    ]
    apart = []
    for name in sorted(old["scores"].keys() | new["scores"].keys()):
        before, now = old["scores"].get(name), new["scores"].get(name)
        if before is None or now is None:
            lines.append(f"grid: {name}: only {'before' if now is None else 'now'}")
        elif abs(before - now) > (most := REPEATED * deviation.get(name, 0.0)):
            apart.append(f"grid: {name}: score {before:.4f} before, {now:.4f} now, more than {most:.4f} apart")
    by_chance = binom.ppf(0.999, len(new["scores"]), 0.05) if deviation else 0
    return lines + (apart if len(apart) > by_chance else [])


def deviation(scores: list[dict[str, float]]) -> dict[str, float]:
    """The standard deviation of each run's score over repetitions, and not below that of all runs pooled."""
    import numpy as np

    variances = np.array([[some[label] for label in scores[0]] for some in scores]).var(axis=0, ddof=1)
    spread = np.sqrt(np.maximum(variances, variances.mean()))
    return dict(zip(scores[0], map(float, spread), strict=True))


Read = TypeVar("Read")


def elsewhere(variables: dict[str, str], read: Callable[[Path], Read], root: Path = ROOT) -> tuple[Numbers, Read]:
    """The steps, and what `read` makes of the grid's store, by processes with other variables or another checkout."""
    script = root / "tests" / "reproduce.py"
    if root != ROOT:
        script.write_bytes(Path(__file__).read_bytes())
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        command = [sys.executable, str(script), "--into", made]
        subprocess.run(command, check=True, env=os.environ | variables, cwd=root)
        return json.loads((folder / "steps.json").read_text()), read(folder / "runs")


# Instruction sets of a processor that has all of them: torch's own kernels, and oneDNN's convolutions.
SETS = [
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"},
]


def update() -> None:
    """Measure anew, show old and new, and write."""
    old = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {"steps": {}, "grid": None}
    new_steps, new_grid = elsewhere({}, read_grid)
    others = [elsewhere(variables, read_grid) for variables in SETS]
    worst = max((line for steps, _ in others for line in depart(new_steps, steps, TOLERANCE)), default="none")
    print(f"beyond {TOLERANCE:g} on other instruction sets: {worst}")
    spread = deviation([new_grid["scores"], *(found["scores"] for _, found in others)])
    print(f"standard deviation of a score over {1 + len(SETS)} instruction sets: {min(spread.values()):.4f} pooled")
    lines = depart(old["steps"], new_steps, TOLERANCE)
    lines += depart_grid(old["grid"], new_grid, {}) if old["grid"] else ["grid: new"]
    print(*lines or ["no number departs"], sep="\n")
    NUMBERS.parent.mkdir(parents=True, exist_ok=True)
    whole = {"steps": new_steps, "grid": new_grid, "deviation": spread, "repetitions": 1 + len(SETS)}
    NUMBERS.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {NUMBERS.relative_to(ROOT)}")


def check() -> list[str]:
    """What departs from the committed numbers."""
    committed = json.loads(NUMBERS.read_text(encoding="utf-8"))
    new_steps, new_grid = elsewhere({}, read_grid)
    lines = depart(committed["steps"], new_steps, TOLERANCE)
    return lines + depart_grid(committed["grid"], new_grid, committed["deviation"])


def against(revision: str) -> list[str]:
    """What departs, bit for bit, from the code of another commit on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(other)], check=True)
        subprocess.run(["git", "-C", str(other), "checkout", "-q", revision], check=True)
        old_steps, old_runs = elsewhere({}, _epochs, other)
    new_steps, new_runs = elsewhere({}, _epochs)
    lines = depart(old_steps, new_steps, 0.0)
    lines += [
        f"grid: run {key}: only {'there' if key in old_runs else 'here'}" for key in old_runs.keys() ^ new_runs.keys()
    ]
    for key in sorted(old_runs.keys() & new_runs.keys()):
        both = old_runs[key].keys() & new_runs[key].keys()
        lines += [
            f"grid: run {key}: {name} departs" for name in sorted(both) if old_runs[key][name] != new_runs[key][name]
        ]
    return lines


def _epochs(store: Path) -> dict[str, dict[str, list[str]]]:
    """Of each run the columns of its epochs."""
    return {path.parent.name: _columns(path) for path in store.glob("*/epochs.csv")}


def _columns(path: Path) -> dict[str, list[str]]:
    """The columns of epochs.csv, without those that are seconds."""
    head, *rows = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines())
    return {name: [row[i] for row in rows] for i, name in enumerate(head) if not name.endswith("_seconds")}


def main() -> None:
    """Compare, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="show old and new numbers, and write the new ones")
    parser.add_argument("--against", metavar="REV", help="compare with the code of another commit, bit for bit")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.into:
        (given.into / "steps.json").write_text(json.dumps(all_steps()))
        grid(given.into / "runs", Path(__file__).resolve().parents[1])
        return
    if given.update:
        update()
        return
    lines = against(given.against) if given.against else check()
    print(*lines or ["everything is reproduced"], sep="\n")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
