"""The process that uploads: a run's trouble ends with it, whatever wandb raises, and is said once."""

import json
from pathlib import Path

import pytest

from smallbatch.tracking import upload
from smallbatch.tracking.place import Place
from smallbatch.tracking.upload import AGAIN, BEGINS, ENDS, EPOCH

PLACE = Place("offline", None, "p", None, (), None, Path())
A = [(BEGINS, "a"), (EPOCH, "a"), (ENDS, "a")]
B = [(BEGINS, "b"), (EPOCH, "b"), (ENDS, "b")]


@pytest.fixture
def happens(tmp_path, monkeypatch, capsys):
    """Lines for runs by name, and what their pages raise → what happened to the pages, and what was said."""

    def play(lines, name="", where="", error=None):
        done = []

        class FakePage:
            def __init__(self, run, path, place):
                self.name, self.path = path.name, path

            def do(self, what, *values):
                done.append((self.name, what, *values))
                if (self.name, what) == (name, where):
                    raise error

            def open(self, afresh):
                self.do("open", afresh)

            def add(self, rows):
                self.do("add", len(rows))

            def close(self, record):
                self.do("close")

        monkeypatch.setattr(upload, "Page", FakePage)
        monkeypatch.setattr(upload.Run, "from_dict", lambda plain: None)
        upload.say.cache_clear()
        for folder in {folder for _, folder in lines}:
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "config.json").write_text("{}")
            (tmp_path / folder / "epochs.csv").write_text("epoch,updates,images\n1,1,1\n")
        upload.run(PLACE, [json.dumps([what, str(tmp_path / folder)]) for what, folder in lines])
        return done, capsys.readouterr().out.splitlines()

    return play


def test_a_run_is_opened_filled_and_closed_and_so_is_the_next_one(happens):
    a = [("a", "open", True), ("a", "add", 1), ("a", "close")]
    assert happens([*A, (AGAIN, "b"), (ENDS, "b")]) == ([*a, ("b", "open", False), ("b", "close")], [])


def test_what_is_open_is_closed_when_the_next_one_begins_but_not_when_the_other_process_was_killed(happens):
    assert happens([A[0], B[0]]) == ([("a", "open", True), ("a", "close"), ("b", "open", True)], [])


@pytest.mark.parametrize(
    "error", [SystemExit(3), RuntimeError("SystemExit: 3\nand more"), KeyboardInterrupt("SystemExit: 3")]
)
@pytest.mark.parametrize("where", ["open", "add", "close"])
def test_a_run_s_trouble_is_one_line_and_ends_with_it(happens, error, where):
    done, said = happens([*A, *B], "a", where, error)
    assert done[-3:] == [("b", "open", True), ("b", "add", 1), ("b", "close")]
    assert said == ["W&B: SystemExit: 3; training is not affected. What is missing there: python src/publish.py"]


def test_a_page_that_did_not_open_is_tried_again_while_its_run_trains(happens, monkeypatch):
    busy = ("a", "open", RuntimeError("busy"))
    assert happens(A, *busy)[0] == [("a", "open", True)]
    monkeypatch.setattr(upload, "RETRY", 0.0)
    assert happens(A, *busy)[0] == [("a", "open", True)] * 3
