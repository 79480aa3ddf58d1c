"""What one run is: the typed schema that Hydra checks, the frozen run, and its key.

Light on purpose: no torch here, so that grids expand and skip quickly.
"""

import hashlib
import json
import math
import re
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

# Raised by one whenever a change alters what a run computes, or a default below changes.
PROTOCOL = 1
VARIED = ("batch_size", "base_lr", "bn_batch_size", "seed")  # what a sweep varies within one setting


class ConfigError(Exception):
    """A mistake in what the user asked for. Its text is one line: what, where, what to do."""


class Undefined(ConfigError):
    """Values that are right by themselves but do not go together: a single run is refused, a grid leaves it out."""


class NotYet(ConfigError):
    """What depends on runs that are not there."""


class TrainsNothing(ConfigError):
    """The figures asked for are drawn from other runs, or computed."""


NormKind = Enum("NormKind", ["none", "batch", "group"])
NormLayers = Enum("NormLayers", ["all", "conv"])
ScheduleKind = Enum("ScheduleKind", ["steps", "constant", "cosine"])
Draw = Enum("Draw", ["sweep", "convergence", "bn_batch", "best", "range", "paths"])
LoggerKind = Enum("LoggerKind", ["none", "wandb"])
WandbMode = Enum("WandbMode", ["online", "offline", "disabled"])
Precision = Enum("Precision", {"32-true": "32-true", "64-true": "64-true", "bf16-mixed": "bf16-mixed"})


@dataclass
class AlexNet:
    """The reduced AlexNet: nothing to set."""

    _target_: str = "smallbatch.models.alexnet.AlexNet"
    name: str = "alexnet"


@dataclass
class ResNet:
    """A CIFAR ResNet of 6n + 2 layers."""

    _target_: str = "smallbatch.models.resnet.ResNet"
    name: str = MISSING
    depth: int = MISSING


@dataclass
class Torchvision:
    """One of torchvision's networks for classification, by its name there."""

    _target_: str = "smallbatch.models.torchvision.network"
    network: str = MISSING
    name: str = "${.network}"


@dataclass
class Norm:
    """Normalisation; ghost batch norm is `kind: batch` with a `bn_batch_size` below `batch_size`."""

    kind: NormKind = NormKind.none
    layers: NormLayers = NormLayers.all  # AlexNet: conv and fully-connected layers, or conv only
    eps: float = 1e-5
    memory: int = 1280  # images remembered by the running statistics
    groups: int = 8  # of channels, group normalisation only


@dataclass
class Data:
    """A data set: `_target_` names a function (root, …) that returns the path of an .npz, or of a folder."""

    _target_: str = MISSING
    name: str = MISSING
    root: str = "data"
    augment: bool = False
    train_size: int | None = None  # stratified subset; null is all
    test_size: int | None = None


@dataclass
class ArraysData(Data):
    """Your own .npz."""

    path: str = MISSING


@dataclass
class FolderData(Data):
    """Image files in `path`/train/CLASS/ and `path`/val/CLASS/, cropped to squares when they are read."""

    path: str = MISSING
    side: int = 224  # of the squares, in pixels
    resize: list[int] | None = None  # shorter side before a random crop; null: side × [256, 480] / 224
    test_resize: int | None = None  # and before the centre crop; null: side × 256 / 224
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # ImageNet's, in [0, 1]
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


@dataclass
class SGD:
    """Plain SGD, the paper's; with `momentum` a control."""

    _target_: str = "torch.optim.SGD"
    name: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False


@dataclass
class AdamW:
    """AdamW, whose weight decay is decoupled."""

    _target_: str = "torch.optim.AdamW"
    name: str = "adamw"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8


@dataclass
class Schedule:
    """Factor on the learning rate against the share of all updates that is done."""

    kind: ScheduleKind = ScheduleKind.steps
    drops: list[float] = field(default_factory=lambda: [0.5, 0.75])
    drop_factor: float = 0.1
    warmup: float = 0.0  # share of training with a linear rise; the paper's figs 10, 11 use 0.05
    warmup_start: float = 1 / 32


@dataclass
class Machine:
    """Where it runs; never part of a run's identity."""

    accelerator: str = "auto"
    threads: int = 1
    workers: int = 4  # processes that read image files, and no more than there are cores


@dataclass
class DigitsData(Data):
    """The embedded digits of 8×8 pixels, each pixel enlarged to a square."""

    enlarge: int = 4


@dataclass
class Wandb:
    """Where runs go in Weights & Biases with `logger: wandb`; never part of a run's identity."""

    mode: WandbMode | None = None  # null: online with a login and a server that answers, else offline
    entity: str | None = None  # null: your default one
    project: str = "smallbatch"
    group: str | None = None  # null: the figure or grid
    tags: list[str] = field(default_factory=list)
    notes: str | None = None


@dataclass
class Figure:
    """A named set of runs and how it is drawn (see `grid.py` for how its parts combine)."""

    name: str = MISSING
    title: str = MISSING
    draw: Draw = Draw.sweep
    common: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, Any] = field(default_factory=dict)  # by scale: a product of axes, or a list of such
    rates_of: str | None = None  # base_lr=best: each batch_size takes the best η̃ of this figure's runs
    of: list[str] = field(default_factory=list)  # a summary: trains nothing, draws these figures' runs
    stand_in: dict[str, str] = field(default_factory=dict)  # by scale: "not X: Y", what its runs show instead


@dataclass
class Scale:
    """A size to run figures at: `settings` go over those of the figure."""

    name: str = "paper"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config:
    """The root that `conf/train.yaml` fills."""

    model: Any = MISSING
    data: Any = MISSING
    norm: Norm = field(default_factory=Norm)
    optimizer: Any = MISSING
    schedule: Schedule = field(default_factory=Schedule)
    batch_size: int = MISSING
    base_lr: int | float | str = MISSING
    bn_batch_size: int | None = None
    epochs: int = MISSING
    weight_decay: float = MISSING
    seed: int = 0
    precision: Precision = Precision["32-true"]
    figure: Figure | None = None
    scale: Scale = field(default_factory=Scale)
    machine: Machine = field(default_factory=Machine)
    logger: LoggerKind = LoggerKind.none
    wandb: Wandb = field(default_factory=Wandb)
    store: str = "outputs/runs"
    overwrite: bool = False
    progress: bool = True
    grid_point: bool = False  # set by the sweeper


def register() -> None:
    """Make the schemas known to Hydra, as `config_schema` and the group `schema`."""
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    networks, optimizers = (AlexNet, ResNet, Torchvision), (SGD, AdamW)
    data = (Data, ArraysData, DigitsData, FolderData)
    for node in (*networks, *data, *optimizers, Norm, Schedule, Machine, Figure, Scale):
        store.store(group="schema", name=node.__name__.lower(), node=node)


_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_POWER = re.compile(rf"\s*({_NUMBER})\s*(?:(/|\*\*)\s*({_NUMBER})\s*)?")


def parse_power(value: float | str) -> float:
    """A number written as a float, a fraction `1/512` or a power `2**-9`.

    Raises ConfigError for anything else.
    """
    match = _POWER.fullmatch(str(value))
    try:
        if match is None:
            raise ValueError
        left, operator, right = match.groups()
        if operator == "/":
            return float(left) / float(right)
        return float(float(left) ** float(right)) if operator else float(left)  # a complex root is a TypeError
    except (ValueError, ArithmeticError, TypeError):
        raise ConfigError(f"base_lr={value}: not a number; write it as 0.002, 1/512 or 2**-9") from None


def format_power(value: float) -> str:
    """`2^-9` for a power of two, else the shortest decimal that reads back equal."""
    mantissa, exponent = math.frexp(value)
    return f"2^{exponent - 1}" if mantissa == 0.5 else repr(float(value)).removesuffix(".0")


@dataclass(frozen=True)
class Run:
    """One training run: everything that decides its numbers, and nothing else.

    `data` carries the fingerprint of the images' content instead of a path; `bn_batch_size` is
    None where it makes no difference (no batch norm, or equal to `batch_size`).
    """

    model: dict[str, Any]
    data: dict[str, Any]
    norm: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    batch_size: int
    base_lr: float
    bn_batch_size: int | None
    epochs: int
    weight_decay: float
    seed: int
    precision: str
    protocol: int = PROTOCOL

    @property
    def key(self) -> str:
        """Sixteen hex digits of the SHA-256 of what differs from the defaults."""
        text = json.dumps(identity(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """For people: `alexnet digits m=8 η̃=2^-9 s=0`."""
        norm = "" if self.norm["kind"] == "none" else f" {self.norm['kind']}-norm"
        ghost = f" b={self.bn_batch_size}" if self.bn_batch_size else ""
        rate = format_power(self.base_lr)
        return f"{self.model['name']} {self.data['name']}{norm} m={self.batch_size}{ghost} η̃={rate} s={self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as stored in a run folder."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Run":
        """The inverse of `to_dict`. Raises TypeError where fields are missing or unknown."""
        return cls(**stored)


_SCHEMAS = {node._target_: node for node in (AlexNet, ResNet, Torchvision, SGD, AdamW)}


def _without_defaults(node: dict[str, Any], schema: Any) -> dict[str, Any]:
    """Drop `name` and what equals the schema's default; keep `_target_`, which says whose defaults."""
    defaults = {}
    for item in fields(schema) if schema else ():
        defaults[item.name] = item.default_factory() if item.default_factory is not NO_DEFAULT else item.default
    plain = {k: v.name if isinstance(v, Enum) else v for k, v in defaults.items()}
    return {k: v for k, v in node.items() if k == "_target_" or (k != "name" and (k not in plain or plain[k] != v))}


def identity(run: Run) -> dict[str, Any]:
    """What the key hashes: the run, less everything at its default."""
    groups = {
        "model": _without_defaults(run.model, _SCHEMAS.get(run.model["_target_"])),
        "optimizer": _without_defaults(run.optimizer, _SCHEMAS.get(run.optimizer["_target_"])),
        "schedule": _without_defaults(run.schedule, Schedule),
        "norm": _without_defaults(run.norm, Norm) if run.norm["kind"] != "none" else {},
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
    norm = plain["norm"]
    counts = {"batch_size": m, "epochs": epochs, "norm.memory": norm["memory"], "norm.groups": norm["groups"]}
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
    _check_schedule(plain["schedule"])
    images = describe(plain["data"])
    if m > images.train_size:
        raise Undefined(
            f"batch_size={m}: larger than the training set of {images.train_size} images "
            f"(data={images.name}); choose batch_size ≤ {images.train_size}"
        )
    for group in ("model", "optimizer"):
        plain[group].setdefault("name", plain[group]["_target_"].rpartition(".")[2].lower())
    return Run(
        **{name: plain[name] for name in ("model", "norm", "optimizer", "schedule", "epochs", "seed", "precision")},
        data=images.identity | {"augment": plain["data"]["augment"]},
        batch_size=m,
        base_lr=base_lr,
        bn_batch_size=_bn_batch_size(plain["bn_batch_size"], m, plain["norm"]["kind"]),
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
    for group in ("model", "norm", "optimizer", "schedule"):
        for name, value in plain[group].items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{group}.{name}={value}: must be finite")


def _check_schedule(schedule: dict[str, Any]) -> None:
    drops = schedule["drops"]
    if drops != sorted(drops) or not all(0 < d < 1 for d in drops):
        raise ConfigError(f"schedule.drops={drops}: must rise and lie between 0 and 1")
    if not 0 <= schedule["warmup"] < 1:
        raise ConfigError(f"schedule.warmup={schedule['warmup']}: must lie in [0, 1)")
