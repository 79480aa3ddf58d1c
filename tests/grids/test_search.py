"""A search finds what the full grid finds, asks for no more than it needs, and is the same however often it is cut."""

import gzip
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbatch import store
from smallbatch.compose import compose
from smallbatch.ended import Ended
from smallbatch.errors import ConfigError
from smallbatch.figures.collect import collect
from smallbatch.grids.best_rates import best_rates
from smallbatch.grids.expand import expand
from smallbatch.grids.search import Bounds, climb
from smallbatch.grids.sweep import sweep
from smallbatch.run import make_run
from smallbatch.store import Record

CHANCE = {"chance": 0.1, "test_images": 5000, "train_images": 64}


def result(score: float, status: str = "finished") -> dict:
    return CHANCE | {"score": score, "status": status, "seconds": 1.0}


def hill(best: int, edge: int, noise: dict[tuple[int, int], float], seeds: int = 3):
    """A setting whose accuracy falls on both sides of a best octave, and is chance above an edge."""

    def look(octave: int) -> list[dict]:
        if octave > edge:
            return [result(0.1, "diverged")] * seeds
        fall = 0.03 * abs(octave - best)
        return [result(max(0.1, 0.7 - fall + noise.get((octave, seed), 0.0))) for seed in range(seeds)]

    return look


@st.composite
def worlds(draw):
    best = draw(st.integers(-16, -4))
    edge = best + draw(st.integers(0, 3))
    noise = draw(st.dictionaries(st.tuples(st.integers(-20, 0), st.integers(0, 2)), st.floats(-0.04, 0.04)))
    return hill(best, edge, noise), draw(st.integers(-18, -2))


@given(worlds())
def test_the_best_of_every_choice_that_leaves_a_seed_out_has_both_its_neighbours(world):
    look, start = world
    bounds = Bounds(points=30)
    path = climb(look, start, bounds)
    assert path.missing == []
    assert len(path.asked) == len(set(path.asked))
    scores = {octave: [r["score"] for r in look(octave)] for octave in path.asked}
    for kept in [(0, 1, 2), (1, 2), (0, 2), (0, 1)]:
        means = {octave: np.mean([s[i] for i in kept]) for octave, s in scores.items()}
        top = min(octave for octave in means if means[octave] >= max(means.values()) - 1e-12)
        for side in (top - 1, top + 1):
            assert side in scores or not bounds.lowest <= side <= bounds.highest
    reliable = [octave for octave, s in scores.items() if min(s) >= 0.1 + (np.mean(scores[path.best]) - 0.1) / 2]
    assert max(reliable) + 1 in scores or max(reliable) == bounds.highest


@given(worlds())
def test_it_is_played_again_from_what_has_ended_and_asks_for_the_same(world):
    look, start = world
    whole = climb(look, start, Bounds())
    known: dict[int, list[dict]] = {}
    while (path := climb(known.get, start, Bounds())).missing:
        octave = path.missing[-1]
        known[octave] = look(octave)
    assert path == whole
    assert set(known) == set(whole.asked)


@pytest.mark.parametrize("start", [-14, -10, -6])
def test_on_a_smooth_hill_it_is_the_top_in_a_few_steps(start):
    path = climb(hill(-9, -7, {}), start, Bounds())
    assert path.best == -9
    assert path.stopped == ""
    assert sorted(path.asked) == list(range(min(start - 1, -10), -5))  # each once, up to the first that fails


def test_where_nothing_is_learnt_it_goes_down_and_up_unless_the_loss_is_not_finite():
    lost = climb(lambda octave: [result(0.1, "diverged")], -10, Bounds(points=5))
    assert lost.asked == [-10, -11, -12, -13, -14]
    assert (lost.best, lost.stopped) == (None, "search.points")
    flat = climb(lambda octave: [result(0.1)], -10, Bounds(lowest=-12, highest=-9))
    assert sorted(flat.asked) == [-12, -11, -10, -9]
    assert flat.best is None


def test_bounds_end_it_and_say_so():
    look = hill(-9, 0, {})
    assert climb(look, -12, Bounds(highest=-10, lowest=-14)).stopped == "search.highest"
    assert climb(look, -7, Bounds(highest=-2, lowest=-8)).stopped == "search.lowest"
    few = climb(look, -14, Bounds(points=4))
    assert len(few.asked) == 4
    assert few.stopped == "search.points"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.lowest=0.001"], "search.lowest=0.001: must be a power of two"),
        (["search.lowest=2**-8"], "search: search.start"),
        (["search.points=0"], "search.points=0: must be a whole number in [1, 100]"),
        (["search.start=2**-30"], "search: search.start"),
    ],
)
def test_bounds_that_cannot_be_are_refused(words, message):
    with pytest.raises(ConfigError) as refused:
        Bounds.of(compose(words).search)
    assert str(refused.value).startswith(message)


# --- grids


BESTS = {8: -9, 16: -9, 32: -11}


@pytest.fixture
def words(tmp_path):
    return [
        *("batch_size=32,8,16", "seed=1,2", "base_lr=search", "data=digits16", "model=resnet8", "epochs=1"),
        *(f"store={tmp_path / 'runs'}", f"data.root={tmp_path / 'data'}"),
    ]


def written(jobs) -> None:
    """What a launcher does, without the training."""
    for job in jobs:
        cfg = compose(list(job))
        run = make_run(cfg)
        octave = int(np.log2(run.base_lr))
        look = hill(
            BESTS[run.batch_size], BESTS[run.batch_size] + 1, {(octave, seed): seed / 1000 for seed in range(3)}
        )
        path = store.folder(Path(cfg.store), run)
        path.mkdir(parents=True, exist_ok=True)
        store.write_result(path, run, [], look(octave)[run.seed])


def swept(words, launch=written, *more) -> int:
    cfg = compose([word for word in words if word.startswith(("store=", "data.root="))] + list(more))
    try:
        sweep([*words, *more], launch, cfg)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def kinds(tmp_path):
    found: dict[int, set[int]] = {}
    for record in store.ended(tmp_path / "runs").values():
        found.setdefault(record.run.batch_size, set()).add(int(np.log2(record.run.base_lr)))
    return found


def test_each_batch_size_is_searched_from_the_best_of_the_smaller(words, tmp_path, capsys):
    launches: list[list] = []
    assert swept(words, lambda jobs: launches.append(list(jobs)) or written(jobs)) == 0
    assert kinds(tmp_path) == {8: {-11, -10, -9, -8, -7}, 16: {-10, -9, -8, -7}, 32: {-12, -11, -10, -9}}
    assert sum(map(len, launches)) == 26  # each once
    assert {len(jobs) % 2 for jobs in launches} == {0}  # all seeds of an η̃ together
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("; more of the search of 3 batch sizes then")
    assert "search: resnet8 digits16 m=32 η̃=2^-10, 1 batch size to go" in lines
    assert lines[-1] == "20 finished, 6 diverged"
    assert swept(words, lambda jobs: pytest.fail("nothing is trained twice")) == 0


def test_cut_five_times_at_random_it_trains_the_same_runs(words, tmp_path):
    assert swept([*words[:-2], f"store={tmp_path / 'whole'}", words[-1]]) == 0
    chance, trained = random.Random(7), []

    def cut(jobs):
        for job in jobs:
            if len(trained) in stops:
                stops.remove(len(trained))
                raise KeyboardInterrupt
            trained.append(job)
            written([job])

    stops = chance.sample(range(1, 25), 5)
    codes = [swept(words, cut) for _ in range(6)]
    assert codes == [130] * 5 + [0]
    whole, pieces = (store.ended(tmp_path / name) for name in ("whole", "runs"))
    assert set(pieces) == set(whole)
    assert len(trained) == len(pieces)


def test_a_point_that_fails_ends_it_with_exit_status_1_and_it_goes_on_from_there(words, tmp_path, capsys):
    assert swept(words, lambda jobs: written(jobs[1:])) == 1
    assert "1 without a result" in capsys.readouterr().out
    assert swept(words) == 0


def test_overwritten_it_trains_each_once_more(words, tmp_path):
    assert swept(words) == 0
    again: list = []
    assert swept(words, lambda jobs: again.extend(jobs) or written(jobs), "overwrite=true") == 0
    assert len(again) == len(store.ended(tmp_path / "runs"))


def test_a_figure_that_was_searched_has_all_that_is_there_and_lacks_what_is_next(words, tmp_path):
    figure = ["figure=fig08", "scale=smoke", "base_lr=search", "seed=1,2", "batch_size=8,16"]
    figure += ["model=resnet8", "data=digits16", "epochs=1", f"data.root={tmp_path / 'data'}"]
    empty = Ended({})
    first = expand(figure, look=empty.look)
    assert [point.run.base_lr for point in first.points] == [2**-10] * 2
    assert first.sizes_open == 2
    records: dict[str, Record] = {}
    while (grid := expand(figure, look=Ended(records).look)).open:
        for point in grid.points:
            octave = int(np.log2(point.run.base_lr))
            look = hill(-9, -8, {(octave, seed): seed / 1000 for seed in range(3)})
            records.setdefault(point.run.key, Record(point.run, [], look(octave)[point.run.seed]))
    ended = Ended(records)
    extra = replace(grid.points[0].run, base_lr=2.0**-15)
    ended = Ended(records | {extra.key: Record(extra, [], result(0.2))})
    runs = collect("fig08", "smoke", figure[2:], ended)
    assert set(runs.frame["key"]) == set(ended.records)
    assert runs.missing == []
    rates = best_rates(ended, ended.describe)
    assert rates([*figure[:2], *figure[5:]], [8, 16]) == {8: 2.0**-9, 16: 2.0**-9}


def test_search_stands_alone():
    with pytest.raises(ConfigError, match=r"base_lr=search: stands alone"):
        expand(["base_lr=search,1/512"])


REFERENCE = Path(__file__).parents[2] / "outputs" / "reference"


@pytest.mark.parametrize(("start", "asked"), [(-9, 21), (-10, 22), (-12, 24)])
def test_on_the_real_runs_of_figure_1_it_finds_every_best_of_the_full_grid(start, asked):
    files = [REFERENCE / "fig01-pilot" / "runs.jsonl", REFERENCE / "pool" / "runs.jsonl.gz"]
    texts = [gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes() for file in files]
    ended = Ended({record.run.key: record for text in texts for record in store.parse_export(text.decode())})
    pilot = ["figure=fig01", "scale=reduced", "seed=0"]
    octaves = ",".join(f"2**{octave}" for octave in range(-15, -5))
    grid = expand([*pilot, f"base_lr={octaves}"], ended.describe)
    search = expand([*pilot, f"search.start=2**{start}"], ended.describe, look=ended.look)
    assert (len(grid.points), len(search.points), search.open) == (50, asked, [])

    def bests(points):
        found: dict[int, tuple[float, float]] = {}
        for run in (point.run for point in points):
            scored = (ended.look(run)["score"], run.base_lr)
            found[run.batch_size] = max(found.get(run.batch_size, scored), scored)
        return {m: int(np.log2(rate)) for m, (_, rate) in found.items()}

    assert bests(search.points) == bests(grid.points) == {2: -9, 8: -9, 32: -10, 128: -12, 512: -15}
