"""The table as text: rows of claims, columns of figures, what is open with its command, and one line of what is not."""

import math
from dataclasses import replace

import pytest
from synthetic import figure

from smallbatch.claims import text
from smallbatch.claims.judge import CLAIMS, judge, with_figure

REDUCED = ["fig01", "fig05", "fig06", "fig08", "fig10"]


@pytest.fixture(scope="module")
def rows():
    """Figures 1 and 8 supported, 5 with one seed, 6 incomplete, 10 ended at an edge, others without runs."""
    runs = {name: replace(figure(name), scale="reduced") for name in REDUCED}
    runs["fig05"] = replace(figure("fig05", seeds=(0,)), scale="reduced")
    runs["fig06"] = replace(runs["fig06"], missing=[None] * 3)
    runs["fig10"] = replace(figure("fig10", rates=[2.0**-7, 2.0**-6]), scale="reduced")
    return judge(runs)


def cells(lines):
    """Mark by claim and column of the block of text that has one."""
    start = next(i for i, line in enumerate(lines) if line.startswith("C"))
    table = [line for line in lines if line.startswith("C") and ":" not in line]
    heads = lines[:start]
    found = {}
    for line in table:
        for at in range(text.ID, len(line), text.CELL):
            name = "".join(head[at : at + text.CELL].strip() for head in heads)
            if line[at : at + text.CELL].strip():
                found[line[: text.ID].strip(), name] = line[at : at + text.CELL].strip()
    return found


def test_the_table_has_a_row_a_claim_and_a_column_a_figure(rows, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    found = cells(text.terminal(rows))
    assert found["C1", "fig01"] == found["C4", "fig01"] == found["C7", "fig08"] == "yes"
    assert found["C2", "fig05"] == "seeds"
    assert found["C2", "fig06"] == "·"
    assert found["C9", "fig10/fig08"] == "edge"
    assert not {name for _, name in found} - {*REDUCED, "fig10/fig08", "fig05/fig01", "fig06/fig01", "fig05/fig06"}


@pytest.mark.parametrize("width", [60, 80, 200])
def test_it_fits_and_says_the_same_whatever_the_width(width, rows, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = text.terminal(rows)
    table = lines[: lines.index(next(line for line in lines if line.startswith("yes: supported")))]
    assert max(map(len, table)) <= width
    columns = text.columns(rows)
    blocks = math.ceil(len(columns) / ((width - text.ID) // text.CELL))
    assert table.count("") == blocks
    marks = [v for row in rows for v in row.verdicts if v.column in columns]
    assert sum(len(line.split()) - 1 for line in table if line.startswith("C")) == len(marks)


def test_it_says_how_many_verdicts_may_be_wrong_by_chance(rows):
    decided = sum(v.state in ("supported", "not supported") for row in rows for v in row.verdicts)
    expected = f"Of {decided} decided at most {decided / 20:.2g} would be wrong by chance"
    assert decided > 1
    assert expected in " ".join(text.terminal(rows))
    assert expected in text.markdown(rows)
    assert text.chance([]) == ""


def test_a_row_is_counted_and_a_command_stands_once_beneath_all_that_it_decides(rows):
    lines = text.terminal(rows)
    assert any(line.startswith("C4   supported in 1, 2 not trained: ") for line in lines)
    command = "  train: python src/train.py -m figure=fig05 scale=reduced seeds=3"
    (seeds,) = [i for i, line in enumerate(lines) if line == command]
    assert lines[seeds - 1].startswith("C2, C6 fig05 undecided (seeds): 0 seeds from 1 on in the cells of fig05")
    assert "  train: python src/train.py -m figure=fig06 scale=reduced seeds=3" in lines
    assert any("C2, C6 fig06 not trained (incomplete): fig06 lacks 3 runs" in line for line in lines)
    edge = next(i for i, line in enumerate(lines) if line.startswith("C9 fig10 undecided (edge): "))
    assert lines[edge + 1].startswith("  train: python src/train.py -m figure=fig10 scale=reduced batch_size=")


def test_what_has_no_runs_is_one_line(rows):
    for lines in (text.terminal(rows), text.terminal(with_figure(rows, ["fig08"]))):
        (line,) = [line for line in lines if "no runs" in line]
        assert line == lines[-1]
    names = {name for claim in CLAIMS for test in claim.tests for name in test.figures}
    without = names.difference(REDUCED)
    (line,) = [line for line in text.terminal(rows) if "no runs" in line]
    told = line.removeprefix("no runs of ").partition(";")[0].split(", ")
    assert set(told) == without
    assert line.count("python src/train.py -m figure=") == 1


def test_what_is_behind_a_verdict(rows):
    lines = text.terminal(with_figure(rows, ["fig01"]), parts=True)
    (part,) = [line for line in lines if line.startswith("  fig01: best over m ≤ 8")]
    assert part.endswith("points, 3 seeds, 6 runs: supported")
    assert any(line.startswith("  asks: The best over m ≤ 4 (AlexNet") for line in lines)


def test_markdown_and_frames_say_the_same(rows):
    lines = text.markdown(rows).splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert head == ["claim", *text.columns(rows), "counted"]
    assert [line.split("|")[1].strip() for line in lines[2:15]] == [f"C{i}" for i in range(1, 14)]
    frames = text.frames({"reduced": rows})
    table = frames["claims"].set_index("claim")
    for line in lines[2:15]:
        name, *marks, counted = [cell.strip() for cell in line.strip("|").split("|")]
        assert [table.at[name, column] for column in text.columns(rows)] == marks
        assert table.at[name, "counted"] == counted
    parts = frames["verdicts"].query("claim == 'C4' and figures == 'fig01'")
    assert parts["seeds"].tolist() == [3]
    assert len(parts["keys"].iloc[0].split()) == 6
    assert len(frames["verdicts"].groupby(["claim", "figures"])) == sum(len(row.verdicts) for row in rows)
    assert text.frames({}) == {}
