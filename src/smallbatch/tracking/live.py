"""Following runs in W&B while they train, at no cost to them.

Run folders are the source of truth, and W&B gets the rows of epochs.csv. All that wandb does happens in a process of
its own (`upload`), which is told when a run begins, has one more epoch and ends, and reads the rest from the folder:
whatever it waits for, training does not, and it can be ended where wandb's threads cannot. What it leaves undone,
`python src/publish.py` uploads.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from multiprocessing.util import Finalize
from pathlib import Path

from omegaconf import DictConfig

from smallbatch.errors import one_line
from smallbatch.store import NOTE
from smallbatch.tracking import upload
from smallbatch.tracking.place import Place, Say, environment, is_followed

PATIENCE = 7.0  # seconds that the end of a process waits for W&B


@contextmanager
def followed(path: Path, cfg: DictConfig, say: Say) -> Iterator[Callable[[], None]]:
    """Within it, call what it yields when an epoch was written; at its end W&B gets the result in the folder."""
    if not is_followed(cfg):
        yield lambda: None
        return
    try:
        uploader = _uploader(Place.of(cfg))
    except OSError as error:  # no more processes, or no memory for one
        say(upload.trouble(one_line(error)))
        yield lambda: None
        return
    uploader.tell(say, upload.AGAIN if (path / NOTE).exists() else upload.BEGINS, path)
    try:
        yield lambda: uploader.tell(say, upload.EPOCH, path)
    finally:
        uploader.tell(say, upload.ENDS, path)


class Uploader:
    """The process that uploads to one place, one run after the other. Raises OSError if it cannot be started."""

    def __init__(self, place: Place) -> None:
        where = json.dumps(asdict(place), default=str)
        source = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", upload.__name__, where, str(os.getpid())],
            env=environment() | {"PYTHONPATH": source},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for training, which then tells it
        )
        assert self.process.stdin
        assert self.process.stdout
        self.to, self.back, self.unsent = self.process.stdin.fileno(), self.process.stdout.fileno(), b""
        os.set_blocking(self.to, False)
        os.set_blocking(self.back, False)
        Finalize(self, self.end, exitpriority=0)  # also in processes that multiprocessing made, unlike atexit

    def tell(self, say: Say, what: str, path: Path) -> None:
        """Tell it of a run, and hear what it has to say."""
        self.say = say
        self.unsent += json.dumps([what, str(path.absolute())]).encode() + b"\n"
        with suppress(BlockingIOError, BrokenPipeError):
            self.unsent = self.unsent[os.write(self.to, self.unsent) :]
        self.hear()

    def hear(self) -> None:
        """Pass on its lines."""
        with suppress(BlockingIOError):
            for line in os.read(self.back, 1 << 16).decode(errors="replace").splitlines():
                self.say(line)

    def end(self) -> None:
        """Wait for what it was told, but no longer than W&B may take."""
        assert self.process.stdin
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self.process.kill()
        self.hear()
        if self.process.wait():
            self.say(upload.trouble(f"not done {PATIENCE:.0f} s after the last run, or its process was killed"))


_uploaders: dict[tuple[int, Place], Uploader] = {}


def _uploader(place: Place) -> Uploader:
    """This process's one for a place, which is started again if it was killed."""
    key = os.getpid(), place
    if key not in _uploaders or _uploaders[key].process.poll() is not None:
        _uploaders[key] = Uploader(place)
    return _uploaders[key]
