"""Keys stay true for years: those of the reference runs, and of each figure at full size, as they were first given."""

import gzip
import json
from pathlib import Path

import pytest

from smallbatch.grid.expand import expand
from smallbatch.run import Run
from smallbatch.store import Ended

REFERENCE = Path(__file__).parents[1] / "outputs" / "reference"
# Number of runs, keys of the first and of the last (base_lr=best taken as 2^-9, the data's fingerprint as its name).
FIGURES = {
    "fig01": (143, "8e55088ccc29ebb6", "b2178ea3f2690953"),
    "fig02": (143, "c62abbc39685f058", "98d1e01342467bb4"),
    "fig03": (143, "c29b451257dcfd86", "368f7f14396dc8bc"),
    "fig04": (11, "f5d281a22e9c2870", "42e443e2ac446455"),
    "fig05": (143, "fd5918a0446503b0", "da7dc0b941cc09a9"),
    "fig06": (143, "eba2215ffe6ee2fd", "f9f2412e9cf0513f"),
    "fig07": (143, "1536aca5706c7bdc", "27ba70e05b20efa5"),
    "fig08": (143, "cbc5dcb3be2d51b6", "e54eb972b415eef5"),
    "fig09": (143, "46843e384fe4b30a", "19cbed879f9287f5"),
    "fig10": (143, "0a2e7f01bd697d27", "4b8266f2970a7feb"),
    "fig11": (143, "575abb267f21864d", "78c2d9079cd9019e"),
    "fig12": (182, "97e62c9297978831", "270f0bf1a17bb774"),
    "fig13a": (42, "02e2b92968d32258", "e7d91b8247d6f1ff"),
    "fig13b": (42, "7d66aca9556fd0f9", "75369f9ea95c58f3"),
    "fig14": (50, "fa93a35ece1e47e2", "8c889c2bf838e880"),
    "fig17": (143, "e0749bb48207b2ce", "bf502ef04a857650"),
    "fig18": (143, "3c34632b1083c604", "527a14ab14d91a5a"),
    "resnet32_nobn": (143, "0d044b7028526423", "7a566475e0432b8b"),
}
SINGLE = {
    "18d22e7b28afec1a": "batch_size=8 base_lr=1/512 norm=batch bn_batch_size=4 optimizer=momentum schedule=cosine "
    "schedule.warmup=0.05 precision=64-true seed=3",
    "81440389c204c6d8": "model=torchvision model.network=resnet18 data=imagenet data.side=64 norm=group "
    "optimizer=adamw batch_size=8 base_lr=1/512",
    "46f7afda3c07c306": "batch_size=8 base_lr=1/512 norm=batch norm.layers=conv norm.memory=640 norm.eps=1e-3 "
    "schedule=constant weight_decay=0 data.train_size=100 data.test_size=50",
}


def points(words: list[str]):
    return expand(words, Ended({}).describe, lambda _, sizes: dict.fromkeys(sizes, 2.0**-9)).points


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_at_full_size_has_the_keys_it_always_had(figure):
    keys = [point.run.key for point in points([f"figure={figure}"])]
    assert (len(keys), keys[0], keys[-1]) == FIGURES[figure]


@pytest.mark.parametrize("key", SINGLE)
def test_settings_beside_the_defaults_are_in_the_key(key):
    (point,) = points(SINGLE[key].split())
    assert point.run.key == key


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*/runs.jsonl*")), ids=lambda path: path.parent.name)
def test_the_reference_runs_have_the_keys_that_they_were_trained_under(path):
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()
    entries = [json.loads(line) for line in lines]
    assert entries
    assert [Run.from_dict(entry["config"]).key for entry in entries] == [entry["key"] for entry in entries]
