"""The frozen run: what decides its numbers, its key, and how a config becomes one.

Light on purpose: no torch here, so that grids expand and skip quickly.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from smallbatch.config import LOSS, NAMED, Config, FolderData, Norm, Schedule
from smallbatch.errors import ConfigError, Undefined
from smallbatch.powers import format_power, parse_power
from smallbatch.ranges import check_ranges

# Raised by one whenever a change alters what a run computes, or a default below changes.
PROTOCOL = 1
OF_A_GRID = ("seeds", "settle", "hours")  # settings that no run has
MOST_NAME = 256  # characters
VARIED = ("batch_size", "base_lr", "bn_batch_size", "seed")  # what a sweep varies within one setting


@dataclass(frozen=True)
class Run:
    """One training run: everything that decides its numbers, and nothing else.

    `data` carries the fingerprint of the images' content instead of a path; `bn_batch_size` is
    None where it makes no difference (no batch norm, or equal to `batch_size`).
    """

    model: dict[str, Any]
    data: dict[str, Any]
    norm: Norm
    optimizer: dict[str, Any]
    schedule: Schedule
    batch_size: int
    base_lr: float
    bn_batch_size: int | None
    epochs: int
    weight_decay: float
    seed: int
    precision: str
    protocol: int = PROTOCOL
    loss: dict[str, Any] = field(default_factory=LOSS.copy)
    stop: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """Sixteen hex digits of the SHA-256 of what differs from the defaults."""
        text = json.dumps(identity(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """For people: `alexnet digits m=8 η̃=2^-9 s=0`."""
        norm = "" if self.norm.kind == "none" else f" {self.norm.kind}-norm"
        ghost = f" b={self.bn_batch_size}" if self.bn_batch_size else ""
        rate = format_power(self.base_lr)
        return f"{self.model['name']} {self.data['name']}{norm} m={self.batch_size}{ghost} η̃={rate} s={self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as stored in a run folder; the later `loss` and `stop` unless at their defaults."""
        plain = asdict(self, dict_factory=_plain)
        return {k: v for k, v in plain.items() if (k, v) not in (("loss", LOSS), ("stop", None))}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Run":
        """The inverse of `to_dict`. Raises TypeError where fields are missing or unknown, ValueError for unknown words.

        Settings of `norm` and `schedule` that did not exist when the run was stored are at their defaults.
        """
        groups = {"norm": Norm, "schedule": Schedule}
        typed = {name: kind(**stored[name]) for name, kind in groups.items() if name in stored}
        return cls(**{**stored, **typed})


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {name: str(value) if isinstance(value, Enum) else value for name, value in items}
    return {name: value for name, value in found.items() if (name, value) != ("_target_", None)}


_DEFAULTS = {schema._target_: vars(schema()) for schema in NAMED}


def _without_defaults(node: dict[str, Any], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """Drop `name` and what is at its default; keep `_target_`, which says whose defaults unless they are given."""
    if defaults is None:
        defaults = _DEFAULTS.get(node["_target_"], {})
    kept = {k: v for k, v in node.items() if k != "name" and (k not in defaults or defaults[k] != v)}
    return kept | {k: v for k, v in node.items() if k == "_target_" and v}


def identity(run: Run) -> dict[str, Any]:
    """What the key hashes: the run, less everything at its default."""
    groups = {
        "model": _without_defaults(run.model),
        "optimizer": _without_defaults(run.optimizer),
        "loss": _without_defaults(run.loss) if run.loss != LOSS else {},
        "stop": run.stop or {},
        "schedule": _without_defaults(vars(run.schedule), vars(Schedule())),
        "norm": _without_defaults(vars(run.norm), vars(Norm())) if run.norm.kind != "none" else {},
        "data": _without_defaults(run.data, vars(FolderData())),
    }
    scalars = {f.name: getattr(run, f.name) for f in fields(Run) if f.name not in groups}
    if run.precision == "32-true":
        del scalars["precision"]
    present = {k: v for k, v in {**groups, **scalars}.items() if v is not None and v != {}}
    return present | {"base_lr": float(run.base_lr).hex(), "weight_decay": float(run.weight_decay).hex()}


def setting(run: Run) -> str:
    """Eight hex digits over what a run has beside what sweeps vary."""
    rest = {k: v for k, v in identity(run).items() if k not in VARIED}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:8]


def make_run(cfg: DictConfig, describe: Any = None) -> Run:
    """Check one composed config and freeze it. Raises ConfigError (also for data that cannot be read).

    `describe` (see `smallbatch.data`) tells what the data are; by default by finding and reading them.
    """
    if describe is None:
        from smallbatch.data import describe  # numpy only; here so that schemas alone stay light

    try:
        plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    except OmegaConfBaseException as error:  # such as an interpolation of what is not there
        missing = isinstance(error, MissingMandatoryValue)
        why = "must be given, as key=value" if missing else str(error).partition("\n")[0]
        raise ConfigError(f"{error.full_key}: {why}") from None
    for name in OF_A_GRID:
        if plain.get(name) is not None:
            raise ConfigError(f"{name}={plain[name]}: is of python src/train.py -m … alone; one run has seed=…")
    _check_own(plain)
    _check(plain)
    m, norm = plain["batch_size"], Norm(**plain["norm"])
    images = describe(plain["data"])
    if m > images.train_size:
        raise Undefined(
            f"batch_size={m}: larger than the training set of {images.train_size} images "
            f"(data={images.name}); choose batch_size ≤ {images.train_size}"
        )
    for group in ("model", "optimizer", "loss"):
        plain[group].setdefault("name", plain[group]["_target_"].rpartition(".")[2].lower())
    run = Run(
        **{name: plain[name] for name in ("model", "optimizer", "loss", "stop", "epochs", "seed", "precision")},
        norm=norm,
        schedule=Schedule(**plain["schedule"]),
        data=images.identity | {"augment": plain["data"]["augment"]},
        batch_size=m,
        base_lr=parse_power(plain["base_lr"]),
        bn_batch_size=_bn_batch_size(plain["bn_batch_size"], m, norm.kind),
        weight_decay=float(plain["weight_decay"]),
    )
    _check_names(run)
    return run


def _check_own(plain: dict[str, Any]) -> None:
    """Raise ConfigError for a YAML file of a user's that does not say what to call, or says what is ours to say."""
    for group in ("model", "data", "optimizer", "loss"):
        node = plain[group]
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            raise ConfigError(
                f"{group}={node}: its file in conf/{group}/ needs a _target_, such as `_target_: mine.It`"
            )
    for name, ours in (("lr", "base_lr"), ("weight_decay", "weight_decay")):
        if name in plain["optimizer"]:
            raise ConfigError(f"optimizer.{name}={plain['optimizer'][name]}: leave it out, and set {ours}")


def check_run(run: Run) -> None:
    """Raise ConfigError for a run of the right types whose values no config gives."""
    _check({**vars(run), "norm": vars(run.norm), "schedule": vars(run.schedule)})
    _check_names(run)
    if _bn_batch_size(run.bn_batch_size, run.batch_size, run.norm.kind) != run.bn_batch_size:
        raise ConfigError(f"bn_batch_size={run.bn_batch_size}: is written only where it differs from batch_size")


def _check_names(run: Run) -> None:
    """Raise ConfigError for what would spoil a terminal or a table."""
    for group in ("model", "data", "optimizer", "loss"):
        for part in ("name", "_target_"):
            name = getattr(run, group).get(part, "-")
            if not (isinstance(name, str) and name.isprintable() and 0 < len(name) <= MOST_NAME):
                shown = repr(name)[:40]
                raise ConfigError(f"{group}.{part}={shown}: must be text of 1 to {MOST_NAME} printable characters")


def _bn_batch_size(bn: int | None, m: int, kind: str) -> int | None:
    if bn is None:
        return None
    if kind != "batch":
        raise Undefined(f"bn_batch_size={bn} needs norm=batch, but norm.kind={kind}")
    if m % bn:
        divisors = ", ".join(str(d) for d in range(1, m + 1) if m % d == 0)
        raise Undefined(f"bn_batch_size={bn} does not divide batch_size={m}; choose one of {divisors}")
    return None if bn == m else bn


def _check(plain: dict[str, Any]) -> None:
    """Raise ConfigError for the first value that is wrong whatever the others are."""
    check_ranges(Config, plain)
    drops, columns = plain["schedule"]["drops"], ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    if drops != sorted(drops):
        raise ConfigError(f"schedule.drops={drops}: must rise")
    if (stop := plain["stop"]) and stop["monitor"] not in columns:
        raise ConfigError(f"stop.monitor={stop['monitor']}: choose {', '.join(columns)}")
