"""README's table of verdicts is that of the reference. `make reference` writes it, and where its runs come from."""

import json
import re
from pathlib import Path

from smallbatch import store
from smallbatch.ended import Ended
from smallbatch.figures.collect import collect

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "outputs" / "reference"
MARKS = {"supported": "yes", "not supported": "no", "not trained": "·"}


def table():
    """A row a claim that has a verdict with runs, a column a figure or comparison."""
    claims = json.loads((REFERENCE / "claims.json").read_text(encoding="utf-8"))["scales"]["reduced"]
    there = [v for claim in claims for v in claim["verdicts"] if v["why"] not in ("no runs", "incomplete")]
    columns = sorted({v["column"] for v in there}, key=lambda column: (column.count("/"), column))
    decided = sum(v["state"] in ("supported", "not supported") for v in there)
    lines = [f"| | {' | '.join(columns)} | what is claimed |", "|---" * (len(columns) + 2) + "|"]
    for claim in claims:
        own = {v["column"]: MARKS.get(v["state"], v["why"]) for v in claim["verdicts"] if v in there}
        if own:
            lines.append(f"| {claim['id']} | {' | '.join(own.get(c, '') for c in columns)} | {claim['text']} |")
    end = f"yes: supported, no: not supported, noise, edge, seeds: why undecided. Decided: {decided}."
    return "\n".join([*lines, "", end, ""])


def provenance():
    """A row a figure: what its runs from seed 1 on cost, and where they were trained."""
    ended = Ended(store.ended(ROOT / "outputs" / "reference-runs"))
    lines = ["| figure | runs | seeds | hours | diverged | trained | commits | processors |", "|---" * 8 + "|"]
    for name in sorted(path.name.removesuffix("-reduced") for path in REFERENCE.glob("*-reduced")):
        frame = collect(name, "reduced", [], ended).frame
        results = [ended.records[key].result for key in frame["key"][frame["seed"] > 0]]
        days = sorted(result["ended"][:10] for result in results)
        cells = [
            name,
            len(results),
            ", ".join(str(seed) for seed in sorted(set(frame["seed"]) - {0})),
            f"{sum(result['seconds'] for result in results) / 3600:.1f}",
            sum(result["status"] == "diverged" for result in results),
            f"{days[0]} to {days[-1]}",
            ", ".join(sorted({str(result["commit"])[:7] for result in results})),
            ", ".join(sorted({result["machine"]["device"] for result in results})),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def between(name, text):
    """The part of a README that is written by code."""
    return re.search(f"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", text, re.DOTALL)


def write(path, name, new):
    text = path.read_text(encoding="utf-8")
    part = between(name, text)
    path.write_text(text[: part.start()] + new + text[part.end() :], encoding="utf-8")


def test_the_table_of_verdicts_is_that_of_the_reference():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert between("verdicts", readme).group() == table()


def test_it_is_short_and_its_links_lead_somewhere():
    for folder in (
        ".",
        "conf",
        "outputs",
        "tests",
        "src/hydra_plugins",
        "src/smallbatch/claims",
        "outputs/reference",
        "outputs/reference/fig01-pilot",
        "outputs/reference/reproduce",
    ):
        text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
        assert folder != "." or len(text.splitlines()) <= 200
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            assert link.startswith("http") or (ROOT / folder / link).exists(), f"{folder}/README.md: {link}"


if __name__ == "__main__":
    write(ROOT / "README.md", "verdicts", table())
    write(REFERENCE / "README.md", "runs", provenance())
