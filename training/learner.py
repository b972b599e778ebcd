"""What changes while a run learns: network, averaged weights, optimiser, gradient scale; kept and taken up again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model_store.manifest import Architecture
from model_store.networks import build_classifier
from training.checkpoint import load_weights
from training.config import Experiment
from training.depthwise import quicken_depthwise
from training.devices import Place
from training.errors import CheckpointError, ConfigError
from training.freezing import apply_freeze
from training.fresh_weights import draw_small_weights


@dataclass(frozen=True)
class Learner:
    """The changing parts of a run. `average` has the same layers as `network`, and is what is scored and kept."""

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    @classmethod
    def fresh(cls, experiment: Experiment, place: Place, *, init: Path | None, pretrained: bool) -> Learner:
        """At the start of a run: weights drawn from the seed, of `init`, or fetched.

        Raises CheckpointError when `init` is of another network, ConfigError when the configuration's head, frozen
        modules or input size are not the network's, PretrainedWeightsError when weights cannot be fetched.
        """
        torch.manual_seed(experiment.seed)
        network, average = (
            build_network(experiment, pretrained=fetch).to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for fetch in (pretrained, False)
        )
        if experiment.network.fresh_weights == "small":
            draw_small_weights(network)
        if place.device.type == "cpu" and torch.get_num_threads() == 1:
            quicken_depthwise(network)
        _check_fit(network, experiment, place.device)
        if init is not None:
            _load_init(network, init, experiment.network.classifier)
        average.load_state_dict(network.state_dict())
        is_scaled = experiment.optim.precision == "float16"
        return cls(
            network,
            average,
            _optimizer(network, experiment),
            torch.amp.GradScaler(place.device.type, enabled=is_scaled),
        )

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Exponential moving average of weights and batch-norm statistics; counters are copied."""
        pairs = zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True)
        for mean, now in pairs:
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that `restore` needs, by names that begin with `network.`, `average.` or `optimizer.`.

        A parameter that has never been given a gradient has no state in the optimiser, and gets none by this.
        """
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if value is not None}
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor], scaler: dict[str, float]) -> None:
        """Take up what `tensors` gave, and the gradient scale's own state."""
        split: dict[str, dict[str, torch.Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            split[part][rest] = tensor
        self.network.load_state_dict(split["network"])
        self.average.load_state_dict(split["average"])
        packed = self.optimizer.state_dict()
        packed["state"] = {}
        for name, tensor in split["optimizer"].items():
            index, _, key = name.partition(".")
            packed["state"].setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(packed)
        self.scaler.load_state_dict(scaler)


def build_network(experiment: Experiment, *, pretrained: bool = False) -> nn.Module:
    """The experiment's network, with fresh weights from torch's global generator.

    pretrained: let an experiment that asks for pretrained weights fetch them.
    Raises PretrainedWeightsError when they cannot be fetched.
    """
    return build_classifier(
        architecture_of(experiment),
        len(experiment.labels),
        experiment.input.channels,
        pretrained=pretrained and experiment.network.pretrained,
    )


def architecture_of(experiment: Experiment) -> Architecture:
    """The experiment's network as the manifest records it."""
    network = experiment.network
    return Architecture(family=network.family, options=dict(network.options), classifier=network.classifier)


@torch.no_grad()
def _check_fit(network: nn.Module, experiment: Experiment, device: torch.device) -> None:
    """Refuse what would fail after minutes of loading, or learn nothing, before anything is written."""
    classifier, spec, n_labels = experiment.network.classifier, experiment.input, len(experiment.labels)
    head = dict(network.named_parameters()).get(classifier)
    if head is None:
        raise ConfigError(f"network.classifier: the network has no {classifier!r}")
    if head.ndim == 0 or len(head) != n_labels:
        raise ConfigError(
            f"network.classifier: {classifier} has the shape {tuple(head.shape)}, expected {n_labels} labels first"
        )
    apply_freeze(network, experiment.freeze, 0)
    picture = torch.zeros(1, spec.channels, spec.size_px, spec.size_px, device=device)
    network.eval()
    try:
        shape = tuple(network(picture.to(memory_format=torch.channels_last)).shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"input.size_px: the network takes no {spec.size_px} px ({error})") from None
    if shape != (1, n_labels):
        raise ConfigError(f"network: its output is {shape}, expected {(1, n_labels)}")


def _load_init(network: nn.Module, init: Path, classifier: str) -> None:
    """Take over a checkpoint's or a bundle's weights; a head for another number of labels stays fresh."""
    tensors = load_weights(init)
    own = network.state_dict()
    layer = classifier.rpartition(".")[0]
    if classifier in tensors and tensors[classifier].shape != own[classifier].shape:
        tensors |= {name: own[name] for name in (f"{layer}.weight", f"{layer}.bias") if name in own}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{init}: not the weights of this network ({error})") from None


def head_of(classifier: str) -> str:
    """The module that a classifier's weight belongs to: the whole of it where the head has several layers.

    `head.fc.weight` is in `head.fc`, and `classifier.3.weight` in `classifier`, whose layers are numbered.
    """
    module = classifier.rpartition(".")[0]
    parent, _, last = module.rpartition(".")
    return parent if last.isdigit() and parent else module


def _optimizer(network: nn.Module, experiment: Experiment) -> torch.optim.Optimizer:
    """Weight decay on kernels and the head only: pulling norms and biases to zero costs accuracy.

    Four groups, head and backbone with and without decay; `lr_factor` scales the schedule for a group.
    """
    optim = experiment.optim
    head = head_of(experiment.network.classifier)
    groups = []
    for in_head in (True, False):
        for decayed in (True, False):
            chosen = [
                parameter
                for name, parameter in network.named_parameters()
                if name.startswith(f"{head}.") == in_head and (parameter.ndim > 1) == decayed
            ]
            if chosen:
                factor = 1.0 if in_head else optim.backbone_lr_factor
                decay = optim.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "weight_decay": decay, "lr": optim.max_lr, "lr_factor": factor})
    if optim.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=optim.momentum, nesterov=optim.momentum > 0)
    if optim.optimizer == "adam":
        return torch.optim.Adam(groups)
    return torch.optim.AdamW(groups)
