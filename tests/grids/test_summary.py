"""What a grid that has ended says to try next."""

import pytest

from smallbatch.grids.summary import next_try

LOW, MIDDLE, HIGH = 2.0**-12, 2.0**-11, 2.0**-10
NOTHING: list[str] = []


def scores(low: float, middle: float, high: float, m: int = 8, seeds: int = 3):
    return {(LOW, m): [low] * seeds, (MIDDLE, m): [middle] * seeds, (HIGH, m): [high] * seeds}


@pytest.mark.parametrize(
    ("cells", "diverged", "said"),
    [
        (scores(0.7, 0.9, 0.8), (), NOTHING),
        (scores(0.9, 0.8, 0.7), (), ["next: the best η̃ of m=8 is the lowest; add base_lr=1/8192 to those tried"]),
        (scores(0.7, 0.8, 0.9), (), ["next: the best η̃ of m=8 is the highest; add base_lr=1/512 to those tried"]),
        (scores(0.9, 0.9, 0.8), (), NOTHING),  # as good inside as at the edge
        (scores(0.9, 0.9, 0.9), (), NOTHING),
        (
            scores(0.1, 0.1, 0.1),
            [(LOW, 8), (MIDDLE, 8), (HIGH, 8)],
            ["next: the best η̃ of m=8 is the lowest; add base_lr=1/8192 to those tried"],
        ),
        (scores(0.7, 0.8, 0.1), [(HIGH, 8)], NOTHING),  # what diverged is beyond the best
        (
            scores(0.7, 0.8, 0.9) | scores(0.9, 0.8, 0.1, m=32),
            [(HIGH, 32)],
            [
                "next: the best η̃ of m=32 is the lowest and of m=8 is the highest; "
                "add base_lr=1/8192,1/512 to those tried"
            ],
        ),
        (
            {(LOW, 8): [0.9]},
            (),
            [
                "next: the best η̃ of m=8 is the lowest and of m=8 is the highest; "
                "add base_lr=1/8192,1/2048 to those tried"
            ],
        ),
        (
            scores(0.7, 0.9, 0.8, seeds=1),
            (),
            ["next: one seed or two tell little of what differs by chance; add seeds=3"],
        ),
    ],
)
def test_what_would_tell_more(cells, diverged, said):
    assert next_try(cells, diverged) == said
