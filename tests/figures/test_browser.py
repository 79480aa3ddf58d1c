"""The page in a real browser: nothing is cut off on a phone, links open what they lead to, text is read in the dark."""

import io
from dataclasses import replace

import pytest
from chromium import PROGRAM, Chromium
from PIL import Image, ImageStat
from test_collect import ended, record, runs_of

from smallbatch.claims.judge import judge, plain
from smallbatch.figures import draw, panels
from smallbatch.figures import page as report
from smallbatch.figures.collect import FigureRuns, collect

pytestmark = [
    pytest.mark.trains,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on the path (Debian: apt-get install chromium)"),
]
PHONE, DESK = 420, 1280

CONTRAST = """
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const rgba = text => text.match(/[\\d.]+/g).map(Number);
const ground = part => {
  for (; part; part = part.parentElement) {
    const colour = rgba(getComputedStyle(part).backgroundColor);
    if (colour[3] !== 0) return colour;
  }
};
const texts = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const part = walk.currentNode.parentElement;
  if (walk.currentNode.textContent.trim() && !["SCRIPT", "STYLE"].includes(part.tagName)) texts.push(part);
}
[...new Set(texts)].map(part => {
  const [a, b] = [rgba(getComputedStyle(part).color), ground(part)].map(light).sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), part.textContent.trim().slice(0, 30)];
}).filter(([ratio]) => ratio < 4.5)
"""


def world(run) -> float:
    """Falls with m, and is lost where m η̃ is large."""
    return 0.1 if run.batch_size * run.base_lr > 2**-2 else 0.7 - 0.002 * run.batch_size - 0.001 * run.seed


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Figures of every kind, one lacking runs, and decided verdicts."""
    folder = tmp_path_factory.mktemp("page")
    runs = [run for name in ("fig01", "fig02", "fig04", "fig05") for run in runs_of(name, "smoke", "seeds=3")]
    gone = runs[-1]  # a point that no seed has
    runs = [run for run in runs if replace(run, seed=gone.seed) != gone]
    records = {run.key: record(run, world(run)) for run in runs}
    found = {
        name: collect(name, "smoke", [], ended(*records.values())) for name in ("fig01", "fig02", "fig04", "fig05")
    }
    claims = {"smoke": plain(judge(found))}
    parts = [some for name, some in found.items() if name != "fig04"]
    whole = {
        "fig16": FigureRuns("fig16", "smoke", found["fig01"].frame.iloc[:0], draw="range", title="Figure 16: range")
    }
    whole |= {"sgd_paths": FigureRuns("sgd_paths", "paper", found["fig01"].frame.iloc[:0], draw="paths", title="Paths")}
    pictures = []
    for name, some in (found | whole).items():
        figure = draw.draw(some, parts if name == "fig16" else ())
        pictures.append(report.Picture(some, panels.save(figure, folder / name), figure))
    report.write(folder / "index.html", folder, list(records.values()), pictures, claims)
    return folder / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Chromium(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.mark.parametrize("width", [320, PHONE, DESK])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_said_fetched_cut_off_or_too_faint(browser, page, width, dark):
    browser.said.clear()
    browser.asked.clear()
    browser.open(page, width, dark)
    browser.ask("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.ask("innerWidth") == width
    assert browser.ask("document.documentElement.scrollWidth") <= width
    beyond = (
        "[...document.querySelectorAll('body *')].filter(part => part.getBoundingClientRect().right > innerWidth + 1)"
    )
    assert (
        browser.ask(f"{beyond}.filter(part => !part.closest('.scroll')).map(part => part.outerHTML.slice(0, 80))") == []
    )
    assert browser.ask(CONTRAST) == []
    assert browser.said == []
    assert {address.partition(":")[0] for address in browser.asked} <= {"file", "data"}
    assert [address for address in browser.asked if address.startswith("file")] == [page.as_uri()]


def test_the_page_opens_with_the_verdicts_and_is_small(browser, page):
    assert page.stat().st_size < 2e6
    for width in (PHONE, DESK):
        browser.open(page, width)
        tops = browser.ask(
            "['.matrix', '#claims', '.tiles'].map(x => document.querySelector(x).getBoundingClientRect().top)"
        )
        assert 0 < tops[0] < 600
        assert tops == sorted(tops)
    words = browser.ask("[...document.querySelectorAll('.matrix td a')].map(link => link.textContent)")
    assert {"yes", "·"} < set(words) <= {"yes", "no", "seeds", "edge", "noise", "·"}


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_every_link_leads_to_something_that_opens(browser, page, width):
    browser.open(page, width)
    links = browser.ask("[...document.querySelectorAll('a[href]')].map(link => link.getAttribute('href'))")
    assert len(links) > 40
    assert all(link.startswith("#") for link in links)
    assert browser.ask("[...document.links].filter(a => !document.getElementById(a.hash.slice(1))).length") == 0
    for link in dict.fromkeys(link for link in links if link.count("-") > 1):  # a verdict's; twice, once folded again
        for _ in range(2):
            where = browser.ask(f"""(async () => {{
                document.querySelector("a[href='{link}']").click();
                await new Promise(done => setTimeout(done, 30));
                const part = document.getElementById('{link[1:]}'), box = part.getBoundingClientRect();
                const found = [part.open, box.height > 40, box.top > -1 && box.top < innerHeight];
                part.open = false;
                return found;
            }})()""")
            assert where == [True, True, True], link


def test_a_verdict_shows_criterion_effect_interval_seeds_updates_and_its_runs(browser, page):
    browser.open(page, PHONE)
    claim = "document.getElementById('smoke-C4-fig01')"
    browser.ask(f"{claim}.open = true")
    text = browser.ask(f"{claim}.innerText")
    assert "Asks: The best over m ≤ 4" in text
    heads = browser.ask(f"[...{claim}.querySelectorAll('td[data-h]')].map(cell => cell.dataset.h)")
    assert {"effect (points)", "98 % interval", "seeds", "in training accuracy", "updates a run"} <= set(heads)
    keys = browser.ask(f"{claim}.querySelector('.keys code').textContent").split()
    assert len(keys) >= 6
    browser.ask(f"{claim}.querySelector('.keys a').click()")
    shown = "[...document.querySelectorAll('#runs tbody tr')].filter(row => row.checkVisibility())"
    assert sorted(browser.ask(f"{shown}.map(row => row.lastElementChild.textContent)")) == sorted(keys)
    assert browser.ask("document.querySelector('#shown').textContent") == str(len(keys))


def test_the_runs_sort_by_number_and_filter_by_words(browser, page):
    browser.open(page, DESK)
    cells = "[...document.querySelectorAll('#runs tbody tr:not([hidden])')].map(row => row.cells[PLACE].innerText)"
    browser.ask("[...document.querySelectorAll('#runs th')].find(head => head.textContent === 'η̃').click()")
    rates = [2.0 ** float(text.removeprefix("2^")) for text in browser.ask(cells.replace("PLACE", "6"))]
    assert rates == sorted(rates)
    assert len(set(rates)) > 3
    browser.ask("document.querySelector('#filter').value = 'm=8 alexnet'")
    browser.ask("document.querySelector('#filter').dispatchEvent(new Event('input'))")
    assert set(browser.ask(cells.replace("PLACE", "4"))) == {"8"}
    assert set(browser.ask(cells.replace("PLACE", "0"))) == {"alexnet"}


def test_pictures_fill_a_phone_and_do_not_blind_in_the_dark(browser, page, tmp_path):
    for dark in (False, True):
        browser.open(page, PHONE, dark)
        sizes = browser.ask("[...document.querySelectorAll('#fig01 img')].map(x => [x.width, x.naturalWidth])")
        assert len(sizes) == 2  # one above the other
        assert all(0.8 * PHONE < width < PHONE and width > 0.8 * natural / panels.DENSITY for width, natural in sizes)
        box = browser.ask(
            "(b => [b.top + scrollY, b.height])(document.querySelector('#fig01 img').getBoundingClientRect())"
        )
        browser.picture(tmp_path / "tile.png", int(box[0]), int(box[1]))
        mean = ImageStat.Stat(Image.open(io.BytesIO((tmp_path / "tile.png").read_bytes())).convert("L")).mean[0]
        assert mean < 60 if dark else mean > 220
