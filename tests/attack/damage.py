"""Bytes of our files, changed at random: each file is refused, or made anew, or says what it said before."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from commands import SMALL, Command

from smallbatch import store
from smallbatch.compose import compose
from smallbatch.data import arrays
from smallbatch.errors import SmallBatchError
from smallbatch.record import Record, export, read_export
from smallbatch.training.fit import load_checked

Judge = Callable[[], str]  # what is wrong with what a reader made of a damaged file; "" if nothing
WORDS = ["batch_size=8", "base_lr=1/4096", *SMALL]


def attack(folder: Path, times: int, seed: int, say: Callable[[str], None]) -> Counter[str]:
    """Damage `times` files, of all kinds in turn; what went wrong, by kind."""
    dice, count = random.Random(seed), Counter[str]()
    folder.mkdir(exist_ok=True)
    judges = _judges(folder)
    for turn in range(times):
        file, judge = judges[turn % len(judges)]
        sound, status = file.read_bytes(), file.stat()
        file.write_bytes(damaged(sound, dice))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk does it: unseen
        try:
            wrong = judge()
        except SmallBatchError:
            wrong = ""
        except Exception as error:
            wrong = f"tracebacks: {type(error).__name__}: {error}"
        if wrong:
            say(f"damage {turn}: {wrong}, {file}")
        count.update([wrong.partition(":")[0]] if wrong else [])
        with suppress(FileNotFoundError):
            file.unlink()
        file.write_bytes(sound)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return count


def damaged(sound: bytes, dice: random.Random) -> bytes:
    """One bit turned, a few bytes changed, lost, put in or zeroed, or the end cut off."""
    at, length = dice.randrange(len(sound)), dice.randint(1, 8)
    before, rest = sound[:at], sound[at + length :]
    made = {
        "bit": before + bytes([sound[at] ^ 1 << dice.randrange(8)]) + sound[at + 1 :],
        "digit": before + dice.choice(b"0123456789").to_bytes() + sound[at + 1 :],
        "changed": before + dice.randbytes(length) + rest,
        "lost": before + rest,
        "more": before + dice.randbytes(length) + sound[at:],
        "zeroed": before + bytes(min(length, len(sound) - at)) + rest,
        "cut": before,
    }[dice.choice(["bit", "digit", "changed", "lost", "more", "zeroed", "cut"])]
    return made if made != sound else damaged(sound, dice)


def _judges(folder: Path) -> list[tuple[Path, Judge]]:
    """Each kind of file with what judges its reader."""
    words = [*WORDS, f"data.root={folder / 'data'}"]
    runs, half = folder / "runs", folder / "half"
    assert Command(["train.py", *words, "epochs=3", f"store={runs}", "save_weights=true"], folder / "out").end() == 0
    run = next(path for path in runs.iterdir() if store.KEY.fullmatch(path.name))
    began = Command(["train.py", *words, "epochs=4000", f"store={half}"], folder / "half.out")
    while not (checkpoint := next(half.glob("*/checkpoint.ckpt"), None)):
        time.sleep(0.01)
    began.send(signal.SIGKILL)
    began.end()
    record = store.read(run)
    assert record
    plain, packed = folder / "runs.jsonl", folder / "runs.jsonl.gz"
    plain.write_text(export([record, _other(folder, words)]))
    assert Command(["runs.py", "export", str(packed), f"store={runs}"], folder / "export.out").end() == 0
    cfg = compose(words)
    images = _images(cfg)
    unpacked = folder / "data" / "unpacked"
    judges: list[tuple[Path, Judge]] = [
        *((run / name, _reads(run, record)) for name in ("config.json", "epochs.csv", "result.json")),
        *((file, _is_refused(file)) for file in (checkpoint, run / store.WEIGHTS)),
        *((file, _imports(file)) for file in (plain, packed)),
    ]
    caches = [*unpacked.glob("*.json"), *unpacked.glob("*/*.npy")]
    return judges + [(file, lambda: "" if _images(cfg) == images else "silent: other images") for file in caches]


def _other(folder: Path, words: list[str]) -> Record:
    runs = folder / "other"
    assert Command(["train.py", *words, "epochs=2", f"store={runs}"], folder / "other.out").end() == 0
    return next(record for _, record in store.read_all(runs) if isinstance(record, Record))


def _reads(run: Path, sound: Record) -> Judge:
    def judge() -> str:
        read = store.read(run)
        return "" if read and read.outcome() == sound.outcome() else "silent: another result"

    return judge


def _is_refused(file: Path) -> Judge:
    def judge() -> str:
        load_checked(file)
        return "silent: a damaged checkpoint"

    return judge


def _imports(file: Path) -> Judge:
    def outcomes() -> list[Any]:
        return [record.outcome() for record in read_export(file)[0]]

    sound = outcomes()
    return lambda: "" if outcomes() == sound else "silent: another result"


def _images(cfg: Any) -> list[bytes]:
    """All that training sees of a data set, read from the disk."""
    arrays._unpacked.cache_clear()
    arrays._load_arrays.cache_clear()
    images = arrays.load_images(cfg)
    parts = [part[split.index] for split in (images.train, images.test) for part in (split.images, split.labels)]
    return [np.ascontiguousarray(part).tobytes() for part in (*parts, images.mean, images.std)] + [images.classes]
