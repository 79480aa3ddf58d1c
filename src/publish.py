"""Upload ended runs to Weights & Biases from their folders: what is not there yet, each once.

    python src/publish.py                                          # all of them
    python src/publish.py model=alexnet batch_size=2,8             # those with these settings, or figure=… scale=…
    python src/publish.py wandb.project=mine wandb.group=fig01     # elsewhere, or under other words

It is all the same whether a run was trained offline, with W&B away, or without W&B.
"""

from smallbatch import signals, surroundings

if __name__ == "__main__":
    surroundings.shut_out()  # before the imports below read the variables of other tools
    signals.at_once()  # while they take seconds

import sys
from pathlib import Path

from tqdm import tqdm

from smallbatch import cli, lock, store
from smallbatch.errors import one_line
from smallbatch.figures.collect import chosen
from smallbatch.store import Record
from smallbatch.tracking import page
from smallbatch.tracking.place import Place, answers, settled


def main() -> None:
    """Upload what was asked for. Exit status 1 if something is left."""
    parser = cli.parser(__doc__)
    cli.add_words(parser)
    cli.add_where(parser)
    arguments = parser.parse_intermixed_args()
    with cli.one_line_errors():
        words, cfg = cli.sort([*arguments.words, "wandb.mode=online"], arguments.config_dir)
        folders = Path(cfg.store)
        records = chosen(folders, words, arguments.where, (*store.ENDED, "failed"))
        place = settled(Place.of(cfg), print)
        given = {word.removeprefix("wandb.").partition("=")[0] for word in arguments.words if word.startswith("wandb.")}
        failed = _publish({store.folder(folders, record.run): record for record in records}, place, given)
        if failed:
            sys.exit(f"error: {failed} not uploaded; the same command goes on with them")


def _publish(records: dict[Path, Record], place: Place, given: set[str]) -> int:
    """Upload, and say how many there were; returns how many could not be."""
    uploaded = failed = 0
    for path, record in tqdm(records.items(), unit="run", disable=None):
        there = page.noted_place(path, place, given)
        if lock.holder(path) or page.is_uploaded(path, record, there):
            continue
        try:
            there_now = page.Page(record.run, path, there)
            there_now.open()
            there_now.close(record)
            uploaded += 1
        except Exception as error:  # wandb's are of many kinds
            failed += 1
            tqdm.write(f"{record.run.label}: {one_line(error)}", file=sys.stderr)
            if not answers():
                failed += len(records) - uploaded - failed
                break
    print(f"{len(records)} runs: {uploaded} uploaded, {len(records) - uploaded - failed} there already")
    return failed


if __name__ == "__main__":
    main()
