"""`hydra/launcher=ray` on two Ray nodes, which are processes of this machine; workers and nodes are killed."""

import csv
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.test_utils.launcher_common_tests import LauncherTestSuite
from packaging.version import Version

from smallbatch import lock, store

# A token of the tests' own: Ray would write one to the home folder. It reads these when it is imported.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
pytestmark = [pytest.mark.cluster, pytest.mark.trains]
Plugins.instance()  # found now, since after each of Hydra's tests only what was known before it is known

REPOSITORY = Path(__file__).parents[2]
SMALL = ["data.train_size=64", "data.test_size=40", "machine.accelerator=cpu", "base_lr=1/4096"]
# A cluster of a node with one processor; each line of input adds such a node, or with a number kills that one's raylet.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes = []
while True:
    print(cluster.address, len(nodes), flush=True)
    word = sys.stdin.readline().strip()
    if not word:
        break
    if word == "add":
        nodes.append(cluster.add_node(num_cpus=1))
    else:
        nodes[int(word)].kill_raylet()
cluster.shutdown()
"""
# A network that ends every worker of Ray's.
DEADLY = """
import os
from smallbatch.models.alexnet import AlexNet

class Deadly(AlexNet):
    def forward(self, x):
        if "RAY_RAYLET_PID" in os.environ:
            os._exit(3)
        return super().forward(x)
"""


class Cluster:
    """A cluster in a process of its own, so that its settings are not this one's."""

    def __init__(self, folder: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.address, self.nodes = self._answer()

    def say(self, word: str) -> None:
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        _, self.nodes = self._answer()

    def _answer(self) -> tuple[str, int]:
        address, nodes = self.process.stdout.readline().split()
        return address, int(nodes)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("elsewhere"))
    yield cluster
    cluster.process.communicate(timeout=60)  # closes its input, which ends it


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def start(root):
    """Start `python src/train.py -m` on the small digits and a store, in its own process group."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children would inherit SIG_IGN

    (root / "deadly.py").write_text(DEADLY)

    def popen(folder: Path, *words: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(root)}
        command = [sys.executable, REPOSITORY / "src/train.py", "-m", *words, *SMALL, f"data.root={root}"]
        return subprocess.Popen(
            command, cwd=folder, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return popen


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, output, errors."""
    try:
        output, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    return process.returncode, output, errors


def until(condition, seconds: float = 300.0):
    """What a condition gives when it gives something."""
    deadline = time.monotonic() + seconds
    while not (given := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return given


def training(folder: Path) -> dict[Path, int]:
    """The runs that have an epoch behind them and are in training, and the process of each."""
    paths = [file.parent for file in folder.glob("outputs/runs/*/epochs.csv")]
    notes = {path: lock.holder(path) or "" for path in paths if not (path / "result.json").exists()}
    return {path: int(note.split()[1]) for path, note in notes.items() if note.startswith("process ")}


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def rows(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The epochs of each run as written, without the seconds."""
    found = {}
    for path, record in store.read_all(folder / "outputs/runs"):
        assert record.result["status"] == "finished"
        with (path / "epochs.csv").open() as file:
            found[path.name] = [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]
    return found


GRID = ["batch_size=2,4", "seed=0,1", "epochs=60"]


@pytest.fixture(scope="module")
def expected(start, tmp_path_factory):
    """The grid's rows, trained in one process."""
    folder = tmp_path_factory.mktemp("basic")
    code, _, errors = end(start(folder, *GRID))
    assert (code, errors) == (0, "")
    return rows(folder)


def test_a_killed_worker_and_a_killed_node_cost_nothing_but_time_and_no_bit(start, cluster, expected, tmp_path):
    cluster.say("add")
    driver = start(tmp_path, *GRID, "hydra/launcher=ray", f"hydra.launcher.address={cluster.address}")
    first = until(lambda: now if len(now := training(tmp_path)) == 2 else None)
    victim, process = next(iter(first.items()))
    lines = (victim / "epochs.csv").read_text()
    os.kill(process, signal.SIGKILL)
    until(lambda: training(tmp_path).get(victim, process) != process)  # another worker goes on with it
    assert (victim / "epochs.csv").read_text().startswith(lines)  # where it was: with the seconds of before

    running = until(lambda: now if len(now := training(tmp_path)) == 2 else None)
    nodes = {path: parent(process) for path, process in running.items()}
    assert len(set(nodes.values())) == 2
    cluster.say(str(cluster.nodes - 1))
    lost = until(lambda: next((path for path, node in nodes.items() if not is_alive(node)), None))
    until(lambda: not is_alive(running[lost]))  # a worker does not outlive its node
    code, output, errors = end(driver)
    assert code == 0, errors
    assert all(line.startswith("ray: ") for line in errors.splitlines()), errors
    assert output.splitlines()[-1] == "4 finished"
    assert rows(tmp_path) == expected


@pytest.mark.parametrize(
    ("joined", "what", "status"),
    [(True, signal.SIGINT, 130), (False, signal.SIGINT, 130), (False, signal.SIGTERM, 143)],
)
def test_a_signal_ends_the_tasks_and_a_cluster_of_our_own_alone(start, cluster, tmp_path, joined, what, status):
    address = [f"hydra.launcher.address={cluster.address}"] if joined else []
    driver = start(tmp_path, "batch_size=2", "epochs=500", "hydra/launcher=ray", *address)
    ((path, process),) = until(lambda: training(tmp_path)).items()
    node = parent(process)
    if what == signal.SIGINT:
        os.killpg(driver.pid, what)  # as a terminal sends it
    else:
        driver.send_signal(what)
    code, output, errors = end(driver)
    assert code == status, errors
    assert "Traceback" not in output + errors
    assert errors.splitlines()[-1] == "interrupted: the same command goes on from here"
    until(lambda: not lock.holder(path), 10)
    assert not (path / "result.json").exists()
    if joined:
        assert is_alive(node)
    else:
        until(lambda: not is_alive(node), 10)


def test_a_cluster_of_our_own_ends_with_the_grid_and_its_cores_change_no_bit(start, expected, tmp_path):
    """A task of two cores has OMP_NUM_THREADS=2; a run has machine.threads."""
    driver = start(tmp_path, *GRID, "hydra/launcher=ray", "hydra.launcher.num_cpus=2")
    node = until(lambda: {parent(process) for process in training(tmp_path).values()}).pop()
    code, output, errors = end(driver)
    assert (code, errors) == (0, "")
    assert output.splitlines()[-1] == "4 finished"
    assert rows(tmp_path) == expected
    until(lambda: not is_alive(node), 10)


def refusal(ended: tuple[int, str, str]) -> str:
    """What is said of a grid of which nothing can be trained, beside the names of what is not."""
    code, _, errors = ended
    assert code == 1
    lines = [line for line in errors.splitlines() if not line.startswith(("not trained: ", "ray: A worker died"))]
    assert len(lines) == 1, errors
    return lines[0]


def test_what_fails_everywhere_is_one_line_with_the_cause(start, cluster, tmp_path):
    ray = ["batch_size=2,4", "epochs=1", "hydra/launcher=ray"]
    started = time.monotonic()
    nobody = refusal(end(start(tmp_path, *ray, "hydra.launcher.address=127.0.0.1:1")))
    assert nobody.endswith("error: hydra/launcher=ray: no cluster at 127.0.0.1:1: [Errno 111] Connection refused")
    assert time.monotonic() - started < 60
    greedy = refusal(end(start(tmp_path, *ray, "hydra.launcher.num_cpus=1000")))
    assert greedy.startswith("error: hydra/launcher=ray: no machine has num_cpus=1000 and num_gpus=0; there are ")
    joined = [*ray, f"hydra.launcher.address={cluster.address}"]
    assert "has another value in each process" in refusal(end(start(tmp_path, *joined, "seed=${now:%f}")))
    deadly = refusal(end(start(tmp_path, *joined, "model._target_=deadly.Deadly", "hydra.launcher.max_retries=1")))
    assert deadly.startswith("the launcher broke off: The worker died unexpectedly")


def test_a_machine_without_our_folders_is_told(cluster, tmp_path):
    missing = tmp_path / "missing"
    script = f"""
from hydra_plugins import _ray_tasks as ray_tasks
ray_tasks.join("{cluster.address}")
ray_tasks.os.getcwd = lambda: "{missing}"
ray_tasks.run_all(print, [()], num_cpus=1)
"""
    asked = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True)
    why = f"hydra/launcher=ray: [Errno 2] No such file or directory: '{missing}'"
    assert f"ConfigError: {why}; all machines need the same paths as this one" in asked.stderr


@pytest.fixture
def _as_hydras_own_tests_expect(monkeypatch):
    GlobalHydra.instance().clear()
    if hydra.__version__.startswith("1.3"):  # later ones have one behaviour
        monkeypatch.setattr(hydra.version.VersionBase.instance(), "version_base", Version("1.1"))
    yield
    GlobalHydra.instance().clear()


@pytest.mark.usefixtures("_as_hydras_own_tests_expect")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("ray", [])])
class TestLauncher(LauncherTestSuite):
    """Hydra's own."""
