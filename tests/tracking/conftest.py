"""The server that stands in for W&B."""

import subprocess

import pytest
import wandb_server
from wandb_server import Recorder


@pytest.fixture(scope="session")
def openwandb(tmp_path_factory, request):
    try:
        program = wandb_server.install(request.config.cache.mkdir("openwandb"))
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{wandb_server.VERSION} cannot be installed here: {error}")
    process, address = wandb_server.start(program, tmp_path_factory.mktemp("openwandb"))
    yield address
    process.kill()
    process.wait()


@pytest.fixture
def server(openwandb):
    recorder = Recorder(openwandb)
    yield recorder
    recorder.stop()
