"""Ranks: the processes that train one run together, each on its share of every mini-batch.

All compute the loss of the whole mini-batch, from logits that are gathered, and the sum of all gradients. So what one
of them knows (losses, weights, rows, whether to stop) all know, bit for bit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor, nn

from smallbatch.errors import ConfigError, SmallBatchError


class RankError(SmallBatchError):
    """A rank died, raised, or has other weights than the others. Its text is one line."""


@dataclass(frozen=True)
class Ranks:
    """Which of `world` ranks this process is, and the device it trains on."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    def share(self, block: np.ndarray, m: int) -> np.ndarray:
        """This rank's share of a block's mini-batches of m, consecutive in each.

        Where ranks do not divide a block of tests, it goes on from its beginning.

        >>> Ranks(1, 2).share(np.arange(8), 4), Ranks(1, 2).share(np.arange(3), 3)
        (array([2, 3, 6, 7]), array([2, 0]))
        """
        return np.resize(block, (len(block) // m, self.world, -(-m // self.world)))[:, self.rank].ravel()

    def whole(self, part: Tensor, count: int) -> Tensor:
        """(count, …): what the ranks made of their shares of `count` images; each is given its part of a gradient."""
        if self.world == 1:
            return part
        parts: Tensor = _Gathered.apply(part, self.rank)
        return parts.flatten(0, 1)[:count]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the ranks' gradients; a parameter that no rank used keeps none."""
        if self.world == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in trained]
        flat = torch.cat([*parts, parts[0].new_tensor([p.grad is not None for p in trained])])
        dist.all_reduce(flat)
        *sums, used = flat.split([*(len(part) for part in parts), len(parts)])
        for parameter, total, count in zip(trained, sums, used, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(total.view_as(parameter))
            elif count > 0:  # read back only here: a wait for the device
                parameter.grad = total.view_as(parameter).clone()

    def agree(self, *flags: bool) -> list[bool]:
        """For each flag whether any rank has it up."""
        if self.world == 1:
            return list(flags)
        up: list[bool] = gather(torch.tensor(flags, device=self.device)).any(0).tolist()
        return up

    def start_equal(self, network: nn.Module) -> None:
        """Give every rank rank 0's weights and buffers, whatever random numbers a constructor drew."""
        if self.world > 1:
            for tensor in _tensors(network).values():
                dist.broadcast(tensor, 0)

    def check_equal(self, network: nn.Module) -> None:
        """Raise RankError if a weight or buffer is not what it is on rank 0."""
        if self.world == 1:
            return
        tensors = _tensors(network)
        sums = gather(torch.stack([tensor.double().sum() for tensor in tensors.values()])).nan_to_num()
        for name, same in zip(tensors, (sums == sums[0]).all(0).tolist(), strict=True):
            if not same:
                raise RankError(
                    f"{name} differs between ranks: it depends on each rank's share of a batch, or something outside "
                    "the network changes it on one rank; use trainer.devices=1"
                )


ALONE = Ranks()


def gather(part: Tensor) -> Tensor:
    """(world, *part.shape): the parts of all ranks, in their order."""
    parts = part.new_empty(dist.get_world_size(), *part.shape)
    dist.all_gather(list(parts.unbind()), part.contiguous())
    return parts


class _Gathered(torch.autograd.Function):
    """`gather`, behind which every rank computes the same: so a gradient's own part needs no word from the others."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, rank: int) -> Tensor:
        ctx.rank = rank
        return gather(part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.rank], None


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}


def accelerator(cfg: DictConfig) -> str:
    """Lightning's word for what a run trains on. Raises ConfigError if this machine has no room for its ranks."""
    named, devices = str(cfg.machine.accelerator), cfg.trainer.devices
    if devices == 1:
        return named
    if named not in ("auto", "cpu", "gpu", "cuda"):
        raise ConfigError(f"machine.accelerator={named}: has one device; trainer.devices={devices} needs cpu or gpu")
    cards = 0 if named == "cpu" else torch.cuda.device_count()
    if cards == 0 and named in ("auto", "cpu"):
        return "cpu"
    if cards < devices:
        raise ConfigError(f"trainer.devices={devices}: this machine has {cards} GPUs; machine.accelerator=cpu has none")
    return "gpu"
