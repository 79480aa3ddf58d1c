"""Commands of the package, started from a process that has done their imports: in tenths of a second, not seconds."""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
SMALL = ["data.train_size=64", "data.test_size=40", "machine.accelerator=cpu"]
_IMPORTED = ("train", "figures", "runs", "plan", "publish", "report")
_LATER = ("training.fit", "training.module", "training.trial", "tracking.live", "grids.sweep", "figures.draw", "answer")

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload([*_IMPORTED, *(f"smallbatch.{name}" for name in _LATER)])


class Command:
    """`python src/<words>` in a session of its own; what it prints goes to the end of a file."""

    def __init__(self, words: list[str], out: Path, environ: dict[str, str] | None = None) -> None:
        """Start it in the folder of `out`, with this environment."""
        os.environ["PYTHONPATH"] = str(SOURCE)  # for the process that imports
        self.out = out
        self._process = FORK.Process(target=_run, args=(words, str(out), environ or dict(os.environ)))
        self._process.start()
        self.pid: int = self._process.pid

    def end(self, seconds: float = 120) -> int | None:
        """Its exit status, negative for a signal; None if it has not ended by then."""
        self._process.join(seconds)
        return self._process.exitcode

    def send(self, number: int) -> bool:
        """Send a signal to the command alone; whether it was still there."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)
            return True
        return False

    def others(self) -> list[int]:
        """The processes that it has started and that live, by the session that all of them share."""
        return [pid for pid in _of_session(self.pid) if pid != self.pid]

    def left_after(self, seconds: float) -> int:
        """How many of these are still there so long after now; they are killed."""
        deadline = time.monotonic() + seconds
        while (left := self.others()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return len(left)

    def said(self) -> str:
        """What it has printed."""
        return self.out.read_text(errors="replace") if self.out.exists() else ""


def _of_session(session: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, sid = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended meanwhile
            continue
        if int(sid) == session and state != "Z":
            found.append(int(folder.name))
    return found


def _run(words: list[str], out: str, environ: dict[str, str]) -> None:
    """What a new Python does between its start and a script."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(Path(out).parent)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = [str(SOURCE / words[0]), *words[1:]]
    sys.path[:0] = [str(SOURCE)]
    runpy.run_path(sys.argv[0], run_name="__main__")
