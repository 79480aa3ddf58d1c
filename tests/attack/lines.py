"""Wrong command lines, made from the schema, under odd surroundings: each is refused in one line and writes nothing."""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from commands import SMALL, SOURCE, Command
from omegaconf import OmegaConf

from smallbatch.compose import compose
from smallbatch.config import Config
from smallbatch.ranges import ranges

SURROUNDINGS: dict[str, dict[str, str | None]] = {
    "none": {},
    "a notebook's": {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "JPY_PARENT_PID": "1"},
    "ascii": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"},
    "no home": {"HOME": None, "USER": None, "XDG_CACHE_HOME": "/proc/none"},
    "Slurm's": {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "grid"},
    "torchrun's": {"WORLD_SIZE": "4", "RANK": "x", "LOCAL_RANK": "-1", "MASTER_PORT": "text"},
    "W&B's": {"WANDB_MODE": "nonsense", "WANDB_RUN_ID": "/", "WANDB_SWEEP_ID": "1", "WANDB_INIT_TIMEOUT": "soon"},
    "Hydra's": {"HYDRA_FULL_ERROR": "0", "OC_CAUSE": "1", "HYDRA_MAIN_MODULE": "nothing"},
    "no temporary folder": {"TMPDIR": "/proc/none", "TEMP": "/proc/none"},
    "own modules": {"PYTHONPATH": "."},
}
MODULES = ("data", "config", "store", "lock", "run", "errors")  # that a user may have in the working directory
COMMANDS = ("train.py", "train.py -m", "plan.py", "figures.py", "publish.py", "report.py", "runs.py list")
WITHIN = 120.0  # seconds; a line that ends later has trained


def attack(folder: Path, times: int, seed: int, say: Callable[[str], None]) -> Counter[str]:
    """Give `times` wrong lines; what went wrong, by kind. Each fifth starts Python anew, as surroundings may matter."""
    dice = random.Random(seed)
    for name in MODULES:
        (folder / f"{name}.py").write_text("raise RuntimeError('of the user')\n")
    drawn = [(turn, _line(dice, folder / str(turn)), dice.choice([*SURROUNDINGS])) for turn in range(times)]
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(lambda each: _judge(folder, *each), drawn)
        count = Counter[str]()
        for (turn, words, around), wrong in zip(drawn, found, strict=True):
            if wrong:
                say(f"line {turn}: {wrong}: {' '.join(words)!r}, surroundings {around}")
                count[wrong.partition(":")[0]] += 1
    return count


def _judge(folder: Path, turn: int, words: list[str], around: str) -> str:
    """What is wrong with what a command made of a wrong line; "" if nothing."""
    out = folder / f"{turn}.out"
    status, said = _run(words, out, SURROUNDINGS[around], anew=turn % 5 == 0)
    if "Traceback" in said:
        return f"tracebacks: {said[-200:]}"
    if status == 0:
        return "silent: it is accepted"
    if status not in (1, 2):
        return f"exits: {status}"
    last = [line for line in said.splitlines() if not line.startswith(("usage", " "))]
    if len(last) != 1:
        return f"exits: {len(last)} lines, {said[:400]!r}"
    return f"leftovers: {folder / str(turn)}" if (folder / str(turn)).exists() else ""


def _run(words: list[str], out: Path, around: dict[str, str | None], anew: bool) -> tuple[int | None, str]:
    environ = {name: value for name, value in (dict(os.environ) | around).items() if value is not None}
    if not anew:
        command = Command(words, out, environ)
        return command.end(WITHIN), command.said()
    with out.open("w") as file:
        python = [sys.executable, str(SOURCE / words[0]), *words[1:]]
        done = subprocess.run(python, env=environ, cwd=out.parent, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    return done.returncode, out.read_text(errors="replace")


def _line(dice: random.Random, place: Path) -> list[str]:
    """A command with one word that is wrong, among others that are right; what it writes would go to `place`."""
    command = dice.choice(COMMANDS)
    trains = command.startswith("train.py")
    right = [*(SMALL if trains else []), f"store={place / 'runs'}", f"data.root={place / 'data'}"]
    return [*command.split(), *right, *dice.choice([_out_of_range, _unknown, _of_no_type, _no_choice])(dice)]


def _out_of_range(dice: random.Random) -> list[str]:
    name = dice.choice([*ranges(Config)])
    allowed: Any = ranges(Config)[name]
    wrong = ["-1", "-1e-9", "nan", "inf", "1e400", "many", "{}", "[[]]", "''"]
    return [f"{name}={dice.choice(wrong if allowed.interval.startswith('[0') else [*wrong, '0'])}"]


def _unknown(dice: random.Random) -> list[str]:
    name = dice.choice(_names())
    at = dice.randrange(len(name))
    wrong = name[:at] + dice.choice("xyz") + name[at + 1 :]
    return [f"{wrong if wrong not in _names() else name + 'x'}={dice.choice(['1', 'true', 'a,b', 'null'])}"]


def _of_no_type(dice: random.Random) -> list[str]:
    kinds = [name for name, value in _values().items() if isinstance(value, bool)]
    return [f"{dice.choice(kinds)}={dice.choice(('maybe', '2.5', '[1]', '{}', 'nul'))}"]


def _no_choice(dice: random.Random) -> list[str]:
    group = dice.choice(["model", "data", "optimizer", "schedule", "norm", "loss", "stop", "logger", "figure", "scale"])
    return [f"{group}={dice.choice(['nonsense', '../train', '/etc/passwd', '3', 'a/b', '[]'])}"]


def _values() -> dict[str, Any]:
    return dict(_flat(OmegaConf.to_container(compose([])), ""))


def _names() -> list[str]:
    return [*_values()]


def _flat(node: Any, name: str):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value
