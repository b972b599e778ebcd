"""Parts of a network that learn only from some epoch on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from training.config import FreezeConfig
from training.errors import ConfigError


def frozen_names(network: nn.Module, freeze: Sequence[FreezeConfig], epoch: int) -> set[str]:
    """Names of the parameters that do not learn in this epoch (0 is the first).

    Raises ConfigError when a module's name fits no parameter, or nothing is left to learn.
    """
    names = [name for name, _ in network.named_parameters()]
    frozen: set[str] = set()
    for index, rule in enumerate(freeze):
        for module in rule.modules:
            inside = {name for name in names if name == module or name.startswith(f"{module}.")}
            if not inside:
                raise ConfigError(f"freeze.{index}.modules: the network has no {module!r}")
            if rule.until_epoch is None or epoch < rule.until_epoch:
                frozen |= inside
    if len(frozen) == len(names):
        raise ConfigError(f"freeze: nothing is left to learn in epoch {epoch}")
    return frozen


def apply_freeze(network: nn.Module, freeze: Sequence[FreezeConfig], epoch: int) -> None:
    """Let every parameter learn but the frozen ones, and hold the statistics of batch norms that are frozen whole.

    Call it after `network.train()`. Raises ConfigError, see `frozen_names`.
    """
    frozen = frozen_names(network, freeze, epoch)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, module in network.named_modules():
        own = {f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and own and own <= frozen:
            module.eval()
