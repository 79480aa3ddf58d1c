"""Prices follow from measured rates, which are kept; divergences known from the store lower what is expected."""

import platform
import sys
from dataclasses import replace

import pytest

import plan as plan_command
from smallbatch.config import Norm
from smallbatch.ended import Ended
from smallbatch.grids import price
from smallbatch.grids.expand import expand
from smallbatch.grids.price import Prices, expected_share, words
from smallbatch.store import write_result
from smallbatch.training import speed
from smallbatch.training.speed import Rate

SHAPE = (32, 32, 1)


@pytest.fixture
def points(root):
    words = ["figure=fig01", "scale=smoke", "batch_size=2,32", "base_lr=2**-9,2**-8", f"data.root={root}"]
    return expand(words).points


@pytest.fixture
def measured(monkeypatch):
    """The runs measured, in place of measuring: a millisecond for each image of an update, 0.1 for a test image."""
    calls = []

    def measure(run, shape, classes):
        calls.append(run)
        return Rate(0.001 * run.batch_size, 0.0001)

    monkeypatch.setattr(price, "measure", measure)
    return calls


def record(folder, run, status="finished", updates=512, epochs=1, host="elsewhere"):
    columns = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "train_seconds")
    rows = [{"epoch": e + 1, "updates": updates, "images": updates, "eval_seconds": 0.5} for e in range(epochs)]
    rows = [row | dict.fromkeys(columns, 0.5) for row in rows]
    result = {"status": status, "score": 0.1, "chance": 0.1, "train_images": 1024, "test_images": 360, "seconds": 3.0}
    result["machine"] = {"host": host}
    path = folder / run.key
    path.mkdir(parents=True)
    write_result(path, run, rows, result)


def test_a_price_is_updates_evaluations_and_what_runs_and_epochs_cost_beside(tmp_path, points, measured):
    run = points[0].run
    assert (run.batch_size, run.epochs) == (2, 10)
    prices = Prices(tmp_path / "calibration.json", say=lambda line: None)
    whole = prices.seconds(run, 5120, 360, SHAPE, 10)
    assert whole == pytest.approx(5120 * 0.002 + 10 * 360 * 0.0001 + 10 * price.PER_EPOCH + price.PER_RUN)
    half = prices.seconds(run, 5120, 360, SHAPE, 10, share=0.5)
    assert half - price.PER_RUN == pytest.approx((whole - price.PER_RUN) / 2)


def test_a_kind_is_measured_once_and_kept_for_later(tmp_path, points, measured):
    file = tmp_path / "below" / "calibration.json"
    said = []
    prices = Prices(file, say=said.append)
    for point in points:
        prices.rate(point.run, SHAPE, 10)
    assert [run.batch_size for run in measured] == [2, 32]  # η̃ and seed make no difference
    assert len(said) == 2
    again = Prices(file)
    assert again.rate(points[0].run, SHAPE, 10) == Rate(0.002, 0.0001)
    assert len(measured) == 2
    again.rate(points[0].run, (16, 16, 1), 10)
    again.rate(replace(points[0].run, precision="bf16-mixed"), SHAPE, 10)
    assert len(measured) == 4


def test_a_batch_too_large_to_measure_costs_in_proportion_to_its_images(tmp_path, points, measured):
    prices = Prices(tmp_path / "calibration.json", say=lambda line: None)
    large, larger = (replace(points[0].run, batch_size=m, epochs=1) for m in (256, 2048))
    one = [prices.seconds(run, 10, 0, SHAPE, 10) - price.PER_RUN - price.PER_EPOCH for run in (large, larger)]
    assert one == pytest.approx([10 * 0.256, 10 * 2.048])
    assert [run.batch_size for run in measured] == [256]
    ghost = replace(larger, bn_batch_size=32)
    prices.seconds(ghost, 10, 0, (224, 224, 3), 1000)
    assert [(run.batch_size, run.bn_batch_size) for run in measured[1:]] == [(8, None)]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": 3}', '{"kind": {"update": 1}}'])
def test_a_damaged_calibration_is_measured_again(tmp_path, points, measured, content):
    file = tmp_path / "calibration.json"
    file.write_text(content)
    assert Prices(file, say=lambda line: None).rate(points[0].run, SHAPE, 10) == Rate(0.002, 0.0001)
    assert Prices(file).known


@pytest.mark.trains
def test_measuring_takes_its_patience_and_gives_seconds(points, monkeypatch):
    monkeypatch.setattr(speed, "PATIENCE", 0.2)
    small, large = (speed.measure(p.run, SHAPE, 10) for p in (points[0], points[-1]))
    assert 0 < small.update < large.update < 32 * small.update
    assert 0 < small.image < small.update


def test_a_run_is_expected_to_diverge_like_the_nearest_smaller_rate_that_did(tmp_path, points):
    run = points[0].run  # 5,120 updates
    alike = {2.0**-9: 1024, 2.0**-7: 512}
    for rate, updates in alike.items():
        record(tmp_path, replace(run, base_lr=rate, seed=3), "diverged", updates)
    record(tmp_path, replace(run, base_lr=2.0**-10))
    from smallbatch.store import ended

    known = Ended(ended(tmp_path)).alike(run)
    assert len(known) == 3
    shares = [expected_share(replace(run, base_lr=2.0**e), known) for e in (-11, -10, -9, -8, -7, -3)]
    assert shares == [1, 1, 0.2, 0.2, 0.1, 0.1]
    assert expected_share(replace(run, batch_size=32), known) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (36000, "10 h"),
        (864000, "10 days"),
        (7e7, "2.2 years"),
    ],
)
def test_a_duration_is_told_in_the_unit_that_people_would_use(seconds, text):
    assert words(seconds) == text


def run_plan(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["plan.py", *map(str, arguments)])
    status: object = 0
    try:
        plan_command.main()
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().out


def row(output: str, name: str) -> list[str]:
    return next(line for line in output.splitlines() if line.startswith(name)).replace("*", "").split()


def test_a_plan_counts_shared_runs_once_and_what_is_finished(tmp_path, root, monkeypatch, capsys, measured):
    fig07 = expand(["figure=fig07", "scale=smoke", f"data.root={root}"]).points
    record(tmp_path / "runs", fig07[0].run)
    where = [f"store={tmp_path / 'runs'}", f"data.root={root}", "scale=smoke"]
    status, output = run_plan(monkeypatch, capsys, *where, "figure=fig07,fig04")
    assert status == 0
    updates = 4 * sum(1024 // p.run.batch_size for p in fig07[1:])
    assert row(output, "fig07")[1:5] == ["9", "1", f"{updates:,}", f"{8 * 4 * 1024:,}"]
    assert row(output, "fig04")[1:3] == ["3", "0"]
    assert row(output, "all together")[2:] == row(output, "fig07")[1:]
    assert (tmp_path / "calibration.json").exists()


def test_a_plan_holds_the_runs_that_finished_here_against_their_price(tmp_path, root, monkeypatch, capsys, measured):
    fig07 = expand(["figure=fig07", "scale=smoke", f"data.root={root}"]).points
    runs = [p.run for p in fig07 if p.run.batch_size == 2]
    for run, status, host in zip(
        runs, ("finished", "diverged", "finished"), (platform.node(),) * 2 + ("b",), strict=True
    ):
        record(tmp_path / "runs", run, status, host=host)
    where = [f"store={tmp_path / 'runs'}", f"data.root={root}", "scale=smoke"]
    assert "Check:" not in run_plan(monkeypatch, capsys, *where, "figure=fig07")[1]  # no m = 2 left to measure
    _, output = run_plan(monkeypatch, capsys, *where, "figure=fig07", "seed=0,1")
    price = 4 * (512 * 0.002 + 360 * 0.0001)
    expected = f"finished runs that this machine trained: 1; they took 3 s, priced at 4 s (× {price / 3:.2f})."
    assert expected in output


def test_a_plan_of_figure_13_does_not_wait_for_figure_8(tmp_path, root, monkeypatch, capsys, measured):
    where = [f"store={tmp_path / 'runs'}", f"data.root={root}", "scale=smoke"]
    status, output = run_plan(monkeypatch, capsys, *where, "figure=fig13a")
    assert status == 0
    assert row(output, "fig13a")[1:3] == ["7", "0"]
    assert "* takes the best η̃ of runs that are not there yet" in output


def test_a_plan_needs_no_data_and_fetches_none(tmp_path, monkeypatch, capsys, measured):
    status, output = run_plan(
        monkeypatch, capsys, f"store={tmp_path / 'runs'}", "figure=fig01,fig09,fig12", f"data.root={tmp_path / 'data'}"
    )
    assert status == 0
    assert not (tmp_path / "data").exists()
    updates = 13 * 82 * sum(50_000 // 2**k for k in range(1, 12))
    assert row(output, "fig01")[1:4] == ["143", "0", f"{updates:,}"]
    assert row(output, "fig09")[1] == "143"
    assert row(output, "fig12")[1] == "182"


def test_a_plan_says_that_the_data_here_are_a_part_of_the_published(tmp_path, root, monkeypatch, capsys, measured):
    words = [f"store={tmp_path / 'runs'}", "batch_size=2", "data=cifar10", "base_lr=1/512", f"data.root={root}"]
    assert "cifar10 has 10,240 training images here, of 50,000 published" in run_plan(monkeypatch, capsys, *words)[1]
    assert "published" not in run_plan(monkeypatch, capsys, *words, "data.train_size=100")[1]


def test_what_is_measured_is_told_apart(points):
    run = points[0].run
    momentum = replace(run, optimizer=run.optimizer | {"name": "momentum"})
    conv = replace(run, norm=Norm("batch", layers="conv"))
    labels = [price.label(r, SHAPE) for r in (run, momentum, conv)]
    assert labels == [
        "alexnet, 32×32, m = 2",
        "alexnet, momentum, 32×32, m = 2",
        "alexnet, batch norm in conv, 32×32, m = 2",
    ]


def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys):
    status, _ = run_plan(monkeypatch, capsys, f"store={tmp_path / 'runs'}", "figure=fig15")
    assert str(status).startswith("error: ")
    assert "trains nothing" in str(status)
    assert "\n" not in str(status)
