"""List, check, export and import finished runs.

python src/runs.py list model=alexnet batch_size=2,8
python src/runs.py check
python src/runs.py export runs.jsonl model=alexnet
python src/runs.py import runs.jsonl
"""

import argparse
import gzip
import sys
import zlib
from pathlib import Path

from smallbatch import lock, store
from smallbatch.config import ConfigError
from smallbatch.files import replacing
from smallbatch.store import DamagedRun, Record


def main() -> None:
    """Dispatch to one of the commands; a wrong use is one line and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("outputs/runs"), help="run folders (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("list", "print ended runs as a table"), ("check", "verify every run folder")):
        commands.add_parser(name, help=text)
    commands.add_parser("export", help="write ended runs to one file (.jsonl or .jsonl.gz)")
    commands.add_parser("import", help="add runs from such a file; what is there already is kept")
    for name in ("export", "import"):
        commands.choices[name].add_argument("file", type=Path)
    for name in ("list", "export"):
        commands.choices[name].add_argument("where", nargs="*", help="column=value[,value…] to choose runs")
    arguments = parser.parse_args()
    command = {"list": _list, "check": _check, "export": _export, "import": _import}[arguments.command]
    try:
        command(arguments)
    except (ConfigError, DamagedRun, OSError) as error:
        sys.exit(f"error: {error}")


def chosen(folders: Path, where: list[str]) -> list[Record]:
    """The ended, sound runs of a store that match `column=value[,value…]`; damaged ones are reported."""
    from smallbatch.table import parse_choice, select, table

    records = store.ended(folders)
    frame = table(records.values())
    if frame.empty:
        return []
    return [records[key] for key in select(frame, parse_choice(where))["key"]]


def _list(arguments: argparse.Namespace) -> None:
    from smallbatch.table import listing, table

    records = chosen(arguments.store, arguments.where)
    if not records:
        sys.exit(f"no ended runs in {arguments.store} that match")
    print(listing(table(records)).to_string(index=False))


def _check(arguments: argparse.Namespace) -> None:
    states = dict.fromkeys((*store.ENDED, "failed", "not ended", "damaged"), 0)
    for path, record in store.read_all(arguments.store):
        state = "damaged" if isinstance(record, DamagedRun) else record.result["status"] if record else "not ended"
        states[state] += 1
        if state == "damaged":
            print(record)
        elif state == "not ended":
            print(f"{path}: {'in training' if lock.claimed(path) else 'cut off; the same command goes on'}")
    print(", ".join(f"{count} {state}" for state, count in states.items() if count) or "no runs")
    sys.exit(1 if states["damaged"] else 0)


def _export(arguments: argparse.Namespace) -> None:
    records = chosen(arguments.store, arguments.where)
    if not records:
        sys.exit(f"no ended runs in {arguments.store} that match")
    data = store.export(records).encode()
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.file) as temporary:
        # No time stamp inside, so that the same runs give the same file.
        temporary.write_bytes(gzip.compress(data, mtime=0) if arguments.file.suffix == ".gz" else data)
    print(f"{len(records)} runs → {arguments.file}")


def _import(arguments: argparse.Namespace) -> None:
    data = arguments.file.read_bytes()
    try:
        text = (gzip.decompress(data) if arguments.file.suffix == ".gz" else data).decode()
        records = store.parse_export(text)
    except (EOFError, zlib.error, UnicodeDecodeError, DamagedRun) as error:
        raise ConfigError(f"{arguments.file}: {error}") from None
    added = sum(store.add(arguments.store, record) for record in records)
    print(f"{added} runs added to {arguments.store}, {len(records) - added} were there already")


if __name__ == "__main__":
    main()
