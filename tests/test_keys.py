"""Keys stay true for years: those of the reference runs, and of each figure at full size, as they were first given."""

import gzip
import json
from pathlib import Path

import pytest

from smallbatch.ended import Ended
from smallbatch.grids.expand import expand
from smallbatch.run import Run

REFERENCE = Path(__file__).parents[1] / "outputs" / "reference"
# Number of runs, keys of the first and of the last (base_lr=best taken as 2^-9, the data's fingerprint as its name).
FIGURES = {
    "fig01": (143, "22c01d2311dc2f43", "3420e32a979a072c"),
    "fig02": (143, "bb92ddf885f02812", "b3eb9ba1dc0638a8"),
    "fig03": (143, "3a47017bab4fedcf", "413eb68b52b6a441"),
    "fig04": (11, "ecbe99ce5a7b6152", "2d31449ba5306759"),
    "fig05": (143, "5dd41764f26b4b50", "210f849dc58ef7ef"),
    "fig06": (143, "1c0deb9d570400af", "0cb83268488baf3f"),
    "fig07": (143, "7622e79837b15e1c", "22dd1bc32db12801"),
    "fig08": (143, "49428c41deef6e62", "122cf8b5f3cf1f38"),
    "fig09": (143, "f35b76f7a0dd9e4e", "88389cebc85d5272"),
    "fig10": (143, "9a55a652e9365e59", "01ed9726d4aca127"),
    "fig11": (143, "590eace737127d44", "86c621013c1bd013"),
    "fig12": (182, "97e62c9297978831", "270f0bf1a17bb774"),
    "fig13a": (42, "1465fc2f81e18933", "0bca93d60cf85e6f"),
    "fig13b": (42, "950295ef504f302a", "0b2f5e012d74c7b4"),
    "fig14": (50, "fa93a35ece1e47e2", "8c889c2bf838e880"),
    "fig17": (143, "b2cb2f1b84b0707a", "a88ac59150bcd871"),
    "fig18": (143, "103150324e8c4f8c", "10c3e08024db0e47"),
    "resnet32_nobn": (143, "ddf9b7619ec742bb", "825ce49c45f59c29"),
}
SINGLE = {
    "8b7a8d626626a083": "batch_size=8 base_lr=1/512 norm=batch bn_batch_size=4 optimizer=momentum schedule=cosine "
    "schedule.warmup=0.05 precision=64-true seed=3 epochs=10",
    "81440389c204c6d8": "model=torchvision model.network=resnet18 data=imagenet data.side=64 norm=group "
    "optimizer=adamw batch_size=8 base_lr=1/512",
    "f1176c41f2948a35": "batch_size=8 base_lr=1/512 norm=batch norm.layers=conv norm.memory=640 norm.eps=1e-3 "
    "schedule=constant weight_decay=0 data.train_size=100 data.test_size=50 epochs=10",
}


@pytest.fixture(autouse=True)
def _no_data(tmp_path, monkeypatch):
    """So that the fingerprint is the name: images that lie in `data/` would be looked at."""
    monkeypatch.chdir(tmp_path)


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
