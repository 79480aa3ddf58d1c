"""The answer of a grid, on made-up runs whose truth is known: the table by hand, the three lines, the files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from smallbatch.answer import Answer, answer, tell_all
from smallbatch.grids.expand import expand
from smallbatch.powers import format_power
from smallbatch.store import Record

GRID = ["batch_size=2,8,32", "base_lr=1/2048,1/1024,1/512,1/256,1/128", "epochs=4"]


@pytest.fixture
def made(root):
    """Records of a grid: `accuracy(m, log2 η̃, seed)` in points, or (on half a, on half b); None: diverged."""

    def make(accuracy, *words, seconds=lambda m: 64 / m, halves=True):
        records = []
        for point in expand([*GRID, f"data.root={root}", "seeds=3", *words]).points:
            run = point.run
            found = accuracy(run.batch_size, round(np.log2(run.base_lr)), run.seed)
            a, b = found if isinstance(found, tuple) else (found, found)
            records.append(record(run, a, b, seconds(run.batch_size), halves))
        return records

    return make


def record(run, a, b, seconds, halves=True):
    """A run that gains a quarter of its accuracy an epoch."""
    lost = a is None
    rows = []
    for epoch in range(1, 1 if lost else run.epochs + 1):
        both = (a / 400 * epoch, b / 400 * epoch)
        row = {"epoch": epoch, "updates": epoch, "train_accuracy": sum(both) / 2, "test_accuracy": sum(both) / 2}
        row |= {"train_seconds": seconds, "eval_seconds": 1.0}
        rows.append(row | (dict(zip(("test_accuracy_a", "test_accuracy_b"), both, strict=True)) if halves else {}))
    score = 0.1 if lost else (a + b) / 200
    status = "diverged" if lost else "finished"
    result = {"status": status, "score": score, "chance": 0.1, "seconds": (seconds + 1) * run.epochs}
    return Record(run, rows, result | {"train_images": 1024, "test_images": 5000})


def hill(gap=3.0, noise=0.3):
    """Best at m = 8, `gap` points above m = 2 and 32, at 2^-9."""
    random = np.random.default_rng(0)
    return lambda m, e, s: 80 - gap * (m != 8) - 2 * abs(e + 9) + noise * random.normal()


def lines(found):
    assert isinstance(found, Answer)
    return dict(line.split(": ", 1) for line in found.lines if ": " in line)


def test_a_clear_world_gives_the_best_and_what_is_fast_enough(made):
    found = answer(made(hill()))
    told = lines(found)
    assert told["best"] == "m = 8 at η̃ = 2^-9"
    assert told["largest m that loses at most 1 point"].startswith("m = 8 (loses 0.00)")
    assert "to settle" not in told
    frame = found.frame.set_index("m")
    assert list(frame["base_lr"]) == [2.0**-9] * 3
    assert list(frame["may_be_best"]) == ["2^-9"] * 3
    assert frame["loss"][8] == 0
    assert frame["loss_low"][2] > 1 < frame["loss_low"][32]
    assert (frame["low"] < frame["accuracy"]).all()
    assert list(frame["seconds"]) == [4 * (64 / m + 1) for m in (2, 8, 32)]
    # 79 of 80 points come in the last of four epochs.
    assert frame["to_target"][8] == 4 * 8.0
    assert np.isinf(frame["to_target"][2])


def test_a_wider_margin_lets_a_larger_and_faster_batch_in(made):
    told = lines(answer(made(hill(gap=3.0)), margin=6))
    assert told["largest m that loses at most 6 points"].startswith("m = 32 (loses 3.")
    (first,) = [text for name, text in told.items() if name.startswith("first to")]
    assert first.startswith("m = 32 at η̃ = 2^-9 in 8.0 s, then m = 8 at")


def test_a_tie_is_undecided_and_says_what_would_settle_it(made):
    told = lines(answer(made(hill(gap=0.2, noise=1.0))))
    assert told["best"].startswith("undecided between m = 2, m = 8 and m = 32; the highest is m = ")
    assert told["largest m that loses at most 1 point"].startswith("undecided; ")
    assert told["to settle"] == "the same with seeds=5"


def test_after_the_last_look_a_tie_is_a_tie(made):
    found = answer(made(hill(gap=0.0, noise=2.0), "seeds=8"))
    assert found.lines[-1] == "that is all that 8 seeds can tell: a tie"


def test_one_seed_decides_nothing(made):
    found = answer(made(hill(), "seeds=1"))
    told = lines(found)
    assert told["best"] == "undecided with one seed; the highest is m = 8 at η̃ = 2^-9"
    assert told["to settle"] == "the same with seeds=3"
    assert found.frame["low"].isna().all()


def test_each_half_of_the_images_chooses_for_the_other(made):
    on_a, on_b = {-10: 70, -9: 74, -8: 71, -11: 60, -7: 60}, {-10: 75, -9: 71, -8: 72, -11: 60, -7: 60}
    found = answer(made(lambda m, e, s: (float(on_a[e] - m / 8), float(on_b[e] - m / 8))))
    # a chooses 2^-9, where b sees 71; b chooses 2^-10, where a sees 70. On all images 72.5 at either.
    assert list(found.frame["accuracy"]) == pytest.approx([70.5 - m / 8 for m in (2, 8, 32)])
    assert any("on all at once +2.00 points" in line for line in found.lines)


def test_runs_without_the_halves_say_so(made):
    found = answer(made(hill(), halves=False))
    assert any("these runs lack the halves" in line for line in found.lines)
    assert list(found.frame["accuracy"])[1] == pytest.approx(80, abs=1)


def test_what_one_seed_does_not_train_is_never_the_best(made):
    def accuracy(m, e, s):
        if m == 32:
            return 85.0 if s < 3 else None
        return 80 - (m == 2) * 5 - abs(e + 9) + s / 10

    found = answer(made(accuracy))
    assert lines(found)["best"] == "m = 8 at η̃ = 2^-9"
    assert list(found.frame["reliable"]) == [True, True, False]
    assert found.frame["high"][2] - found.frame["low"][2] > 50  # its own spread, not that of the others


def test_what_trains_nowhere_or_shares_no_seed_has_no_answer(made):
    assert answer(made(lambda m, e, s: 10.0)) == "nothing trains at any η̃ tried"
    apart = [r for r in made(hill()) if (r.run.batch_size == 8) == (r.run.seed == 1)]
    assert answer(apart) == "the best η̃ of the batch sizes have no seed in common"
    assert answer(made(hill(), "batch_size=8", "base_lr=1/512")) == "one cell only"


def test_batch_norm_groups_are_rows_of_their_own(made):
    words = ["batch_size=8", "bn_batch_size=2,8", "norm=batch", "model=resnet8"]
    records = made(lambda m, e, s: 80 - abs(e + 9) + s / 10, *words)
    changed = [replace_score(r, 5.0 * (r.run.bn_batch_size == 2)) for r in records]
    assert lines(answer(changed))["best"] == "m = 8, BN batch 2 at η̃ = 2^-9"


def replace_score(record, more):
    return replace(record, result=record.result | {"score": record.result["score"] + more / 100})


def test_each_setting_has_an_answer_a_table_and_pictures(made, tmp_path):
    records = made(hill()) + made(hill(gap=-3.0), "optimizer=momentum")
    told = tell_all(records, tmp_path, 1.0)
    heads = [line for line in told if line.startswith("optimizer")]
    assert len(heads) == 2
    assert any("momentum" in head for head in heads)
    assert len([line for line in told if line.startswith("best: ")]) == 2
    suffixes = sorted(path.suffix for path in tmp_path.iterdir())
    assert suffixes == [".csv"] * 2 + [".png"] * 4 + [".svg"] * 4
    table = pd.read_csv(min(tmp_path.glob("*.csv")))
    assert list(table["m"]) == [2, 8, 32]
    assert {format_power(rate) for rate in table["base_lr"]} == {"2^-9"}
