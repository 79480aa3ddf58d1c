"""Attack the package: nothing that is finished is lost, nothing wrong is taken, nothing is left behind.

make attack                                      100 attacks on grids, 2,000 damaged files, 200 wrong command lines
make attack TIMES=5                              five times as many
PYTHONPATH=src python tests/attack --only kills  one of the three
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import damage
import kills
import lines

PARTS = {"kills": (kills.attack, 100), "damage": (damage.attack, 2000), "lines": (lines.attack, 200)}
KINDS = ("lost", "wrong resumes", "tracebacks", "silent", "orphans", "exits", "leftovers")


def main() -> int:
    """Attack, print the table, and say whether all of it is 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=1, help="as many times as usual")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--only", choices=PARTS)
    given = parser.parse_args()
    table: dict[str, Counter[str]] = {}
    for name in [given.only] if given.only else PARTS:
        attack, usual = PARTS[name]
        times, begin = max(1, round(usual * given.times)), time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"attack-{name}-") as folder:
            table[f"{times:,} {name}"] = attack(Path(folder), times, given.seed, print)
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    print(f"\n{'':24}" + "".join(f"{kind:>15}" for kind in KINDS))
    for name, count in table.items():
        print(f"{name:24}" + "".join(f"{count[kind]:15}" for kind in KINDS))
    return 1 if any(count.total() for count in table.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
