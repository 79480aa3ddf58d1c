"""The learning rate's factor and the score, against definitions in exact fractions."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbatch.config import Schedule
from smallbatch.training.schedule import factor
from smallbatch.training.score import score

STEPS = Schedule("steps", [0.5, 0.75], 0.1, warmup=0.0, warmup_start=1 / 32)
exactly = {"rel": 1e-15, "abs": 0}


@given(st.integers(1, 10**6), st.data())
def test_steps_drop_tenfold_at_half_and_three_quarters_of_all_updates(total, data):
    update = data.draw(st.integers(0, total - 1))
    share = Fraction(update, total)
    expected = 1 if share < Fraction(1, 2) else 0.1 if share < Fraction(3, 4) else 0.01
    assert factor(STEPS, update, total) == pytest.approx(expected, **exactly)


def test_steps_of_an_odd_total_drop_at_the_first_update_behind_the_share():
    assert [factor(STEPS, u, 7) for u in range(7)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01], **exactly)


@pytest.mark.parametrize("share", ["1/3", "2/3", "8/9", "11/20", "7/10", "9/10"])
def test_a_drop_at_a_whole_update_falls_on_that_update(share):
    share = Fraction(share)
    for total in range(share.denominator, 100 * share.denominator, share.denominator):
        schedule, at = replace(STEPS, drops=[float(share)]), int(share * total)
        assert (factor(schedule, at - 1, total), factor(schedule, at, total)) == (1, 0.1), total


@pytest.mark.parametrize("total", [200, 1000, 12345])
def test_warmup_rises_linearly_from_a_32nd_over_the_first_twentieth_then_the_usual_steps_follow(total):
    schedule = replace(STEPS, warmup=0.05)
    for update in range(total):
        share = Fraction(update, total)
        if share < Fraction(1, 20):
            expected = float(Fraction(1, 32) + Fraction(31, 32) * share * 20)
        else:
            expected = factor(STEPS, update, total)
        assert factor(schedule, update, total) == pytest.approx(expected, rel=1e-14), update


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_warmup_precedes_every_schedule(kind):
    plain = replace(STEPS, kind=kind)
    warm = replace(plain, warmup=0.05)
    assert factor(warm, 0, 1000) == 1 / 32
    assert factor(warm, 25, 1000) == pytest.approx((1 / 32 + 1) / 2, **exactly)
    assert all(factor(warm, u, 1000) == factor(plain, u, 1000) for u in range(50, 1000))


def test_cosine_falls_from_one_through_a_half_to_zero():
    cosine = replace(STEPS, kind="cosine")
    factors = [factor(cosine, u, 1000) for u in range(1000)]
    assert factors[0] == 1
    assert factors[500] == pytest.approx(0.5, rel=1e-15)
    assert 0 < factors[-1] < 1e-5
    assert factor(cosine, 1000, 1000) == 0
    assert all(a > b for a, b in pairwise(factors))
    assert factors[250] == pytest.approx((1 + math.sqrt(0.5)) / 2, rel=1e-15)


def test_constant_stays_at_one():
    assert {factor(replace(STEPS, kind="constant"), u, 99) for u in range(99)} == {1.0}


@pytest.mark.parametrize(
    ("epochs", "last"), [(1, 1), (3, 1), (7, 1), (8, 2), (12, 3), (16, 4), (19, 4), (20, 5), (82, 5), (164, 5)]
)
def test_score_is_the_median_of_the_last_epochs(epochs, last):
    accuracies = [(7 * i % epochs) / epochs for i in range(epochs)]
    ordered = sorted(accuracies[-last:])
    middle = (ordered[(last - 1) // 2] + ordered[last // 2]) / 2
    assert score(accuracies, epochs, chance=0.1) == middle


@given(st.integers(1, 200))
def test_the_scored_epochs_lie_behind_the_last_drop(epochs):
    """Epochs that end behind 75 % of training have accuracy 1, the others 0 (with one epoch, its end)."""
    accuracies = [float(4 * (i + 1) > 3 * epochs) for i in range(epochs)]
    assert score(accuracies, epochs, chance=0.1) == 1


def test_epochs_that_a_diverged_run_never_reached_count_as_chance():
    assert score([0.9] * 8, 20, chance=0.1) == 0.1
    assert score([0.9] * 17, 20, chance=0.1) == 0.1  # 2 of the last 5
    assert score([0.9] * 18, 20, chance=0.1) == 0.9  # 3 of the last 5
    assert score([], 1, chance=0.25) == 0.25
