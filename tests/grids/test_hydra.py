"""Hydra's habits: its launchers and sweepers, its interpolations, its own tests of a launcher."""

import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite
from packaging.version import Version

from smallbatch import store

pytestmark = pytest.mark.trains
Plugins.instance()  # found now, since after each of Hydra's tests only what was known before it is known

REPOSITORY = Path(__file__).parents[2]
SMALL = ["epochs=1", "data.train_size=64", "data.test_size=40", "machine.accelerator=cpu", "base_lr=1/4096"]
# A sweeper that optimises, in short; and a resolver.
OPTIMISER = """
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

OmegaConf.register_new_resolver("twice", lambda x: 2 * x, replace=True)

class Optimiser(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments):
        scores = {}
        for index, m in enumerate((8, 16)):
            jobs = self.launcher.launch([[*arguments, f"batch_size={m}"]] * 2, 2 * index)
            scores[m] = [job.return_value for job in jobs]
        print("scores", scores)

ConfigStore.instance().store(group="hydra/sweeper", name="optimiser", node={"_target_": f"{__name__}.Optimiser"})
"""
# What a user keeps beside our conf/.
EXPERIMENT = """
# @package _global_
defaults:
  - override /model: tiny
hydra:
  sweeper:
    params: {batch_size: "8,16"}
"""
TINY = "{_target_: smallbatch.models.resnet.ResNet, name: tiny, depth: 8}"


@pytest.fixture(autouse=True)
def _hydra_of_its_own(monkeypatch):
    """What other tests composed left a Hydra that is open, of a version base that Hydra's own tests do not expect."""
    GlobalHydra.instance().clear()
    if hydra.__version__.startswith("1.3"):  # later ones have one behaviour
        monkeypatch.setattr(hydra.version.VersionBase.instance(), "version_base", Version("1.1"))
    yield
    GlobalHydra.instance().clear()


@pytest.mark.parametrize(("launcher_name", "overrides"), [("local", [])])
class TestLauncher(LauncherTestSuite):
    """Hydra's own."""


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/job_logging=disabled", "hydra/launcher=local"])]
)
class TestIntegration(IntegrationTestSuite):
    """Hydra's own."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hydra")
    for file, text in {
        "hydra_plugins/optimiser.py": OPTIMISER,
        "conf/experiment/mine.yaml": EXPERIMENT,
        "conf/model/tiny.yaml": TINY,
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return root


@pytest.fixture
def train(root, tmp_path):
    """`python src/train.py` to its end in an empty folder: exit status, output, errors, ended runs by batch size."""

    def train(*words: str) -> tuple[int, str, str, list[store.Record]]:
        command = [sys.executable, str(REPOSITORY / "src/train.py"), *words, *SMALL, f"data.root={root}/data"]
        environment = os.environ | {"PYTHONPATH": str(root), "SEED": "5", "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=600)
        records = [record for path in tmp_path.glob("**/runs") for _, record in store.read_all(path)]
        records.sort(key=lambda record: record.run.batch_size)
        return ended.returncode, ended.stdout, ended.stderr, records

    return train


def test_of_hydras_own_sweeper_a_point_that_cannot_be_trained_stops_no_other_and_fails_it(train):
    code, output, errors, records = train(
        "-m", "norm=batch", "bn_batch_size=3,4", "batch_size=8,16", "hydra/sweeper=basic"
    )
    assert code == 1
    assert errors.splitlines()[-1].startswith("error: bn_batch_size=3 does not divide batch_size=8")
    assert [(record.run.batch_size, record.run.bn_batch_size) for record in records] == [(8, 4), (16, 4)]
    assert output.count(": finished, score") == 2


@pytest.mark.long
def test_a_sweeper_that_optimises_gets_the_scores_even_of_one_run_twice_at_a_time(train):
    words = ["hydra/sweeper=optimiser", "hydra/launcher=local", "seed=${twice:2}", "data.augment=true"]
    code, output, errors, records = train("-m", *words)
    assert (code, errors) == (0, "")
    scores = {record.run.batch_size: [record.result["score"]] * 2 for record in records}
    assert output.splitlines()[-1] == f"scores {scores}"
    assert [(record.run.batch_size, record.run.seed) for record in records] == [(8, 4), (16, 4)]


@pytest.mark.long
def test_a_grid_takes_what_a_run_takes_a_folder_of_configs_interpolations_resolvers_and_jobs_of_their_own_folder(
    train, root, tmp_path
):
    """And the sweep of an experiment's file."""
    words = ["+experiment=mine", "hydra/launcher=local", "hydra.job.chdir=true", "hydra.sweep.dir=job"]
    words += [
        "seed=${oc.env:SEED}",
        "weight_decay=${twice:0.25}",
        "store=${now:%Y-%f}/runs",
        "wandb.group=${hydra:job.name}",
    ]
    code, _, errors, records = train("--config-dir", f"{root}/conf", "-m", *words)
    assert (code, errors) == (0, "")
    found = [(r.run.model["name"], r.run.batch_size, r.run.seed, r.run.weight_decay) for r in records]
    assert found == [("tiny", 8, 5, 0.5), ("tiny", 16, 5, 0.5)]
    assert len(list(tmp_path.glob("*/runs"))) == 1
    assert not list((tmp_path / "job").iterdir())
