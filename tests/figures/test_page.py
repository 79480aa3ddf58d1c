"""The page stands alone, holds every run and verdict, and shows text as text."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from test_collect import record, runs_of

from smallbatch.claims.judge import judge, plain
from smallbatch.figures import draw, panels
from smallbatch.figures import page as report
from smallbatch.figures.collect import FigureRuns
from smallbatch.store import Record
from smallbatch.table import table


class Tags(HTMLParser):
    """What a page refers to, and the text of its cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links, self.scripts, self.cells, self.ids, self.inside = [], 0, [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.ids += [value for name, value in attrs if name == "id"]
        self.scripts += tag == "script"
        if tag == "td":
            self.cells.append("")
            self.inside = True

    def handle_endtag(self, tag):
        if tag in ("td", "tr"):
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of figure 5 at smoke, one run diverged, and a network whose name is HTML."""
    folder = tmp_path_factory.mktemp("page")
    records = [record(run, 0.4 + i / 100) for i, run in enumerate(runs_of("fig05"))]
    lost = records[-1]
    records[-1] = Record(lost.run, lost.rows, lost.result | {"status": "diverged", "score": 0.1})
    records[0].run.model["name"] = "<script>alert(1)</script>"
    runs = FigureRuns("fig05", "smoke", table(records), title="Figure 5: A & B")
    figure = draw.draw(runs)
    paths = panels.save(figure, folder / "fig05-smoke")
    claims = {"smoke": plain(judge({"fig05": runs}))}
    report.write(folder / "index.html", folder, records, [report.Picture(runs, paths, figure)], claims)
    return (folder / "index.html").read_text(encoding="utf-8"), records, claims["smoke"]


def test_it_needs_nothing_but_itself(page):
    tags = Tags(page[0])
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in tags.links)
    assert {link[1:] for link in tags.links if link.startswith("#")} <= set(tags.ids)
    assert "@import" not in page[0]
    assert "url(" not in page[0]


def test_every_run_is_a_row_and_names_are_no_markup(page):
    html, records, _ = page
    tags = Tags(html)
    assert {r.run.key for r in records} <= set(tags.cells)
    assert tags.scripts == 1
    assert "<script>alert(1)</script>" in tags.cells
    assert "2^-11" in tags.cells


def test_claims_are_rows_figures_with_runs_are_columns_and_what_is_behind_opens(page):
    html, _, claims = page
    text = re.sub(r"\s+", " ", html)
    assert re.findall(r'<th role="rowheader"><a href="#smoke-(C\d+)">\1</a> [^<]', text) == [
        claim["id"] for claim in claims
    ]
    assert re.findall(r'<th class="head"><span>([^<]*)</span>', text) == ["fig05"]
    assert text.count('<span class="counted">') == len(claims) == 13
    undecided = [(c["id"], v) for c in claims for v in c["verdicts"] if v["state"] == "undecided"]
    assert [name for name, _ in undecided] == ["C2", "C6"]
    for name, verdict in undecided:
        link = f'href="#smoke-{name}-fig05" data-h="fig05" title="undecided: {verdict["reason"]}"'
        assert f'<a class="v undecided" {link}>seeds</a>' in text
        assert f'id="smoke-{name}-fig05"' in text
        assert f"<code>{verdict['train'][0]}</code>" in text
        assert verdict["criterion"] in text
    assert "Without runs: fig01, fig02" in text
    assert "Verdicts at scale smoke, not the paper’s size" in text
    assert "Figure 5: A &amp; B" in text


def test_each_state_has_its_mark(tmp_path, page):
    marks = {}
    for state, why in (("supported", ""), ("not supported", ""), ("undecided", "edge"), ("not trained", "incomplete")):
        verdict = page[2][1]["verdicts"][0] | {"state": state, "why": why, "column": "fig05", "figures": ["fig05"]}
        claims = {"smoke": [page[2][1] | {"verdicts": [verdict]}]}
        runs = FigureRuns("fig05", "smoke", table(page[1]), draw="paths")
        picture = report.Picture(runs, [tmp_path / "some.png"], draw.sgd_paths("Some"))
        report.write(tmp_path / "index.html", tmp_path, page[1], [picture], claims)
        text = (tmp_path / "index.html").read_text(encoding="utf-8")
        marks[state] = re.search(r'<a class="v [a-z-]*" [^>]*>([^<]*)</a>', text).group(1)
    assert marks == {"supported": "yes", "not supported": "no", "undecided": "edge", "not trained": "·"}


def test_a_tile_is_one_panel_in_the_colours_of_its_curves():
    rates = [2.0**-k for k in range(4, 17)]
    records = [record(replace(runs_of("fig05")[0], base_lr=rate, batch_size=m), 0.5) for rate in rates for m in (8, 32)]
    figure = draw.sweep(table(records), "Many", "A note with $2^{-9}$ in it.")
    assert panels.note(figure) == "A note with 2^-9 in it. Dotted: chance."
    colours = panels.colours("plasma", len(rates))[:, :3]
    tiles = panels.tiles(figure)
    assert [tile.title for tile in tiles] == ["against batch size", "against base learning rate"]
    pixels = np.asarray(Image.open(io.BytesIO(tiles[0].webp)).convert("RGB"), int).reshape(-1, 3)
    for colour in colours:
        assert (np.abs(pixels - np.multiply(255, colour)).max(axis=1) <= 4).sum() > 20
    for tile in tiles:
        picture = Image.open(io.BytesIO(tile.webp))
        assert picture.width / panels.DENSITY == pytest.approx(tile.width, abs=1)
        assert tile.width <= 100 * panels.TILE + 8


@pytest.mark.parametrize("name", ["plasma", "viridis", "turbo"])
def test_every_curve_stands_out_from_white(name):
    luminance = panels.colours(name, 14)[:, :3] ** 2.2 @ [0.2126, 0.7152, 0.0722]
    assert (1.05 / (luminance + 0.05)).min() >= 3  # WCAG 2.1, 1.4.11: what is no text
    assert len(np.unique(panels.colours(name, 14).round(3), axis=0)) == 14


def test_the_choices_are_those_of_the_readme(page):
    readme = (Path(__file__).parents[2] / "conf" / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Choices the paper leaves open\n")[2].partition("\n## ")[0]
    shown = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]
    rows = yaml.safe_load(report.CHOICES.read_text(encoding="utf-8"))
    assert [list(row.values()) for row in rows] == shown
    assert "<code>norm.memory</code>" in page[0]
    assert rows[0]["what"] in page[0]


def test_verdicts_are_plain_json(page):
    assert len(json.dumps(page[2], allow_nan=False)) > 1000
