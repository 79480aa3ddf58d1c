"""List, check, export and import finished runs.

python src/runs.py list model=alexnet batch_size=2,8 --where "score > 0.5"
python src/runs.py check
python src/runs.py export runs.jsonl.gz figure=fig01 scale=reduced
python src/runs.py import runs.jsonl.gz store=elsewhere

Words are settings that the runs have, or name figures; store=FOLDER is another folder of runs than outputs/runs.
"""

from smallbatch import signals

if __name__ == "__main__":
    signals.at_once()  # while the imports below take seconds

import gzip
import sys
import zlib
from pathlib import Path

from smallbatch import cli, lock, store
from smallbatch.errors import ConfigError
from smallbatch.files import replacing
from smallbatch.store import DamagedRun, Record


def main() -> None:
    """Dispatch to one of the commands."""
    parser = cli.parser(__doc__)
    parser.add_argument("command", choices=["list", "check", "export", "import"])
    cli.add_words(parser, shown="FILE key=value")
    cli.add_where(parser)
    given = parser.parse_intermixed_args()
    with cli.one_line_errors():
        needs_file = given.command in ("export", "import")
        file = _file(given.command, given.words) if needs_file else Path()
        words, cfg = cli.sort(given.words[needs_file:], given.config_dir)
        folders = Path(cfg.store)
        if given.command in ("check", "import") and (words or given.where):
            raise ConfigError(f"{given.command} takes all runs; leave out {words[0] if words else '--where'}")
        if given.command == "check":
            check(folders)
        elif given.command == "import":
            add(file, folders)
        else:
            from smallbatch.figures.collect import chosen
            from smallbatch.table import listing, table

            records = chosen(folders, words, given.where)
            if given.command == "list":
                print(listing(table(records)).to_string(index=False))
            else:
                export(file, records)


def _file(command: str, words: list[str]) -> Path:
    """The first word. Raises ConfigError."""
    if not words or ("=" in words[0] and "/" not in words[0]):
        raise ConfigError(f"{command} needs a file first: python src/runs.py {command} runs.jsonl.gz")
    return Path(words[0])


def check(folders: Path) -> None:
    """Read every run folder and count what is there. Exit status 1 if one is damaged."""
    states = dict.fromkeys((*store.ENDED, "failed", "not ended", "damaged"), 0)
    for path, record in store.read_all(folders):
        state = "damaged" if isinstance(record, DamagedRun) else record.result["status"] if record else "not ended"
        states[state] += 1
        if state == "damaged":
            print(record)
        elif state == "not ended":
            print(f"{path}: {'in training' if lock.holder(path) else 'cut off; the same command goes on'}")
    print(", ".join(f"{count} {state}" for state, count in states.items() if count) or "no runs")
    sys.exit(1 if states["damaged"] else 0)


def export(file: Path, records: list[Record]) -> None:
    """Write runs to a file, in one step; the same runs give the same file."""
    data = store.export(records).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)  # no time stamp inside
    print(f"{len(records)} runs → {file}")


def add(file: Path, folders: Path) -> None:
    """Add the runs of a file to a store. Raises ConfigError for a file that is damaged, and adds nothing."""
    data = file.read_bytes()
    try:
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
        records = store.parse_export(text)
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, DamagedRun) as error:
        raise ConfigError(f"{file}: {error}") from None
    added = sum(store.add(folders, record) for record in records)
    print(f"{added} runs added to {folders}, {len(records) - added} were there already")


if __name__ == "__main__":
    main()
