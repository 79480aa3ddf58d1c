"""What a run asks of a Ray cluster, and what is told where that cannot be had. Ray itself is not needed."""

import pytest

from hydra_plugins import ray_launcher
from hydra_plugins.ray_launcher import RayLauncher, check, needs
from smallbatch.compose import compose
from smallbatch.errors import ConfigError

CPU, GPU = {"CPU": 4.0, "memory": 1e9}, {"CPU": 2.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("words", "num_cpus", "num_gpus", "machines", "asked"),
    [
        ([], None, None, [CPU], (1, 0)),
        ([], None, None, [CPU, GPU], (1, 1)),
        (["machine.accelerator=cpu"], None, None, [CPU, GPU], (1, 0)),
        (["machine.accelerator=gpu"], None, None, [CPU], (1, 1)),  # one may come
        (["machine.threads=3"], None, None, [CPU], (3, 0)),
        (["machine.threads=3"], 0.5, 0.25, [CPU], (0.5, 0.25)),
        ([], 0, 0, [GPU], (0, 0)),
    ],
)
def test_a_run_takes_its_threads_and_a_gpu_where_there_are_some(words, num_cpus, num_gpus, machines, asked):
    taken = needs(compose(words), num_cpus, num_gpus, machines)
    assert (taken["CPU"], taken["GPU"]) == asked


def test_what_no_machine_has_is_refused_or_in_a_cluster_that_may_grow_said(capsys):
    check({"CPU": 2.0, "GPU": 1.0}, [CPU, GPU], grows=False)
    check({"CPU": 4.0, "GPU": 0.0}, [CPU, GPU], grows=True)
    assert capsys.readouterr() == ("", "")
    why = "hydra/launcher=ray: no machine has num_cpus=4 and num_gpus=1; there are 4 and 0, 2 and 8"
    with pytest.raises(ConfigError, match=why):
        check({"CPU": 4.0, "GPU": 1.0}, [CPU, GPU], grows=False)
    check({"CPU": 4.0, "GPU": 1.0}, [CPU, GPU], grows=True)
    assert capsys.readouterr().err == f"{why}; waiting for one that has\n"


def test_ray_that_is_not_installed_is_told_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(ray_launcher, "find_spec", lambda name: None)
    launcher = RayLauncher(None, None, None, 3)
    with pytest.raises(ConfigError, match=r"Ray is not installed: pip install '\.\[ray\]'"):
        launcher.setup(hydra_context=None, task_function=None, config=None)


@pytest.mark.parametrize(
    ("asked", "variable", "address"),
    [(None, None, "local"), (None, "head:6379", "head:6379"), ("auto", "head:6379", "auto"), ("local", "x:1", "local")],
)
def test_the_address_is_the_one_asked_for_or_rays_own_or_here(monkeypatch, asked, variable, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert RayLauncher(asked, None, None, 3).address == address
