"""How weights were made, for manifest and card: stages, teachers, votes, what they began with, the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.config import Experiment


@dataclass(frozen=True)
class Provenance:
    """A recipe's stages in turn, and how many training faces each class has, in the order of the labels."""

    stages: tuple[Experiment, ...]
    class_counts: Mapping[str, int]

    @classmethod
    def of(cls, stages: Sequence[Experiment], class_counts: Sequence[int]) -> Provenance:
        """From the experiments, and counts in the order of their labels. Raises ValueError for other lengths."""
        return cls(tuple(stages), dict(zip(stages[-1].labels, class_counts, strict=True)))

    def as_lines(self) -> list[str]:
        """Lines `what: how`, for `TrainingRecord.provenance`."""
        total = sum(self.class_counts.values())
        counts = ", ".join(f"{label} {n} ({n / total:.1%})" for label, n in self.class_counts.items())
        lines = [f"Training faces: {total}; {counts}."]
        for index, stage in enumerate(self.stages):
            place = f"Stage {index + 1} of {len(self.stages)}" if len(self.stages) > 1 else "Training"
            lines.append(f"{place}: {_schedule(stage)}")
            lines.append(f"What it was taught: {_targets(stage)}")
            lines += [f"Start of stage {index + 1}: {start}." for start in _later_start(self.stages, index)]
        start = self.stages[0].network
        if start.pretrained:
            lines.append("Start: the pretrained weights of timm for this network.")
        elif start.init_bundle is not None:
            lines.append(f"Start: the weights of {start.init_bundle}. No pretrained weights beyond those.")
        else:
            lines.append("Start: fresh weights. No pretrained weights.")
        return lines


def _later_start(stages: Sequence[Experiment], index: int) -> list[str]:
    """Where a stage starts that does not go on from the one before; empty for the others and for the first."""
    network = stages[index].network
    if network.init_stages:
        names = [f"stage {number}" if number else str(stages[0].network.init_bundle) for number in network.init_stages]
        return [f"the mean of the weights of {', '.join(names)}"]
    return [f"the weights of {network.init_bundle}"] if index and network.init_bundle is not None else []


def _schedule(stage: Experiment) -> str:
    optim = stage.optim
    return (
        f"{optim.epochs} epochs of {optim.optimizer}, batch {optim.batch_size}, learning rate {stage.schedule.kind} up "
        f"to {optim.max_lr:g}, weight decay {optim.weight_decay:g}; digest of the configuration `{stage.sha256()}`."
    )


def _targets(stage: Experiment) -> str:
    """The blend of `TargetsConfig`, the loss, and how often a class is shown."""
    targets, loss = stage.targets, stage.loss
    own = {
        "label": "the label",
        "ferplus-majority": "the majority of FER+'s annotators",
        "ferplus-distribution": "the distribution of FER+'s annotators' votes",
    }[stage.data.labels_from]
    parts = [f"{own} ({1 - targets.teacher_weight - targets.votes:.0%})"]
    if targets.teachers:
        names = " and ".join(targets.teachers)
        parts.append(f"distillation from {names} at temperature {targets.temperature:g} ({targets.teacher_weight:.0%})")
    if targets.votes:
        parts.append(f"FER+'s annotators' votes, translated to these labels ({targets.votes:.0%})")
    text = ", ".join(parts)
    if targets.label_smoothing:
        text += f"; label smoothing {targets.label_smoothing:g}"
    text += f"; {loss.kind} loss"
    if loss.class_weights != "none":
        text += f" with {loss.class_weights} class weights"
    if loss.sampler != "shuffled":
        text += f", {loss.sampler} sampler"
    mixed = [f"{name} on {share:.0%} of the batches" for name, share in _mixes(stage) if share]
    return f"{text}{', ' if mixed else ''}{' and '.join(mixed)}."


def _mixes(stage: Experiment) -> list[tuple[str, float]]:
    return [("mixup", stage.augment.mixup), ("cutmix", stage.augment.cutmix)]
