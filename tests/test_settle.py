"""A verdict or an answer within hours: what is trained, in which order, until when; the training is made up."""

import time
from pathlib import Path

import numpy as np
import pytest

from smallbatch import settle as settling
from smallbatch import store
from smallbatch.compose import compose
from smallbatch.errors import ConfigError
from smallbatch.run import make_run
from smallbatch.settle import Clock, settle
from train import main

pytestmark = pytest.mark.trains


@pytest.fixture
def budget(tmp_path, monkeypatch):
    """Run a command line whose runs score `accuracy(m, log2 η̃, random)` in points; returns what it came to."""
    monkeypatch.setattr(settling, "price_of", lambda point, prices, share=1.0: 1.0)
    monkeypatch.setattr(settling, "rest_of_search", lambda grid, prices: (0.0, 0.0))
    monkeypatch.setattr("smallbatch.grids.sweep.WORTH_MEASURING", float("inf"))
    monkeypatch.setattr("smallbatch.grids.sweep._without_refused", lambda grid, results, devices: grid)

    def run(accuracy, *words, spent_after=None):
        trained = []
        monkeypatch.setattr(Clock, "spent", property(lambda self: len(trained) == spent_after))

        def launch(jobs):
            for job in jobs:
                if len(trained) == spent_after:
                    raise KeyboardInterrupt
                cfg = compose(list(job))
                run = make_run(cfg)
                assert run.key == cfg.grid_point
                random = np.random.default_rng(int(run.key[:8], 16))
                score = accuracy(run.batch_size, round(np.log2(run.base_lr)), random) / 100
                trained.append((run.batch_size, round(np.log2(run.base_lr)), run.seed))
                _write(cfg, run, score)

        arguments = [*words, f"store={tmp_path / 'runs'}", f"data.root={tmp_path}"]
        cfg = compose([f"store={tmp_path / 'runs'}"])
        return settle(arguments, launch, cfg, lambda records, folder: ["an answer"]), trained

    return run


def _write(cfg, run, score):
    path = store.folder(Path(cfg.store), run)
    path.mkdir(parents=True, exist_ok=True)
    row = {"epoch": 1, "updates": 1, "train_loss": 1.0, "train_accuracy": score, "test_loss": 1.0}
    row |= dict.fromkeys(("test_accuracy", "test_accuracy_a", "test_accuracy_b"), score)
    row |= {"lr": 0.1, "images": 8, "train_seconds": 1.0, "eval_seconds": 1.0}
    result = {"status": "finished", "score": score, "chance": 0.1, "seconds": 2.0}
    store.write_result(path, run, [row], result | {"train_images": 1024, "test_images": 360})


FIG01 = ["figure=fig01", "scale=smoke", "batch_size=2,8,32"]


def clear(m, e, random, noise=0.3):
    """Small m are better by 5 points an octave of m; the best η̃ lies inside."""
    return 90 - 2.5 * np.log2(m) - 2 * abs(e + 9) + noise * random.normal()


def test_a_clear_claim_is_settled_at_the_first_look(budget, capsys):
    decided, trained = budget(clear, *FIG01, "settle=C4")
    assert decided
    assert {seed for *_, seed in trained} == {1, 2, 3}
    assert len(trained) == 21 * 3
    output = capsys.readouterr().out
    assert "C4 fig01: not trained (no runs)" in output
    assert "training python src/train.py -m figure=fig01 scale=smoke batch_size=2,8,32 seeds=3, about 63 s" in output
    assert output.splitlines()[-2].startswith("  C4 fig01: supported")


def test_the_same_command_goes_on_and_trains_nothing_twice(budget):
    assert budget(clear, *FIG01, "settle=C4")[1]
    assert budget(clear, *FIG01, "settle=C4") == (True, [])


@pytest.mark.long
def test_noise_asks_for_seeds_look_by_look_to_the_last(budget, capsys):
    decided, trained = budget(lambda m, e, r: clear(8, e, r, noise=1.5), *FIG01, "settle=C4")
    assert not decided
    assert {seed for *_, seed in trained} == set(range(1, 9))
    output = capsys.readouterr().out
    assert [f"seeds={n}, about" in output for n in (3, 5, 8)] == [True] * 3
    assert "no more seeds or η̃ would settle it" in output


def test_an_edge_asks_for_the_cells_beyond(budget):
    decided, trained = budget(lambda m, e, r: clear(m, e + 4, r), *FIG01, "settle=C4")  # best at 2^-13
    assert decided
    # A better best of small m would not turn it, one of m = 32 might.
    assert {(m, e) for m, e, _ in trained if e < -12} == {(32, -13), (32, -14)}


def test_claims_on_several_figures_are_settled_the_cheapest_first(budget, capsys):
    words = ["figure=fig01,fig02", "scale=smoke", "settle=C4"]
    budget(clear, *words)
    output = capsys.readouterr().out
    first, second = (output.index(f"training python src/train.py -m figure={name}") for name in ("fig02", "fig01"))
    assert first < second


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["settle=C99", *FIG01], "settle=C99: is no claim"),
        (["settle=C6", *FIG01], "settle=C6: rests on other figures: figure=fig05"),
        (["settle=C4", "batch_size=8"], "goes with figure="),
        (["settle=C4", "figure=fig01", "scale=smoke,reduced"], "one scale="),
        (["hours=0", *FIG01], "hours=0: must be a number in"),
        (["hours=soon", *FIG01], "hours=soon"),
    ],
)
def test_what_cannot_be_settled_is_refused(budget, words, message):
    with pytest.raises(ConfigError, match=message):
        budget(clear, *words)


def test_hours_end_it_and_the_same_command_goes_on(budget, capsys):
    decided, some = budget(clear, *FIG01, "settle=C4", "hours=1", spent_after=5)
    assert not decided
    assert len(some) == 5
    assert "the hours are spent" in capsys.readouterr().out
    decided, rest = budget(clear, *FIG01, "settle=C4")
    assert decided
    assert not set(some) & set(rest)
    assert len(some) + len(rest) == 63


OWN = ["data=digits", "batch_size=2,8,32", "base_lr=search", "seeds=3", "hours=1", "epochs=1"]


def test_a_table_of_ones_own_is_searched_and_goes_on_while_its_answer_is_open(budget, capsys):
    decided, trained = budget(clear, *OWN)
    assert decided
    assert {seed for *_, seed in trained} == {1, 2, 3}
    assert {m: sorted({e for size, e, _ in trained if size == m}) for m in (2, 8)}[2][0] >= -12
    assert "an answer" in capsys.readouterr().out


@pytest.mark.long
def test_a_tie_of_ones_own_goes_to_the_last_look(budget, capsys):
    decided, trained = budget(lambda m, e, r: clear(8, e, r, noise=2.0), *OWN)
    assert decided  # every point has a result
    assert {seed for *_, seed in trained} == set(range(1, 9))
    assert "on to seeds=5" in capsys.readouterr().out


def test_without_a_look_to_go_to_hours_bound_a_grid(budget):
    words = [word for word in OWN if not word.startswith(("seeds", "base_lr"))]
    assert budget(clear, *words, "base_lr=1/512,1/256", "seed=0,1")[0]


def test_the_clock_interrupts_when_its_hours_are_spent():
    clock = Clock(0.1 / 3600)
    with pytest.raises(KeyboardInterrupt), clock.running():
        time.sleep(60)
    assert clock.spent
    with Clock(None).running():
        pass


def test_an_interrupt_before_the_hours_are_spent_is_the_users(monkeypatch):
    clock = Clock(1.0)
    assert not clock.spent
    with clock.running():
        pass
    monkeypatch.setattr(clock, "seconds", 0.0)
    assert clock.spent
    assert not Clock(None).spent


@pytest.mark.parametrize("word", ["seeds=3", "settle=C4", "hours=2"])
def test_one_run_takes_none_of_this(word):
    with pytest.raises(SystemExit, match=f"error: {word.partition('=')[0]}=.*: is of python src/train.py -m"):
        main(compose(["data=digits", word]))
