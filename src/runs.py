"""List, check, export, import and merge finished runs.

python src/runs.py list model=alexnet batch_size=2,8 --where "score > 0.5"
python src/runs.py check
python src/runs.py export runs.jsonl.gz figure=fig01 scale=reduced
python src/runs.py import runs.jsonl.gz store=elsewhere
python src/runs.py merge /mnt/other/outputs/runs

Words are settings that the runs have, or name figures; store=FOLDER is another folder of runs than outputs/runs.
"""

from smallbatch import signals, surroundings

if __name__ == "__main__":
    surroundings.shut_out()  # before the imports below read the variables of other tools
    signals.at_once()  # while they take seconds

import gzip
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smallbatch import cli, lock, store
from smallbatch.errors import ConfigError
from smallbatch.files import disk_error, kind, replacing
from smallbatch.record import DamagedRun, Record, is_export, read_export

TAKE_A_PATH = {"export": "runs.jsonl.gz", "import": "runs.jsonl.gz", "merge": "other/outputs/runs"}
MOST_NAMED = 10  # runs in a list


def main() -> None:
    """Dispatch to one of the commands."""
    parser = cli.parser(__doc__)
    parser.add_argument("command", choices=["list", "check", *TAKE_A_PATH])
    cli.add_words(parser, shown="PATH key=value")
    cli.add_where(parser)
    given = parser.parse_intermixed_args()
    with cli.one_line_errors():
        takes_path = given.command in TAKE_A_PATH
        path = _path(given.command, given.words) if takes_path else Path()
        words, cfg = cli.sort(given.words[takes_path:], given.config_dir)
        folders = Path(cfg.store)
        if given.command in ("check", "import", "merge") and (words or given.where):
            raise ConfigError(f"{given.command} takes all runs; leave out {words[0] if words else '--where'}")
        if given.command == "check":
            check(folders)
        elif given.command == "import":
            add(path, folders)
        elif given.command == "merge":
            merge(path, folders)
        else:
            from smallbatch.figures.collect import chosen
            from smallbatch.table import listing, table

            records = chosen(folders, words, given.where)
            if given.command == "list":
                print(listing(table(records)).to_string(index=False))
            else:
                export(path, records)


def _path(command: str, words: list[str]) -> Path:
    """The first word. Raises ConfigError."""
    if not words or ("=" in words[0] and ("/" not in words[0] or cli.is_beside(words[0]))):
        raise ConfigError(f"{command} needs a path first: python src/runs.py {command} {TAKE_A_PATH[command]}")
    return Path(words[0])


def check(folders: Path) -> None:
    """Read every run folder and count what is there. Exit status 1 if one is damaged."""
    states = dict.fromkeys((*store.ENDED, "failed", "not ended", "damaged"), 0)
    for path, record in store.read_all(folders):
        if record is None and not (store.KEY.fullmatch(path.name) or (path / "config.json").exists()):
            print(f"{path}: is no run folder; left alone")
            continue
        state = "damaged" if isinstance(record, DamagedRun) else record.result["status"] if record else "not ended"
        states[state] += 1
        if state == "damaged":
            print(record)
        elif state == "not ended":
            print(f"{path}: {'in training' if lock.holder(path) else 'cut off; the same command goes on'}")
    print(", ".join(f"{count} {state}" for state, count in states.items() if count) or "no runs")
    if states["damaged"]:
        sys.exit(1)


def export(file: Path, records: list[Record]) -> None:
    """Write runs to a file, in one step; the same runs give the same file. Raises ConfigError for what is no export."""
    data = store.export(records).encode()
    with _disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            if kind(file) and not is_export(file):
                raise ConfigError(f"{file}: is no export of runs, and is not replaced; name another file")
            # No time stamp inside.
            temporary.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)
    print(f"{len(records)} runs → {file}")


def add(file: Path, folders: Path) -> None:
    """Add the runs of a file to a store. Raises ConfigError for a file that is damaged, and adds nothing."""
    try:
        records, has_checksums = read_export(file)
    except DamagedRun as damage:
        raise ConfigError(f"{file}: {damage}; nothing is imported") from None
    if not has_checksums:
        print(f"{file}: has no checksums, as exports of older versions; each line was checked but for those")
    done = [record for record in records if record.result["status"] in store.ENDED]
    if len(done) < len(records):
        print(f"{len(records) - len(done)} failed runs are left out")
    new, there, others = _sort(done, folders)
    with _disk_errors(folders):
        added = store.add(folders, *new)
    print(f"{added} runs added to {folders}, {len(there) + len(others)} were there already")
    _say_busy(len(new) - added)
    for record in others[:MOST_NAMED]:
        print(f"{store.folder(folders, record.run)}: has another result than {file}, and keeps it")
    if len(others) > MOST_NAMED:
        print(f"and {len(others) - MOST_NAMED} more")


def merge(other: Path, folders: Path) -> None:
    """Add the done runs of another store. Exit status 1 if one has another result here: neither is then replaced."""
    if not other.is_dir():
        raise ConfigError(f"{other}: is no folder; name a store, such as {TAKE_A_PATH['merge']}")
    if folders.is_dir() and other.samefile(folders):
        raise ConfigError(f"{other}: is this store itself; say store=… for another")
    records = list(store.ended(other).values())
    new, there, refused = _sort(records, folders)
    with _disk_errors(folders):
        added = store.add(folders, *new, source=other)
    print(f"{added} runs added to {folders}, {len(there)} were there already, {len(refused)} refused")
    _say_busy(len(new) - added)
    for record in refused:
        mine, theirs = (store.folder(place, record.run) for place in (folders, other))
        print(f"two results of one run: {mine} and {theirs}; remove one of them", file=sys.stderr)
    if refused:
        sys.exit(1)


def _sort(records: list[Record], folders: Path) -> tuple[list[Record], list[Record], list[Record]]:
    """Those that a store lacks, those that it has with the same outcome, and those of which it has another."""
    sorted_: tuple[list[Record], list[Record], list[Record]] = ([], [], [])
    for record in records:
        mine = store.done(store.folder(folders, record.run))
        sorted_[0 if mine is None else 1 if mine.outcome() == record.outcome() else 2].append(record)
    return sorted_


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """What a disk refuses at a path, as a ConfigError; its own error names temporary files, or none."""
    try:
        yield
    except OSError as error:
        raise disk_error(OSError(error.errno, error.strerror), path) from None


def _say_busy(count: int) -> None:
    if count:
        print(f"{count} left to the process that trains it now")


if __name__ == "__main__":
    main()
