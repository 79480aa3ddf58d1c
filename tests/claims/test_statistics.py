"""Selection, pooled variance and intervals: against other formulations, and their coverage against a known truth."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from synthetic import CHANCE, figure, figure_runs

from smallbatch.claims import statistics
from smallbatch.claims.best import best, fixed, highest, lowest, near, tuned
from smallbatch.claims.cells import Cells, Edge, Undecided, read, reliable
from smallbatch.claims.statistics import (
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    all_of,
    any_of,
    interval,
    mean,
    noise,
)

pytestmark = pytest.mark.trains


def cells_of(truth, noise, seeds, random, name="made"):
    """A grid of (m, η̃) with these true accuracies, an effect of the seed, and noise; all of it converged."""
    sizes, rates = truth.shape
    m, rate = np.tile(2 ** np.arange(1, sizes + 1), rates), np.repeat(2.0 ** np.arange(-rates, 0), sizes)
    score = truth.T.reshape(-1, 1) + noise * random.normal(size=(m.size, seeds)) + 0.5 * random.normal(size=seeds)
    key = np.arange(score.size).reshape(score.shape).astype(str)
    yes = np.ones(m.size, bool)
    return Cells(name, tuple(range(seeds)), m, rate, m, 1000 // m, score, score - 3, key, CHANCE, 10_000, yes, yes)


@given(st.integers(2, 7), st.integers(2, 5), st.integers(0, 10**6))
def test_the_two_way_variance_is_that_of_a_least_squares_fit_of_cells_and_seeds(count, seeds, seed):
    cells = cells_of(np.full((1, count), 50.0), 0.2, seeds, np.random.default_rng(seed))
    by_cell, by_seed = np.repeat(np.eye(count), seeds, axis=0), np.tile(np.eye(seeds), (count, 1))
    design = np.hstack([by_cell, by_seed])
    score = cells.score.ravel()
    rest = score - design @ np.linalg.lstsq(design, score, rcond=None)[0]
    df = score.size - np.linalg.matrix_rank(design)
    assert noise(cells, 0, paired=True)[:2] == (pytest.approx((rest**2).sum() / df), pytest.approx(df))


@given(st.integers(1, 7), st.integers(2, 5), st.integers(0, 10**6))
def test_the_one_way_variance_is_the_mean_of_the_cells_own(count, seeds, seed):
    cells = cells_of(np.full((1, count), 50.0), 0.2, seeds, np.random.default_rng(seed))
    expected = pytest.approx(cells.score.var(axis=1, ddof=1).mean())
    assert noise(cells, 0, paired=False)[:2] == (expected, pytest.approx(count * (seeds - 1)))


def test_a_cell_near_an_edge_scatters_more_and_counts_for_itself_alone():
    random = np.random.default_rng(3)
    quiet = cells_of(np.array([[72.0, 73, 73, 60], [71.0, 72, 72, 60]]), 0.4, 5, random)
    edge = quiet.rate == quiet.rate.max()
    score = quiet.score + 8 * edge[:, None] * random.normal(size=quiet.score.shape)
    cells = replace(quiet, score=score)
    top, last = highest(cells, cells.m == 2), int(np.flatnonzero(edge & (cells.m == 2))[0])
    assert noise(cells, top, paired=False).variance == pytest.approx(cells.score[~edge].var(axis=1, ddof=1).mean())
    assert noise(cells, last, paired=False).variance == pytest.approx(cells.score[last].var(ddof=1))


def test_with_two_cells_the_paired_interval_is_the_paired_t_interval():
    cells = cells_of(np.array([[80.0], [79.0]]), 1.0, 4, np.random.default_rng(1))
    effect, low, high, df = interval(tuned(cells, 2) - tuned(cells, 4))
    expected = stats.ttest_rel(cells.score[0], cells.score[1]).confidence_interval(0.98)
    assert (low, high, df) == (pytest.approx(expected.low), pytest.approx(expected.high), 3)
    assert effect == pytest.approx((low + high) / 2)


def test_an_accuracy_alone_keeps_the_seeds_in_its_variance():
    cells = cells_of(np.array([[80.0]]), 1.0, 4, np.random.default_rng(1))
    expected = stats.ttest_1samp(cells.score[0], 0).confidence_interval(0.98)
    assert interval(tuned(cells, 2))[1:3] == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_a_cell_that_one_seed_does_not_train_gives_the_interval_of_its_own_values():
    cells = cells_of(np.array([[80.0], [79.0], [60.0]]), 0.1, 3, np.random.default_rng(1))
    score = cells.score.copy()
    score[2, 0] = CHANCE
    cells = replace(cells, score=score, converged=np.array([True, True, False]))
    expected = stats.ttest_rel(score[0], score[2]).confidence_interval(0.98)
    assert interval(tuned(cells, 2) - tuned(cells, 8))[1:] == (
        pytest.approx(expected.low),
        pytest.approx(expected.high),
        2,
    )


@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 10**6))
def test_the_effect_is_the_difference_of_the_maxima_that_the_figure_shows(count, seeds, seed):
    cells = cells_of(np.full((count, 3), 50.0), 1.0, seeds, np.random.default_rng(seed))
    means = cells.score.mean(axis=1)
    expected = means[cells.m == 2].max() - means[cells.m > 2].max()
    assert interval(tuned(cells, 2) - tuned(cells, *cells.sizes[1:]))[0] == pytest.approx(expected)


def test_each_end_takes_the_quantile_of_its_own_ties():
    # Of 4 and 3 cells that tie: textbook Bonferroni, by hand.
    random = np.random.default_rng(5)
    cells = cells_of(np.array([[80.0] * 4, [79.9] * 4]), 0.1, 5, random)
    few = (cells.m == 4) & (cells.rate > cells.rate.min())
    effect, low, high, df = interval(tuned(cells, 2) - best(cells, few))
    assert [near(cells, np.flatnonzero(mask)).size for mask in (cells.m == 2, few)] == [4, 3]
    rest = cells.score - cells.score.mean(axis=1, keepdims=True)
    rest -= rest.mean(axis=0)
    assert df == pytest.approx(7 * 4)
    error = np.sqrt((rest**2).sum() / df * 2 / 5)
    assert effect - low == pytest.approx(stats.t.ppf(1 - 0.01 / 4, df) * error)
    assert high - effect == pytest.approx(stats.t.ppf(1 - 0.01 / 3, df) * error)


def test_the_lowest_of_some_cells_is_too_low_by_chance():
    cells = cells_of(np.full((4, 1), 80.0), 0.1, 5, np.random.default_rng(5))
    effect, low, high, _ = interval(lowest(cells, range(4)))
    assert effect == cells.score.mean(axis=1).min()
    assert high - effect > effect - low


def test_a_choice_less_itself_is_nothing_and_less_one_of_its_cells_may_be_more():
    cells = cells_of(np.full((1, 5), 80.0), 0.4, 3, np.random.default_rng(5))
    assert interval(tuned(cells, 2) - tuned(cells, 2))[:3] == (0, 0, 0)
    row = highest(cells, cells.m == 2)
    effect, low, high, _ = interval(tuned(cells, 2) - fixed(cells, row))
    assert (effect, low < 0 < high) == (0, True)


def test_ties_go_to_the_smaller_rate_and_then_to_the_smaller_batch_whatever_the_order_of_rows():
    runs = figure_runs("fig01", lambda m, e, b: 80.0, sizes=[4, 2], rates=[2.0**-3, 2.0**-5, 2.0**-4], noise=0.0)
    (cells,) = read(runs)
    row = highest(cells, cells.rate < 2.0**-3)
    assert (cells.rate[row], cells.m[row]) == (2.0**-5, 2)


REPETITIONS = 400
LEAST = 0.98 - 0.021  # a coverage of 0.98 is found within three standard errors


@pytest.mark.parametrize(("curvature", "seeds"), [(0.05, 3), (0.3, 2), (0.3, 5), (1.0, 3)])
def test_intervals_at_the_best_rate_cover_the_true_difference(curvature, seeds):
    # 5 m × 7 η̃; the optimum moves with m; from many cells that tie to one clear best.
    top, optimum = np.array([80, 80.3, 79.5, 78, 76]), np.array([3, 3, 3, 2, 2])
    truth = top[:, None] - curvature * (np.arange(7) - optimum[:, None]) ** 2
    random = np.random.default_rng(7)
    covered = np.zeros(3)
    for _ in range(REPETITIONS):
        cells = cells_of(truth, 0.4, seeds, random)
        single = tuned(cells, 2) - tuned(cells, 16), 2.0
        groups = tuned(cells, 2, 4) - tuned(cells, 8, 16, 32), 0.8
        average = tuned(cells, 4) - mean([tuned(cells, 16), tuned(cells, 32)]), 3.3
        for i, (quantity, difference) in enumerate((single, groups, average)):
            _, low, high, _ = interval(quantity)
            covered[i] += low <= difference <= high
    assert all(covered / REPETITIONS >= LEAST), covered


def coverage(make, quantities, seed):
    """The share of repetitions in which each interval holds its true value."""
    random = np.random.default_rng(seed)
    hits = np.zeros(len(quantities))
    for _ in range(REPETITIONS):
        cells = make(random)
        for i, (quantity, truth) in enumerate(quantities):
            _, low, high, _ = interval(quantity(*cells))
            hits[i] += low <= truth <= high
    return hits / REPETITIONS


FLAT = np.tile([80.0, 79, 78, 76, 70], (5, 1))  # 5 m with the same clear optimum of 5 η̃


def lucky(seed_effect):
    """Two figures, in each of which a seed has a luck of its own."""

    def make(random):
        figures = [cells_of(FLAT, 0.4, 3, random) for _ in range(2)]
        return [replace(c, score=c.score + seed_effect * random.normal(size=3)) for c in figures]

    return make


@pytest.mark.parametrize("seed_effect", [0.0, 0.4, 0.8])
def test_a_seeds_luck_in_one_figure_is_in_the_intervals_between_figures(seed_effect):
    sizes = (2, 4, 8)

    def one(a, b):
        return tuned(a, 2) - tuned(b, 2)

    def average(a, b):
        return mean([tuned(a, m) - tuned(b, m) for m in sizes])

    found = coverage(lucky(seed_effect), [(one, 0.0), (average, 0.0)], 11)
    assert all(found >= LEAST), found


@pytest.mark.parametrize("louder", [1, 4])
def test_an_m_whose_runs_scatter_more_has_wider_intervals(louder):
    def make(random):
        cells = cells_of(FLAT, 0.4, 3, random)
        extra = np.sqrt(louder**2 - 1) * 0.4 * random.normal(size=cells.score.shape) * (cells.m == 32)[:, None]
        return [replace(cells, score=cells.score + extra)]

    top = FLAT[0].max()
    assert top == 80
    found = coverage(
        make, [(lambda c: tuned(c, 2) - tuned(c, 32), 0.0), (lambda c: tuned(c, 2) - tuned(c, 8), 0.0)], 12
    )
    assert all(found >= LEAST), found
    assert found[1] < 1  # and the quiet ones are not made as wide


def test_without_the_allowance_for_ties_they_would_not_cover():
    def hits(allowed):
        random, found = np.random.default_rng(7), 0
        for _ in range(400):
            cells = cells_of(np.full((2, 20), 80.0), 0.4, 3, random)
            peak = fixed(cells, int(np.flatnonzero(cells.m == 4)[0]))
            best_of_many = tuned(cells, 2)
            if not allowed:
                best_of_many = replace(best_of_many, terms=tuple(replace(t, ties=1) for t in best_of_many.terms))
            _, low, high, _ = interval(best_of_many - peak)
            found += low <= 0 <= high
        return found / 400

    assert hits(allowed=True) >= LEAST
    assert hits(allowed=False) < LEAST


@pytest.mark.parametrize(("share", "expected"), [(0.25, [1, 1, 0, 0]), (0.5, [1, 0, 0, 0]), (0.75, [1, 0, 0, 0])])
def test_reliable_asks_every_seed(share, expected):
    score = np.array([[90.0, 88], [40, 80], [90, 10], [10, 10]])
    assert list(reliable(score, 10.0, 1000, share)) == [bool(e) for e in expected]


def test_where_nothing_is_learnt_nothing_is_reliable():
    random = np.random.default_rng(0)
    assert not reliable(10 + 1.6 * random.normal(size=(500, 3)), 10.0, 360, 0.25).any()


def ramp(limit):
    return lambda m, e, b: None if e > limit else 80 - abs(e + 4)


@pytest.mark.parametrize(
    ("rates", "limit", "edge"),
    [
        (range(-7, 0), 0, ""),
        (range(-4, 0), 0, "2^-4"),
        (range(-9, -5), 0, "2^-6"),
        (range(-7, 0), -5, ""),
        (range(-3, 0), -4, "no η̃ tried"),
    ],
)
def test_a_best_rate_at_an_edge_is_censored(rates, limit, edge):
    accuracy = ramp(limit)
    rates = [2.0**e for e in rates]
    runs = figure_runs("fig01", lambda m, e, b: accuracy(m, e, b) if m == 2 else 80, sizes=[2, 4], rates=rates)
    (cells,) = read(runs)
    reasons = tuned(cells, 2).may_rise
    assert bool(reasons) == bool(edge)
    assert edge in "".join(reason.text for reason in reasons)
    assert (-tuned(cells, 2)).may_fall == reasons


def test_a_censored_batch_size_censors_its_group_only_if_it_could_catch_up():
    def accuracy(gap):
        return lambda m, e, b: 80 - abs(e + 4) if m == 2 else 80 - gap + e / 10

    for gap, catches_up in ((4, True), (7, False)):
        (cells,) = read(figure_runs("fig01", accuracy(gap), sizes=[2, 64]))
        assert bool(tuned(cells, 2, 64).may_rise) == catches_up
        assert tuned(cells, 64).may_rise


def part(test, effect, half, **censors):
    """The verdict of a comparison on two cells whose interval is effect ± half."""
    reach = half * np.sqrt(3) / stats.t.ppf(0.99, 2)
    score = np.array([50 + effect + reach * np.array([-1, 0, 1]), np.full(3, 50.0)])
    cells = replace(cells_of(np.ones((2, 1)), 0, 3, np.random.default_rng(0)), score=score, rates_given=True)
    quantity = best(cells, cells.m == 2) - best(cells, cells.m == 4)
    result = test("label", replace(quantity, **{name: (Edge("edge"),) for name in censors}))
    assert (result.effect, result.high - result.low) == (pytest.approx(effect), pytest.approx(2 * half))
    assert result.verdict != UNDECIDED or result.reason
    return result.verdict


YES, NO, OPEN = SUPPORTED, REFUTED, UNDECIDED


@pytest.mark.parametrize(
    ("test", "effect", "half", "verdict", "if_it_may_rise", "if_it_may_fall"),
    [
        (statistics.higher, 2, 1, YES, YES, OPEN),
        (statistics.higher, 0.5, 0.4, YES, YES, OPEN),
        (statistics.higher, 0.2, 0.5, NO, OPEN, OPEN),
        (statistics.higher, -2, 1, NO, OPEN, NO),
        (statistics.higher, 1, 2, OPEN, OPEN, OPEN),
        (statistics.leads, 2, 1, YES, YES, OPEN),
        (statistics.leads, 0.2, 0.5, OPEN, OPEN, OPEN),
        (statistics.leads, -2, 1, NO, OPEN, NO),
        (statistics.clearly_higher, 2, 0.5, YES, YES, OPEN),
        (statistics.clearly_higher, 0.5, 0.4, NO, OPEN, NO),
        (statistics.clearly_higher, 1, 0.5, OPEN, OPEN, OPEN),
        (statistics.within_margin, 0.5, 0.4, YES, OPEN, YES),
        (statistics.within_margin, 2, 0.5, NO, NO, OPEN),
        (statistics.within_margin, 1, 0.5, OPEN, OPEN, OPEN),
        (statistics.similar, 0.2, 0.5, YES, OPEN, OPEN),
        (statistics.similar, 2, 0.5, NO, NO, OPEN),
        (statistics.similar, -2, 0.5, NO, OPEN, NO),
        (statistics.similar, 1, 0.5, OPEN, OPEN, OPEN),
    ],
)
def test_three_valued_comparisons(test, effect, half, verdict, if_it_may_rise, if_it_may_fall):
    assert part(test, effect, half) == verdict
    assert part(test, effect, half, may_rise=True) == if_it_may_rise
    assert part(test, effect, half, may_fall=True) == if_it_may_fall


def test_three_valued_and_and_or():
    assert [all_of(v) for v in ([YES, YES], [YES, OPEN], [NO, OPEN], [])] == [YES, OPEN, NO, OPEN]
    assert [any_of(v) for v in ([NO, NO], [NO, OPEN], [YES, OPEN], [])] == [NO, OPEN, YES, OPEN]


def test_only_seeds_that_all_compared_cells_have_are_used():
    fewer, other = figure("fig08", seeds=(2, 3, 7)), figure("fig10", seeds=(7, 1, 2, 3))
    assert [cells.seeds for cells in read(fewer, other)] == [(2, 3, 7), (2, 3, 7)]
    assert [cells.seeds for cells in read(fewer, figure("fig10", seeds=(3, 7)))] == [(3, 7), (3, 7)]
    with pytest.raises(Undecided, match="1 seed from 4 on in the cells of fig08 and fig10"):
        read(fewer, other, first=4)


def test_the_pilot_counts_for_nothing():
    (cells,) = read(figure("fig01", seeds=(0, 1, 2, 3)))
    assert cells.seeds == (1, 2, 3)
    with pytest.raises(Undecided, match="0 seeds from 1 on"):
        read(figure("fig01", seeds=(0,)))


@pytest.mark.parametrize(("there", "used"), [(2, 2), (3, 3), (4, 3), (5, 5), (7, 5), (8, 8), (12, 8)])
def test_seeds_count_from_look_to_look(there, used):
    (cells,) = read(figure("fig01", seeds=range(1, there + 1), sizes=[2, 8]))
    assert cells.seeds == tuple(range(1, used + 1))


def test_a_cell_with_fewer_seeds_is_left_out_unless_it_is_the_best_of_its_m():
    runs = figure("fig01", lambda m, e, b: 80 - abs(e + 4), sizes=[2, 8], seeds=range(1, 6))
    rate, m, seed = (runs.frame[name] for name in ("base_lr", "batch_size", "seed"))

    def without(exponent):
        return replace(runs, frame=runs.frame[~((rate == 2.0**exponent) & (m == 2) & (seed > 3))])

    (cells,) = read(without(-9))
    assert (cells.seeds, cells.row(2, 2.0**-9)) == ((1, 2, 3, 4, 5), None)
    assert cells.row(8, 2.0**-9) is not None
    (cells,) = read(without(-4))
    assert (cells.seeds, cells.row(2, 2.0**-4) is None) == ((1, 2, 3), False)


def test_a_part_says_which_runs_it_rests_on_and_whether_training_shows_it():
    runs = figure_runs("fig01", lambda m, e, b: 80 - m, sizes=[2, 4, 8], rates=[2.0**-5])
    (cells,) = read(runs)
    result = statistics.higher("label", tuned(cells, 2) - tuned(cells, 4, 8))
    assert result.updates == (82 * 25_000, 82 * 25_000)
    assert result.updates_against == (82 * 12_500, 82 * 12_500)
    assert set(result.keys) == {f"fig01-{m}-{2.0**-5}-{m}-{seed}" for m in (2, 4) for seed in (1, 2, 3)}
    assert result.binomial == pytest.approx(100 * (0.78 * 0.22 / 10_000) ** 0.5, rel=0.01)
    assert result.in_training
    same = replace(cells, train=cells.train - cells.train)
    assert statistics.higher("label", tuned(same, 2) - tuned(same, 4)).in_training is False
