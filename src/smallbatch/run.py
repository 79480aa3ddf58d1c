"""The frozen run: what decides its numbers, its key, and how a config becomes one.

Light on purpose: no torch here, so that grids expand and skip quickly.
"""

import hashlib
import json
import math
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from smallbatch.config import (
    SGD,
    AdamW,
    AlexNet,
    ConfigError,
    CrossEntropy,
    FolderData,
    Norm,
    ResNet,
    Schedule,
    Torchvision,
    Undefined,
)
from smallbatch.powers import format_power, parse_power

# Raised by one whenever a change alters what a run computes, or a default below changes.
PROTOCOL = 1
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
    loss: dict[str, Any] = field(default_factory=lambda: vars(CrossEntropy()))
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
        return {k: v for k, v in plain.items() if (k, v) not in (("loss", vars(CrossEntropy())), ("stop", None))}

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


_SCHEMAS = {node._target_: node for node in (AlexNet, ResNet, Torchvision, SGD, AdamW, CrossEntropy)}


def _without_defaults(node: dict[str, Any], schema: Any) -> dict[str, Any]:
    """Drop `name` and what equals the schema's default; keep `_target_`, which says whose defaults."""
    defaults = {}
    for item in fields(schema) if schema else ():
        defaults[item.name] = item.default_factory() if item.default_factory is not NO_DEFAULT else item.default
    kept = {k: v for k, v in node.items() if k != "name" and (k not in defaults or defaults[k] != v)}
    return kept | {k: v for k, v in node.items() if k == "_target_" and v}


def identity(run: Run) -> dict[str, Any]:
    """What the key hashes: the run, less everything at its default."""
    groups = {
        "model": _without_defaults(run.model, _SCHEMAS.get(run.model["_target_"])),
        "optimizer": _without_defaults(run.optimizer, _SCHEMAS.get(run.optimizer["_target_"])),
        "schedule": _without_defaults(vars(run.schedule), Schedule),
        "loss": _without_defaults(run.loss, CrossEntropy) if run.loss != vars(CrossEntropy()) else {},
        "stop": run.stop or {},
        "norm": _without_defaults(vars(run.norm), Norm) if run.norm.kind != "none" else {},
        "data": _without_defaults(run.data, FolderData),
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
    base_lr = parse_power(plain["base_lr"])
    m, epochs = plain["batch_size"], plain["epochs"]
    norm, schedule = Norm(**plain["norm"]), Schedule(**plain["schedule"])
    counts = {"batch_size": m, "epochs": epochs, "norm.memory": norm.memory, "norm.groups": norm.groups}
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name}={value}: must be at least 1")
    if not (math.isfinite(base_lr) and base_lr > 0):
        raise ConfigError(f"base_lr={plain['base_lr']}: must be positive and finite")
    if not (math.isfinite(plain["weight_decay"]) and plain["weight_decay"] >= 0):
        raise ConfigError(f"weight_decay={plain['weight_decay']}: must be zero or more")
    _check_finite(plain)
    if plain["seed"] < 0:
        raise ConfigError(f"seed={plain['seed']}: must be zero or more")
    _check_schedule(schedule)
    _check_stop(plain["stop"])
    images = describe(plain["data"])
    if m > images.train_size:
        raise Undefined(
            f"batch_size={m}: larger than the training set of {images.train_size} images "
            f"(data={images.name}); choose batch_size ≤ {images.train_size}"
        )
    for group in ("model", "optimizer", "loss"):
        plain[group].setdefault("name", plain[group]["_target_"].rpartition(".")[2].lower())
    return Run(
        **{name: plain[name] for name in ("model", "optimizer", "loss", "stop", "epochs", "seed", "precision")},
        norm=norm,
        schedule=schedule,
        data=images.identity | {"augment": plain["data"]["augment"]},
        batch_size=m,
        base_lr=base_lr,
        bn_batch_size=_bn_batch_size(plain["bn_batch_size"], m, norm.kind),
        weight_decay=float(plain["weight_decay"]),
    )


def _bn_batch_size(bn: int | None, m: int, kind: str) -> int | None:
    if bn is None:
        return None
    if kind != "batch":
        raise Undefined(f"bn_batch_size={bn} needs norm=batch, but norm.kind={kind}")
    if bn < 1:
        raise ConfigError(f"bn_batch_size={bn}: must be at least 1")
    if m % bn:
        divisors = ", ".join(str(d) for d in range(1, m + 1) if m % d == 0)
        raise Undefined(f"bn_batch_size={bn} does not divide batch_size={m}; choose one of {divisors}")
    return None if bn == m else bn


def _check_finite(plain: dict[str, Any]) -> None:
    for group in ("model", "norm", "optimizer", "schedule", "loss"):
        for name, value in plain[group].items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{group}.{name}={value}: must be finite")


def _check_schedule(schedule: Schedule) -> None:
    drops = schedule.drops
    if drops != sorted(drops) or not all(0 < d < 1 for d in drops):
        raise ConfigError(f"schedule.drops={drops}: must rise and lie between 0 and 1")
    if not 0 <= schedule.warmup < 1:
        raise ConfigError(f"schedule.warmup={schedule.warmup}: must lie in [0, 1)")


def _check_stop(stop: dict[str, Any] | None) -> None:
    columns = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    if stop and stop["monitor"] not in columns:
        raise ConfigError(f"stop.monitor={stop['monitor']}: choose {', '.join(columns)}")
    if stop and stop["patience"] < 1:
        raise ConfigError(f"stop.patience={stop['patience']}: must be at least 1")
