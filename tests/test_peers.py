"""What the benchmark of peers compares is the same work."""

import peers_loop
import pytest

import smallbatch

pytestmark = pytest.mark.trains


@pytest.mark.parametrize(("m", "rate"), [("4", "2**-5"), ("32", "2**-6")])
def test_the_hand_written_loop_gives_the_same_accuracy(root, tmp_path, m, rate):
    words = ["model=resnet8", "norm=batch", "data=digits16", "data.augment=true", "data.train_size=640", "epochs=2"]
    words += [f"data.root={root}", "schedule=constant", "seed=1"]
    grid = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    _, _, accuracy, *_ = peers_loop.train(words, (m, rate))
    record = smallbatch.train(store=tmp_path, batch_size=m, base_lr=rate, **{"machine.accelerator": "cpu"}, **grid)
    assert accuracy == record.rows[-1]["test_accuracy"]
    assert accuracy > 0.2  # twice chance: it learns, so a wrong step would show
