"""README's table of verdicts is that of the reference; `python tests/test_readme.py` writes it anew."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BETWEEN = re.compile(r"(?<=<!-- verdicts -->\n).*?(?=<!-- /verdicts -->)", re.DOTALL)
MARKS = {"supported": "yes", "not supported": "no", "not trained": "·"}


def table():
    """A row a claim that has a verdict with runs, a column a figure or comparison."""
    claims = json.loads((ROOT / "outputs" / "reference" / "claims.json").read_text(encoding="utf-8"))["scales"][
        "reduced"
    ]
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


def test_the_table_of_verdicts_is_that_of_the_reference():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert BETWEEN.search(readme).group() == table()


def test_it_is_short_and_its_links_lead_somewhere():
    for folder in (
        ".",
        "conf",
        "outputs",
        "tests",
        "src/smallbatch/claims",
        "outputs/reference",
        "outputs/reference/reproduce",
    ):
        text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
        assert folder != "." or len(text.splitlines()) <= 200
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            assert link.startswith("http") or (ROOT / folder / link).exists(), f"{folder}/README.md: {link}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(BETWEEN.sub(lambda _: table(), path.read_text(encoding="utf-8")), encoding="utf-8")
