"""Where runs go in Weights & Biases: as configured, then as the environment says, checked before training.

Of the environment wandb sees what tells the server and the login, and nothing else: an id, a folder or a time-out
that somebody set for other runs would have ours collide, hang or fail.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from smallbatch.config import WandbMode, is_trial
from smallbatch.errors import ConfigError, SmallBatchError, one_line

PASSED = ("WANDB_BASE_URL", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CREDENTIALS_FILE", "WANDB_CONFIG_DIR")
QUIET = {  # to print nothing, and to be what we say wherever it runs
    **{"WANDB_SILENT": "true", "WANDB_SAGEMAKER_DISABLE": "true"},
    "WANDB_ERROR_REPORTING": "false",  # to W&B itself: it prints to the terminal when the server is away
}
OF_A_SWEEP = ("WANDB_SWEEP_ID", "WANDB_RUN_ID")
# W&B's other words for a mode; `shared` is for several writers of a run, and ours have one.
ALIASES = {"dryrun": "offline", "run": "online", "shared": "online"}
DEFAULT_PROJECT = "smallbatch"
ANSWER = 5.0  # seconds that a server gets to answer at all

Say = Callable[[str], None]


@contextmanager
def wandb_errors() -> Iterator[None]:
    """What W&B or the way to it raises, of many kinds, as a SmallBatchError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise SmallBatchError(f"W&B: {one_line(error)}") from None


@dataclass(frozen=True)
class Place:
    """Where runs go: `mode` online or offline; `folder` is the one that wandb makes its folder `wandb` in."""

    mode: str | None
    entity: str | None
    project: str
    group: str | None
    tags: tuple[str, ...]
    notes: str | None
    folder: Path

    @classmethod
    def of(cls, cfg: DictConfig) -> "Place":
        """As configured, else as in the environment; `mode` is None while it is to be found out. Raises ConfigError."""
        plain: Any = OmegaConf.to_container(cfg.wandb, enum_to_str=True)
        plain["mode"] = plain["mode"] or _mode(os.environ.get("WANDB_MODE"))
        plain["project"] = plain["project"] or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT
        plain["entity"] = plain["entity"] or os.environ.get("WANDB_ENTITY")
        return cls(**plain | {"tags": tuple(plain["tags"]), "folder": Path(cfg.store).absolute().parent})

    @property
    def files(self) -> Path:
        """Where wandb keeps its files, one folder a run."""
        return self.folder / "wandb"

    @property
    def told(self) -> dict[str, Any]:
        """What W&B is told of it, and a note keeps."""
        return {name: value for name, value in asdict(self).items() if name not in ("mode", "folder")}


def _mode(word: str | None) -> str | None:
    mode = ALIASES.get(word or "", word)
    if mode and mode not in list(WandbMode):
        raise ConfigError(f"WANDB_MODE={word}: choose {', '.join([*WandbMode, *ALIASES])}")
    return mode or None


def environment() -> dict[str, str]:
    """This process's, without the variables of W&B that it is not to see."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    ours = kept | {name: os.environ[name] for name in PASSED if os.environ.get(name)}
    return ours | QUIET


@contextmanager
def library() -> Iterator[Any]:
    """wandb, while the process has `environment`, which wandb reads at its import and at its setup."""
    before, ours = dict(os.environ), environment()
    for name in before.keys() - ours.keys():
        del os.environ[name]
    os.environ.update(ours)
    try:
        import wandb

        yield wandb
    finally:
        for name in QUIET:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if name.startswith("WANDB_")})


# --- before training


def is_followed(cfg: DictConfig) -> bool:
    """Whether W&B is to get the run."""
    return bool(cfg.logger.name == "wandb" and not is_trial(cfg) and Place.of(cfg).mode != "disabled")


def require(cfg: DictConfig, say: Say) -> None:
    """See that a run can be logged as asked for; a point of a grid need not, since the grid did.

    Raises ConfigError for a variable or setting that wandb does not take, and for online without a login.
    """
    if is_followed(cfg) and not cfg.grid_point:
        place = checked(Place.of(cfg), say)
        if place.mode:
            with_mode(place, say)


def settled(place: Place, say: Say) -> Place:
    """The place, checked and with a mode, which is said in one line. Raises ConfigError as `require` does."""
    return with_mode(checked(place, say), say)


def checked(place: Place, say: Say) -> Place:
    """The place itself; `say` hears of a sweep of W&B's. Raises ConfigError for what wandb does not take."""
    if place.mode == "disabled":
        return place
    given = {f"WANDB_{name}": os.environ.get(f"WANDB_{name}") for name in ("BASE_URL", "API_KEY")}
    by_variable = os.environ.get("WANDB_PROJECT") == place.project
    given["WANDB_PROJECT" if by_variable else "wandb.project"] = place.project
    with library() as wandb:
        for asked, value in given.items():
            try:
                wandb.Settings(**{asked[len("WANDB_") :].lower(): value} if value else {})
            except Exception as error:  # pydantic's or wandb's own; neither line shows a key
                reason = error.errors()[0]["msg"] if hasattr(error, "errors") else one_line(error)
                raise ConfigError(f"{asked}: {reason}") from None
    if present := [name for name in OF_A_SWEEP if os.environ.get(name)]:
        say(f"W&B: a run's id is its key, whatever {', '.join(present)} says, and it is no part of a W&B sweep")
    return place


def with_mode(place: Place, say: Say) -> Place:
    """The place with a mode, which is said in one line if it is offline. Raises ConfigError without a login."""
    mode, why = place.mode, ""
    if mode in (None, "online"):
        known, server = login()
        if not known and mode:
            raise ConfigError(f"wandb.mode=online: no login for {server}; say `wandb login`, or wandb.mode=offline")
        if not known:
            mode, why = "offline", f", no login for {server}"
        elif mode is None:
            mode, why = ("online", "") if answers() else ("offline", f", {server} does not answer")
    if mode == "offline":
        files = os.path.relpath(place.files)
        say(f"W&B: offline{why}; upload later with `wandb sync {files}/offline-run-*` or `python src/publish.py`")
    return replace(place, mode=mode)


def login() -> tuple[bool, str]:
    """Whether wandb would find credentials without asking, and the server they are for."""
    import requests

    with library() as wandb:
        settings = wandb.sdk.wandb_setup.singleton().settings  # wandb.setup would start a process
    netrc = requests.utils.get_netrc_auth(settings.base_url)
    return bool(settings.api_key or settings.identity_token_file or netrc), settings.base_url


def answers() -> bool:
    """Whether the W&B server can be reached now."""
    import requests

    try:
        return bool(requests.head(login()[1], timeout=ANSWER).status_code < 500)
    except requests.RequestException:
        return False
