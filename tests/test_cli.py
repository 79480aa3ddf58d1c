"""Ctrl-C that comes where Python drops exceptions."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.trains

REPOSITORY = Path(__file__).parents[1]

LOST = """
import signal, sys, time, weakref
sys.path.insert(0, "src")
from smallbatch.cli import keep_interrupts

class Thing:
    def __del__(self):
        if "del" in sys.argv:
            raise_it()

def raise_it(*_):
    signal.raise_signal(signal.SIGINT)
    for _ in range(1000):  # the handler runs between two of these steps
        pass

signal.signal(signal.SIGINT, signal.default_int_handler)
if "kept" in sys.argv:
    keep_interrupts()
thing = Thing()
watch = weakref.ref(thing, raise_it if "weakref" in sys.argv else None)
try:
    del thing
    time.sleep(20 if "kept" in sys.argv else 1)
    print("went on")
except KeyboardInterrupt:
    print("interrupted")
"""

OTHER = """
import sys
sys.path.insert(0, "src")
from smallbatch.cli import keep_interrupts

class Thing:
    def __del__(self):
        1 / 0

keep_interrupts()
Thing()
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("where", ["del", "weakref"])
@pytest.mark.parametrize(("how", "says"), [("kept", "interrupted"), ("lost", "went on")])
def test_an_interrupt_in_a_callback_comes_again(where, how, says):
    ended = run(LOST, where, how)
    assert ended.stdout == f"{says}\n"
    assert (ended.stderr == "") == (how == "kept")  # Python's own "Exception ignored in …"


def test_other_exceptions_there_are_reported_as_before():
    code = "import sys; sys.path.insert(0, 'src')\nfrom smallbatch.cli import keep_interrupts\nkeep_interrupts()\n"
    code += "class Thing:\n    def __del__(self): 1 / 0\nThing()"
    assert "ZeroDivisionError" in run(code).stderr
