"""Weights & Biases: one W&B run per run, whatever happens, and nothing that happens there reaches training."""

import csv
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from wandb_server import KEY, Recorder, login

from smallbatch import lock, store
from smallbatch.compose import compose
from smallbatch.errors import ConfigError
from smallbatch.grids.expand import Grid, expand
from smallbatch.grids.sweep import for_points
from smallbatch.run import make_run
from smallbatch.tracking import live, place
from smallbatch.training.fit import KeepRun
from smallbatch.training.module import SmallBatch
from train import train

pytestmark = pytest.mark.trains

FORK = multiprocessing.get_context("forkserver")  # a fresh wandb for each child, without its import
TINY = ["data.train_size=64", "data.test_size=40", "progress=false", "machine.accelerator=cpu", "logger=wandb"]
EPOCHS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture(scope="module", autouse=True)
def _warm(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(root))  # no login of the person who runs the tests
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
        yield


@pytest.fixture
def config(root, tmp_path):
    """Overrides → the run and its config, in a store of the test's own."""

    def make(*overrides: str):
        cfg = compose([*TINY, f"epochs={EPOCHS}", f"data.root={root}/data", f"store={tmp_path}/runs", *overrides])
        return make_run(cfg), cfg

    return make


# --- children


def _child(run, cfg, environment, sabotage):
    os.environ.update(environment)
    if sabotage:
        sabotage()
    said = Path(cfg.store).parent / "said"
    place.PASSED += ("WANDB__FILE_STREAM_TRANSMIT_INTERVAL",)  # seconds, for the uploader
    with suppress(KeyboardInterrupt):
        train(cfg, lambda line: _append(said, line))
    _append(said.with_name("trained"), str(time.time()))


def _append(path, line):
    with path.open("a") as file:
        file.write(line + "\n")


def start(run, cfg, sabotage=None, **environment):
    # Said again: the server that forks has the surroundings of the first test that started it.
    around = {name: os.environ[name] for name in ("HOME", "WANDB_BASE_URL")}
    process = FORK.Process(target=_child, args=(run, cfg, around | environment, sabotage))
    process.start()
    return process


def finish(run, cfg, sabotage=None, **environment) -> int:
    process = start(run, cfg, sabotage, **environment)
    process.join(120)
    return process.exitcode


def said(cfg) -> list[str]:
    path = Path(cfg.store).parent / "said"
    return path.read_text().splitlines() if path.exists() else []


def after_epoch_two(act):
    keep = KeepRun.on_train_epoch_end

    def keep_and_act(self, trainer, module):
        keep(self, trainer, module)
        if len(module.rows) == 2:
            act(self.path)

    KeepRun.on_train_epoch_end = keep_and_act


def die_after_epoch_two():
    def die(path):
        wait_for(lambda: any(path.parents[1].glob("wandb/offline-run-*/*.wandb")))
        os.kill(os.getpid(), signal.SIGKILL)

    after_epoch_two(die)


def interrupt_after_epoch_two():
    def interrupt(path):
        raise KeyboardInterrupt

    after_epoch_two(interrupt)


def fail_at_once():
    def failing(self, block, index):
        raise RuntimeError("broken on purpose")

    SmallBatch.training_step = failing


# --- offline, read back


def offline_folders(cfg) -> list[Path]:
    return sorted((Path(cfg.store).parent / "wandb").glob("offline-run-*"))


def inspect(folder: Path) -> list[dict]:
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", folder]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    return [json.loads(line) for line in lines]


def history(records: list[dict]) -> list[dict]:
    rows = [record["history"] for record in records if record["type"] == "history"]
    assert [row["item"]["epoch"] for row in rows] == [row["step"]["num"] for row in rows]
    return [{k: v for k, v in row["item"].items() if not k.startswith("_")} for row in rows]


def exit_code(records: list[dict]) -> int | None:
    return next((record["exit"]["exit_code"] for record in records if record["type"] == "exit"), None)


def summary(records: list[dict]) -> dict:
    merged: dict = {}
    for record in records:
        merged |= record.get("summary", {}).get("update", {})
    return merged


def rows(cfg, run) -> list[dict]:
    with (store.folder(Path(cfg.store), run) / "epochs.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def computed(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]


def test_an_offline_run_has_the_rows_of_its_folder_and_says_once_how_to_upload(config):
    run, cfg = config("batch_size=8", "wandb.tags=[a,b]", "wandb.notes=some words", "wandb.group=mine")
    assert finish(run, cfg) == 0
    (folder,) = offline_folders(cfg)
    records = inspect(folder)
    (opened,) = (record["run"] for record in records if record["type"] == "run")
    expected = {"run_id": run.key, "display_name": run.label, "run_group": "mine", "job_type": "train"}
    assert expected | {"project": "smallbatch", "notes": "some words", "tags": ["a", "b"]} == {
        k: opened.get(k) for k in (*expected, "project", "notes", "tags")
    }
    settings = opened["config"]["update"]
    assert (settings["batch_size"], settings["base_lr"], settings["log2_base_lr"]) == (8, 2**-12, -12)
    assert json.loads(settings["run"]) == run.to_dict()
    assert history(records) == rows(cfg, run)
    record = store.read(store.folder(Path(cfg.store), run))
    machine = record.result["machine"]
    del machine["host"]
    sent = summary(records)
    assert {k: sent[k] for k in record.result} == record.result
    assert sent["best_epoch"] == best_epoch(record.rows)
    assert exit_code(records) == 0
    (line,) = said(cfg)
    assert line.startswith("W&B: offline, no login for http://127.0.0.1:1; upload later with `wandb sync ")
    assert line.endswith("/wandb/offline-run-*` or `python src/publish.py`")


def best_epoch(rows: list[dict]) -> int:
    return max(range(len(rows)), key=lambda i: rows[i]["test_accuracy"]) + 1


def test_w_and_b_changes_no_number(config):
    run, cfg = config("batch_size=8")
    assert finish(run, cfg) == 0
    with_wandb = rows(cfg, run)
    _, plain = config("batch_size=8", "logger=none", f"store={cfg.store}/../plain")
    meant = {f"WANDB_{name}": "? ?" for name in ("MODE", "PROJECT", "ENTITY", "BASE_URL", "API_KEY")}
    assert finish(run, plain, **OTHERS | meant) == 0
    assert computed(rows(plain, run)) == computed(with_wandb)
    assert len(said(cfg)) == 1  # of the first
    assert not (store.folder(Path(plain.store), run) / store.NOTE).exists()


def test_a_killed_offline_run_is_afterwards_one_folder_with_each_epoch_once(config):
    run, cfg = config("batch_size=8")
    assert finish(run, cfg, die_after_epoch_two) == -signal.SIGKILL
    (first,) = offline_folders(cfg)
    assert finish(run, cfg) == 0
    (second,) = offline_folders(cfg)
    assert second != first
    assert history(inspect(second)) == rows(cfg, run)
    _, again = config("batch_size=8", "overwrite=true")
    assert finish(run, again) == 0
    (third,) = offline_folders(cfg)
    assert third != second
    assert history(inspect(third)) == rows(cfg, run)


@pytest.mark.parametrize(
    ("overrides", "sabotage", "code", "status"),
    [
        (["base_lr=1e6"], None, 0, "diverged"),
        ([], fail_at_once, 1, "failed"),
        ([], interrupt_after_epoch_two, 255, None),
    ],
)
def test_a_diverged_run_ends_as_finished_a_failed_or_interrupted_one_does_not(
    config, overrides, sabotage, code, status
):
    run, cfg = config("batch_size=8", *overrides)
    finish(run, cfg, sabotage)
    (folder,) = offline_folders(cfg)
    records = inspect(folder)
    assert exit_code(records) == code
    assert summary(records).get("status") == status


OTHERS = {  # variables that decide nothing
    **{f"WANDB_{name}": "theirs" for name in ("RUN_ID", "SWEEP_ID", "NAME", "RUN_GROUP", "TAGS", "NOTES", "JOB_TYPE")},
    **{f"WANDB_{name}": "must" for name in ("RESUME", "SILENT", "CONSOLE", "DISABLE_SERVICE", "INIT_TIMEOUT")},
    **{f"WANDB_{name}": "/nowhere/at/all" for name in ("DIR", "CONFIG_PATHS", "CACHE_DIR", "DATA_DIR", "SERVICE")},
    "WANDB_RESUME_FROM": "a?_step=1",
    "WANDB_HTTP_TIMEOUT": "0",
}


def test_the_key_is_in_no_file_and_other_variables_decide_nothing(config):
    run, cfg = config("batch_size=8", "wandb.mode=offline")
    assert finish(run, cfg, WANDB_API_KEY=KEY, **OTHERS) == 0
    files = [path for path in Path(cfg.store).parent.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    records = inspect(*offline_folders(cfg))
    (opened,) = (record["run"] for record in records if record["type"] == "run")
    assert (opened["run_id"], opened["display_name"]) == (run.key, run.label)
    assert not {"run_group", "tags", "sweep_id", "notes"} & opened.keys()
    assert history(records) == rows(cfg, run)
    sweep, offline = said(cfg)
    assert sweep.startswith("W&B: a run's id is its key, whatever WANDB_SWEEP_ID, WANDB_RUN_ID says")
    assert offline.startswith("W&B: offline; upload later with ")


# --- trouble


def test_a_folder_that_cannot_be_written_costs_one_line_and_no_run(config, tmp_path):
    run, cfg = config("batch_size=8", "wandb.mode=offline")
    (tmp_path / "wandb").write_text("in the way")
    assert finish(run, cfg) == 0
    assert len(store.read(store.folder(Path(cfg.store), run)).rows) == EPOCHS
    assert "File exists" in said(cfg)[1]


@pytest.mark.parametrize("fault", ["500", "hang"])
def test_a_server_that_answers_500_or_never_makes_the_run_offline(config, fault):
    server = Recorder(None)
    server.fault = fault
    run, cfg = config("batch_size=8")
    assert finish(run, cfg, WANDB_BASE_URL=server.address, WANDB_API_KEY=KEY) == 0
    server.stop()
    assert said(cfg)[0].startswith(f"W&B: offline, {server.address} does not answer; upload later")
    assert history(inspect(*offline_folders(cfg))) == rows(cfg, run)


def test_online_for_certain_but_without_a_login_is_refused_before_anything_is_written(config):
    _, cfg = config("batch_size=8", "wandb.mode=online")
    with pytest.raises(ConfigError, match=r"wandb.mode=online: no login for http://127\.0\.0\.1:1; say `wandb login`"):
        train(cfg, print)
    assert not Path(cfg.store).exists()


@pytest.mark.parametrize("override", ["logger=wanbd", "wandb.mode=onlin", "wandb.projcet=x"])
def test_a_typo_is_refused(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        compose([override])


def test_where_runs_are_logged_is_no_part_of_their_key(config):
    plain, _ = config("logger=none")
    elsewhere, _ = config("wandb.project=x", "wandb.tags=[y]", "wandb.notes=z", "wandb.mode=offline")
    assert plain.key == elsewhere.key


# --- online


def sent(server: Recorder, run) -> list[dict]:
    """The history that W&B has, as epoch rows."""
    assert [row["_step"] for row in server.history[run.key]] == [row["epoch"] for row in server.history[run.key]]
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in server.history[run.key]]


def wait_after_epoch_two():
    """Until the test says go on."""
    after_epoch_two(lambda path: wait_for(lambda: Path(os.environ["GO_ON"]).exists()))


def wait_for(happens):
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_and_send_two(run, cfg, server):
    """A child that waits after epoch 2, when W&B has that."""
    process = start(run, cfg, wait_after_epoch_two, **login(server), GO_ON=f"{cfg.store}/../go-on")
    wait_for(lambda: len(server.history[run.key]) == 2 or not process.is_alive())
    return process


@pytest.mark.long
def test_a_killed_online_run_goes_on_in_its_w_and_b_run_and_overwrite_replaces_it(config, server):
    run, cfg = config("batch_size=8", "wandb.project=kill")
    process = start_and_send_two(run, cfg, server)
    process.kill()
    process.join()
    assert server.exits[run.key] == []
    assert finish(run, cfg, **login(server)) == 0
    assert sent(server, run) == rows(cfg, run)
    assert server.exits[run.key] == [0]
    before = rows(cfg, run)
    _, again = config("batch_size=8", "wandb.project=kill", "overwrite=true")
    assert finish(run, again, **login(server)) == 0
    assert sent(server, run) == rows(cfg, run) != before  # other seconds
    assert said(cfg) == []


FAULTS = ("refuses", "accepts", "hang", "slow", "half", "500", "401")


def test_whatever_the_server_does_a_process_ends_within_ten_seconds_of_its_run(config, openwandb, tmp_path):
    recorders = {fault: Recorder(openwandb) for fault in FAULTS[2:]}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        addresses = {"refuses": "http://127.0.0.1:1", "accepts": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        processes = {}
        for fault in FAULTS:
            if fault in recorders:
                recorders[fault].fault = fault
                addresses[fault] = recorders[fault].address
            run, cfg = config("batch_size=64", "epochs=1", "wandb.mode=online", f"store={tmp_path}/{fault}/runs")
            around = {"WANDB_BASE_URL": addresses[fault], "WANDB_API_KEY": KEY}
            processes[fault] = start(run, cfg, **around), run, cfg
        ended = {}
        while len(ended) < len(FAULTS):
            multiprocessing.connection.wait([p.sentinel for f, (p, *_) in processes.items() if f not in ended])
            ended |= {f: time.time() for f, (p, *_) in processes.items() if f not in ended and not p.is_alive()}
    for fault, (process, run, cfg) in processes.items():
        seconds = ended[fault] - float((tmp_path / fault / "trained").read_text())
        print(f"{fault}: {seconds:.1f} s, {said(cfg)}")
        assert process.exitcode == 0
        assert seconds < 10
        assert store.read(store.folder(Path(cfg.store), run)).result["status"] == "finished"
        lines = said(cfg)
        assert all(line.endswith("What is missing there: python src/publish.py") for line in lines)
        assert lines or sent(recorders[fault], run) == rows(cfg, run)
        assert bool(lines) or fault == "slow"
    for recorder in recorders.values():
        recorder.stop()


def _train_two(points, environment):
    """The second when the test says go on."""
    os.environ.update(environment)
    said = Path(points[0][1].store).parent / "said"
    for _, cfg in points:
        train(cfg, lambda line: _append(said, line))
        _append(said.with_name("trained"), "one")
        wait_for(Path(environment["GO_ON"]).exists)


def test_the_runs_after_a_troubled_one_are_logged_when_the_server_is_back(config, server, tmp_path):
    points = [config(f"batch_size={m}", "wandb.project=back", "wandb.mode=online", "epochs=1") for m in (64, 32)]
    server.fault = "500"
    around = login(server) | {"GO_ON": str(tmp_path / "go-on")}
    process = FORK.Process(target=_train_two, args=(points, around))
    process.start()
    wait_for(lambda: len(server.bodies) > 0 and (tmp_path / "trained").exists())
    time.sleep(0.2)  # for the answer
    server.fault = ""
    (tmp_path / "go-on").touch()
    process.join(60)
    (first, _), (second, cfg) = points
    assert sent(server, first) == []
    assert sent(server, second) == rows(cfg, second)
    (line,) = said(cfg)
    assert line.startswith("W&B: the server does not answer; training is not affected.")


@pytest.mark.long
def test_a_server_that_goes_away_in_the_middle_costs_one_line_and_publish_completes_the_run(config, server, tmp_path):
    run, cfg = config("batch_size=8", "wandb.project=away")
    process = start_and_send_two(run, cfg, server)
    server.fault = "hang"
    Path(cfg.store, "../go-on").touch()
    process.join(120)
    server.fault = ""
    assert process.exitcode == 0
    assert len(store.read(store.folder(Path(cfg.store), run)).rows) == EPOCHS
    (line,) = said(cfg)
    assert line.startswith("W&B: not done 7 s after the last run")
    assert publish(server, tmp_path) == "1 runs: 1 uploaded, 0 there already"
    assert sent(server, run) == rows(cfg, run)


def _publish(words, environment, out):
    os.environ.update(environment)
    import publish

    sys.argv, sys.stdout = ["publish.py", *words], out.open("w")
    publish.main()
    sys.stdout.flush()


def publish(server: Recorder, folder: Path, *words: str) -> str:
    out = folder / "out"
    process = FORK.Process(target=_publish, args=([f"store={folder / 'runs'}", *words], login(server), out))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return out.read_text().splitlines()[-1]


def test_publish_and_wandb_sync_upload_each_run_once(config, server, tmp_path):
    synced, cfg = config("batch_size=8", "wandb.project=later", "wandb.group=ours")
    assert finish(synced, cfg) == 0
    command = [Path(sys.executable).with_name("wandb"), "sync", *offline_folders(cfg)]
    subprocess.run(command, cwd=tmp_path, env=os.environ | login(server), capture_output=True, check=True)
    assert sent(server, synced) == rows(cfg, synced)
    offline, cfg = config("batch_size=16", "wandb.project=later", "wandb.group=ours", "wandb.tags=[a]")
    assert finish(offline, cfg) == 0
    untracked, plain = config("batch_size=32", "logger=none")
    assert finish(untracked, plain) == 0
    assert publish(server, tmp_path, "wandb.project=later") == "3 runs: 2 uploaded, 1 there already"
    for run in (synced, offline, untracked):
        assert sent(server, run) == rows(cfg, run)
        assert server.exits[run.key] == [0]
    opened = server.opened[offline.key][0]
    assert (opened["groupName"], opened["tags"], opened["displayName"]) == ("ours", ["a"], offline.label)
    assert not list((tmp_path / "wandb").glob(f"offline-run-*-{offline.key}"))  # nothing for `wandb sync` to do again
    requests = len(server.bodies)
    assert publish(server, tmp_path, "wandb.project=later") == "3 runs: 0 uploaded, 3 there already"
    assert not [body for body in server.bodies[requests:] if b"UpsertBucket" in body]
    assert not [body for body in server.bodies if KEY.encode() in body]


def fail_at_four():
    step = SmallBatch.training_step

    def fragile(self, block, index):
        if self.run.batch_size == 4:
            raise RuntimeError("no fours, please")
        return step(self, block, index)

    SmallBatch.training_step = fragile


def _train_all(points, environment):
    """As a grid's worker does: one run after the other, but for those that another process has."""
    os.environ.update(environment)
    live.PATIENCE = 60.0  # this is about what W&B gets, on a busy machine too
    fail_at_four()
    said = Path(points[0][1].store).parent / "said"
    for _, cfg in points:
        with suppress(lock.Busy):
            train(cfg, lambda line: _append(said, line))


def test_twelve_runs_in_two_processes_are_twelve_w_and_b_runs_with_their_states(config, server, tmp_path):
    axes = itertools.product((4, 8, 16), ("1/1024", "1e6"), (0, 1))
    grid = [config(f"batch_size={m}", f"base_lr={rate}", f"seed={s}", "epochs=1") for m, rate, s in axes]
    for _, cfg in grid:
        cfg.grid_point, cfg.wandb.mode = True, "online"
    orders = (grid[:7], grid[:4:-1])  # two runs are in both
    processes = [FORK.Process(target=_train_all, args=(order, login(server))) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    records = [record for _, record in store.read_all(tmp_path / "runs")]
    assert len(records) == len(server.exits) == len(server.opened) == 12
    for record in records:
        key, failed = record.run.key, record.result["status"] == "failed"
        assert failed == (record.run.batch_size == 4)
        assert server.exits[key] == [int(failed)]
        assert len(sent(server, record.run)) == len(record.rows) == (0 if failed else 1)
        assert server.opened[key][0]["displayName"] == record.run.label
    assert said(grid[0][1]) == []


# --- what a grid tells its points


@pytest.mark.parametrize(
    ("arguments", "group"),
    [
        (["figure=fig01", "scale=smoke", "store=x"], "fig01-smoke"),
        (["batch_size=8,16", "base_lr=1/512", "logger=wandb", "wandb.tags=[a]"], "batch_size=8,16 base_lr=1/512"),
        (["data=folder", "data.path=/home/me/patients", "data.root=/x", "seed=1,2"], "data=folder seed=1,2"),
        (["batch_size=8,16", 'wandb.group="it\'s mine"'], "it's mine"),
        (["batch_size=8,16", "epochs=${oc.env:E,1}"], "batch_size=8,16 epochs=${oc.env:E,1}"),
        (["a" * 127, "epochs=${oc.env:E,1}"], "a" * 127 + " "),
        (["a" * 117, "epochs=${oc.env:E,1}"], "a" * 117 + " epochs=${o"),
    ],
)
def test_a_grid_settles_the_mode_once_and_names_the_group(arguments, group, capsys, root):
    own = [word for word in arguments if word.startswith("wandb.group")]
    cfg = compose(["logger=wandb", "wandb.mode=offline", *own])
    grid = expand([*arguments, f"data.root={root}/data"]) if "figure=fig01" in arguments else Grid([], [], [])
    told = OmegaConf.create(for_points(cfg, grid, arguments))
    assert (told.mode, told.project, told.group) == ("offline", "smallbatch", group)
    assert "entity" not in told
    assert capsys.readouterr().err.startswith(
        "W&B: offline; upload later with `wandb sync outputs/wandb/offline-run-*`"
    )
    assert for_points(compose([]), grid, arguments) == {}
