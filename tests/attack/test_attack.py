"""The attack finds nothing, and counts what it would find: `make attack` does more of it."""

from collections import Counter

import damage
import kills
import lines
import pytest

from smallbatch.training import fit

pytestmark = pytest.mark.trains


def test_damage_is_refused_and_counted_where_it_is_not(tmp_path, monkeypatch, capsys):
    attacked = {}
    for guard in (True, False):
        if not guard:
            monkeypatch.setattr(fit, "checksum_fits", lambda file: True)
        attacked[guard] = damage.attack(tmp_path / str(guard), 130, 1, print)
    assert attacked[True] == Counter()
    assert attacked[False]["silent"] > 0
    assert capsys.readouterr().out.count("silent: a damaged checkpoint") == attacked[False]["silent"]


@pytest.mark.long
def test_wrong_lines_are_refused(tmp_path):
    assert lines.attack(tmp_path, 12, 1, print) == Counter()


@pytest.mark.long
def test_a_line_that_is_right_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_no_choice", lambda dice: ["seed=1"])
    for name in ("_out_of_range", "_unknown", "_of_no_type"):
        monkeypatch.setattr(lines, name, lines._no_choice)
    monkeypatch.setattr(lines, "COMMANDS", ("plan.py",))
    assert lines.attack(tmp_path, 2, 1, print) == {"silent": 2}


def test_what_is_lost_or_changed_is_counted():
    assert kills._lost({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"3"}) == ["lost: b"]
    assert kills._lost({"a": b"1"}, {}) == ["lost: a"]
