"""What an update is made of, beside the network: the run's optimizer and its loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from smallbatch.errors import ConfigError, one_line
from smallbatch.run import Run
from smallbatch.targets import accepted, check_call, locate


def make_optimizer(run: Run, parameters: Any) -> torch.optim.Optimizer:
    """The run's optimizer; weight decay on all parameters; fused where the class can.

    The class is called as (parameters, lr=…, its settings, and weight_decay and fused if it takes them).
    """
    target = locate(run.optimizer["_target_"], "optimizer")
    settings = {k: v for k, v in run.optimizer.items() if k not in ("_target_", "name")}
    offered = accepted(target, {"weight_decay": run.weight_decay, "fused": True})
    if run.weight_decay and "weight_decay" not in {**offered, **settings}:
        raise ConfigError(f"optimizer: {run.optimizer['_target_']} takes no weight_decay; set weight_decay=0")
    arguments = {**offered, "lr": run.base_lr * run.batch_size, **settings}
    check_call(target, arguments, "optimizer", parameters)
    try:
        return target(parameters, **arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optimizer: {run.optimizer['_target_']}: {one_line(error)}") from None


def make_loss(run: Run) -> Callable[[Tensor, Tensor], Tensor]:
    """The run's loss: called with (logits, labels) it gives their mean, as cross-entropy, the default, does.

    A class is made with the settings; a function is called with them as well.
    """
    target = locate(run.loss["_target_"], "loss")
    settings = {k: v for k, v in run.loss.items() if k not in ("_target_", "name")}
    if not isinstance(target, type):
        check_call(target, settings, "loss", ..., ...)
        return partial(target, **settings)
    check_call(target, settings, "loss")
    made: Callable[[Tensor, Tensor], Tensor] = target(**settings)
    return made
