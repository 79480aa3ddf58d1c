"""What there is to set: the typed schema that Hydra checks."""

from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from smallbatch.ranges import COUNT, FEW, RATE, SHARE, one_of, within


# Hydra reads and writes the names of an enum, JSON its values: both are the same words.
class NormKind(StrEnum):
    """What normalises: nothing, batches (or ghost batches) of images, or groups of channels."""

    none = auto()
    batch = auto()
    group = auto()


class NormLayers(StrEnum):
    """Behind which layers: convolutions and fully-connected ones, or convolutions only."""

    all = auto()
    conv = auto()


class ScheduleKind(StrEnum):
    """How the learning rate falls."""

    steps = auto()
    constant = auto()
    cosine = auto()


class Draw(StrEnum):
    """How a figure is drawn."""

    sweep = auto()
    convergence = auto()
    bn_batch = auto()
    best = auto()
    range = auto()
    paths = auto()


class WandbMode(StrEnum):
    """W&B's own words."""

    online = auto()
    offline = auto()
    disabled = auto()


# Lightning's words: with a dash they cannot be names in a class.
Profiler = StrEnum("Profiler", ["simple", "advanced", "pytorch"])
Precision = StrEnum("Precision", ["32-true", "64-true", "bf16-mixed"])


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
    depth: int = within("[8, 1202]")


@dataclass
class Torchvision:
    """One of torchvision's networks for classification, by its name there."""

    _target_: str = "smallbatch.models.torchvision.network"
    network: str = MISSING
    name: str = "${.network}"


@dataclass(frozen=True)
class Norm:
    """Normalisation; ghost batch norm is `kind: batch` with a `bn_batch_size` below `batch_size`.

    Enums may be given as words. Raises ValueError for another word.
    """

    kind: NormKind = NormKind.none
    layers: NormLayers = NormLayers.all  # AlexNet: conv and fully-connected layers, or conv only
    eps: float = within(SHARE, 1e-5)
    memory: int = within(COUNT, 1280)  # images remembered by the running statistics
    groups: int = within(COUNT, 8)  # of channels, group normalisation only

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", NormKind(self.kind))
        object.__setattr__(self, "layers", NormLayers(self.layers))


@dataclass
class Data:
    """A data set: `_target_` names a function (root, …) that returns the path of an .npz, or of a folder."""

    _target_: str = MISSING
    name: str = MISSING
    root: str = "data"
    augment: bool = False
    train_size: int | None = within(COUNT, None)  # stratified subset; null is all
    test_size: int | None = within(COUNT, None)


@dataclass
class ArraysData(Data):
    """Your own .npz."""

    path: str = MISSING


@dataclass
class Preparation:
    """How an image file becomes side × side × 3 pixels."""

    side: int = within("[1, 4096]", 224)  # of the square, in pixels
    resize: list[int] | None = within("[1, 65536]", None)  # shorter side before a random crop; null: …
    test_resize: int | None = within("[1, 65536]", None)  # and before the centre crop
    mean: list[float] = within("[0, 1]", [0.485, 0.456, 0.406])  # ImageNet's, in [0, 1]
    std: list[float] = within(SHARE, [0.229, 0.224, 0.225])


@dataclass
class FolderData(Preparation, Data):
    """Image files in `path`/train/CLASS/ and `path`/val/CLASS/, cropped to squares when they are read."""

    path: str = MISSING


@dataclass
class SGD:
    """Plain SGD, the paper's; with `momentum` a control."""

    _target_: str = "torch.optim.SGD"
    name: str = "sgd"
    momentum: float = within("[0, 1)", 0.0)
    nesterov: bool = False


@dataclass
class AdamW:
    """AdamW, whose weight decay is decoupled."""

    _target_: str = "torch.optim.AdamW"
    name: str = "adamw"
    betas: list[float] = within("[0, 1)", [0.9, 0.999])
    eps: float = within("[0, 1]", 1e-8)


@dataclass
class CrossEntropy:
    """The mean cross-entropy of the logits, the paper's loss."""

    _target_: str = "torch.nn.CrossEntropyLoss"
    name: str = "cross_entropy"
    label_smoothing: float = within("[0, 1]", 0.0)


NAMED = (AlexNet, ResNet, Torchvision, SGD, AdamW, CrossEntropy)  # schemas of one `_target_` each
LOSS = vars(CrossEntropy())  # the default


@dataclass(frozen=True)
class Schedule:
    """Factor on the learning rate against the share of all updates that is done.

    `kind` may be given as a word. Raises ValueError for another word.
    """

    kind: ScheduleKind = ScheduleKind.steps
    drops: list[float] = within("(0, 1)", [0.5, 0.75])  # rising
    drop_factor: float = within("[0, inf)", 0.1)
    warmup: float = within("[0, 1)", 0.0)  # share of training with a linear rise; the paper's figs 10, 11 use 0.05
    warmup_start: float = within("[0, 1]", 1 / 32)
    _target_: str | None = None  # your own function (schedule, update, total) in place of `kind`

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", ScheduleKind(self.kind))


class Better(StrEnum):
    """Which values of a column are better."""

    min = auto()
    max = auto()


@dataclass
class EarlyStopping:
    """Ends a run when a column of its epochs has not improved for some epochs; part of the run's identity."""

    monitor: str = "test_loss"
    mode: Better = Better.min
    patience: int = within(COUNT, 5)  # epochs
    min_delta: float = within("[0, inf)", 0.0)


@dataclass
class Trainer:
    """What Lightning's Trainer may be told; never part of a run's identity, since it changes none of its numbers."""

    devices: int = within(FEW, 1)  # that train one run together: GPUs, or processes on the CPU
    enable_model_summary: bool = False
    log_every_n_steps: int = within(COUNT, 50)  # blocks of some hundreds of images, for callbacks and loggers
    profiler: Profiler | None = None
    detect_anomaly: bool = False
    deterministic: bool | None = None  # null: on a GPU, as far as its kernels can
    benchmark: bool | None = None
    inference_mode: bool = True
    fast_dev_run: bool = False  # a trial of one block: nothing of it is kept
    limit_train_batches: int | float | None = within(COUNT, None, share=True)  # a trial of some blocks
    limit_val_batches: int | float | None = within(COUNT, None, share=True)


@dataclass
class Machine:
    """Where it runs; never part of a run's identity."""

    accelerator: str = "auto"
    threads: int = within(FEW, 1)
    workers: int = within("[0, 1024]", 4)  # processes that read image files, and no more than there are cores


@dataclass
class DigitsData(Data):
    """The embedded digits of 8×8 pixels, each pixel enlarged to a square."""

    enlarge: int = within("[1, 32]", 4)


@dataclass
class Wandb:
    """Where runs go in Weights & Biases with `logger=wandb`; never part of a run's identity."""

    mode: WandbMode | None = None  # null: WANDB_MODE, else online with a login and a server that answers
    entity: str | None = None  # null: WANDB_ENTITY, else your default one
    project: str | None = None  # null: WANDB_PROJECT, else smallbatch
    group: str | None = None  # null: the figure or grid
    tags: list[str] = field(default_factory=list)
    notes: str | None = None


SEARCH, BEST = "search", "best"  # in place of a base_lr; BEST: of a figure's


@dataclass
class Search:
    """How base_lr=search goes; never part of a run's identity."""

    start: int | float | str = within(RATE, "2**-10")  # of the smallest batch size
    lowest: int | float | str = within(RATE, "2**-20")
    highest: int | float | str = within(RATE, 1)
    points: int = within("[1, 100]", 12)  # the most η̃ for each batch size


@dataclass
class Figure:
    """A named set of runs and how it is drawn (see `grids/expand.py` for how its parts combine)."""

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

    model: Any = one_of(AlexNet, ResNet, Torchvision)
    data: Any = one_of(Data, ArraysData, DigitsData, FolderData)
    norm: Norm = field(default_factory=Norm)
    optimizer: Any = one_of(SGD, AdamW)
    schedule: Schedule = field(default_factory=Schedule)
    loss: Any = one_of(CrossEntropy)
    stop: EarlyStopping | None = None
    batch_size: int = within(COUNT)
    base_lr: int | float | str = within(RATE)
    bn_batch_size: int | None = within(COUNT, None)
    epochs: int = within("[1, 1000000]")
    weight_decay: float = within("[0, 1e6]")
    seed: int = within("[0, 4294967295]", 0)
    seeds: int | None = within("[1, 10000]", None)
    precision: Precision = Precision["32-true"]
    figure: Figure | None = None
    scale: Scale = field(default_factory=Scale)
    machine: Machine = field(default_factory=Machine)
    trainer: Trainer = field(default_factory=Trainer)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: Any = MISSING
    wandb: Wandb = field(default_factory=Wandb)
    search: Search = field(default_factory=Search)
    store: str = "outputs/runs"
    overwrite: bool | str = False
    save_weights: bool | None = None
    progress: bool = True
    wait: bool = True
    settle: str | None = None
    hours: float | None = within("(0, 1e5]", None)
    margin: float = within("[0, 100]", 1.0)
    grid_point: str | None = None  # set by our sweeper: all settings as JSON, then the key of the run that it expects
    grid_since: int | None = within("[0, inf)", None)  # so too: when the grid began, in ns by the store's clock


def is_trial(cfg: DictConfig) -> bool:
    """Whether Lightning's Trainer is told not to train all, so that nothing may be kept."""
    trainer = cfg.trainer
    return bool(trainer.fast_dev_run) or (trainer.limit_train_batches, trainer.limit_val_batches) != (None, None)


def schema() -> DictConfig:
    """A config of which nothing is set yet."""
    config: DictConfig = OmegaConf.structured(Config)
    for name in ("norm", "schedule"):
        OmegaConf.set_readonly(config[name], None)  # a run's are frozen, but a config's can be set
    return config


def register() -> None:
    """Make the schemas known to Hydra, as `config_schema` and the group `schema`, unless they are."""
    store = ConfigStore.instance()
    if "config_schema.yaml" in store.repo:
        return
    store.store(name="config_schema", node=schema())
    for node in (*NAMED, Data, ArraysData, DigitsData, FolderData, Figure):
        store.store(group="schema", name=node.__name__.lower(), node=node)
