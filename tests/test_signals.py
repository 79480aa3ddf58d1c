"""Signals: the first ends a command in order, a second at once, and none is lost."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.trains

REPOSITORY = Path(__file__).parents[1]
BEGIN = "import os, signal, sys, threading, time, weakref\nsys.path.insert(0, 'src')\nfrom smallbatch import signals\n"
HEED = "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run behind a script's &

LOST = """
class Thing:
    def __del__(self):
        if "del" in sys.argv:
            raise_it()

def raise_it(*_):
    signal.raise_signal(signal.SIGTERM)
    for _ in range(1000):  # the handler runs between two of these steps
        pass

with signals.in_order():
    thing = Thing()
    watch = weakref.ref(thing, raise_it if "weakref" in sys.argv else None)
    try:
        del thing
        time.sleep(20)
        print("went on")
    except KeyboardInterrupt:
        print(signals.status())
"""

OTHER = """
class Thing:
    def __del__(self): 1 / 0
with signals.in_order():
    Thing()
"""

TWICE = """
with signals.in_order():
    try:
        time.sleep(20)
    except KeyboardInterrupt:
        print("ending", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)  # the same again, as from `timeout`
        time.sleep(2 * signals.ONE)
        print("once more", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BEGIN + HEED + code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("where", ["del", "weakref"])
def test_a_signal_that_python_drops_comes_again(where):
    ended = run(LOST, where)
    assert (ended.stdout, ended.stderr) == ("143\n", "")


def test_other_exceptions_there_are_reported_as_before():
    assert "ZeroDivisionError" in run(OTHER).stderr


def test_a_second_signal_ends_at_once_but_one_that_comes_twice_is_one():
    ended = run("threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n" + TWICE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "ending\nonce more\n", "interrupted\n")


def test_what_was_ignored_stays_ignored_but_time_is_up_all_the_same():
    code = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nsignals.at_once()\nwith signals.in_order():\n"
    code += "    os.kill(os.getpid(), signal.SIGINT)\n    try:\n        with signals.after(0.1): time.sleep(20)\n"
    code += "    except KeyboardInterrupt: print('time is up', signals.status())\n"
    ended = run(code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "time is up 130\n", "")


def test_handlers_are_what_they_were_behind_it():
    code = "signals.at_once()\nbefore = signal.getsignal(signal.SIGTERM)\n"
    code += "with signals.in_order(): assert signal.getsignal(signal.SIGTERM) != before\n"
    code += "assert signal.getsignal(signal.SIGTERM) == before\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(20)\n"
    ended = run(code)
    assert (ended.returncode, ended.stderr) == (143, "interrupted\n")


# --- real commands

WORDS = ["data=digits", "data.train_size=64", "data.test_size=32", "batch_size=8,16", "epochs=4000"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    def heed() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [sys.executable, "src/train.py", *words, *WORDS, f"store={folder}", f"data.root={folder}-data"]
    return subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=heed,
    )  # fmt: skip


def until_trained(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and len(list(folder.glob("*/epochs.csv"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def seconds_of_workers(process: subprocess.Popen[str]) -> float:
    """How long its worker processes live on."""
    begun = time.monotonic()
    command = ["ps", "-o", "stat=,args=", "--sid", str(process.pid)]
    while time.monotonic() - begun < 60:
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        if not any("joblib.externals" in line and " -m " in line and "Z" not in line.split()[0] for line in lines):
            break
        time.sleep(0.05)
    return time.monotonic() - begun


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_a_grid_that_is_asked_to_end_does_within_seconds_with_its_workers(tmp_path, number):
    process = start(tmp_path / "runs", "-m", "hydra/launcher=local", "hydra.launcher.n_jobs=2")
    until_trained(process, tmp_path / "runs", 2)
    process.send_signal(number)
    assert seconds_of_workers(process) < 5
    output, errors = process.communicate()
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1] == "interrupted: the same command goes on from here"
    assert output.splitlines()[-1] == "2 without a result"


def test_workers_end_soon_after_their_grid_was_killed(tmp_path):
    process = start(tmp_path / "runs", "-m", "hydra/launcher=local", "hydra.launcher.n_jobs=2")
    until_trained(process, tmp_path / "runs", 2)
    process.kill()
    assert seconds_of_workers(process) < 5
    process.communicate()


@pytest.mark.parametrize("seconds", [0.2, 0.8, 1.6])
def test_a_command_that_is_asked_to_end_while_it_imports_says_one_line(tmp_path, seconds):
    process = start(tmp_path / "runs", "-m")
    time.sleep(seconds)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM)  # the latter before Python runs the command's first line
    assert errors.count("\n") <= 1
    assert "Traceback" not in errors
