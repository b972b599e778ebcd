"""What a data set holds: classes, unreadable and blank pictures, and pictures that occur more than once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training.duplicates import (
    Face,
    Group,
    Twins,
    differs_in_label,
    exact_groups,
    fingerprint,
    near_groups,
    twins,
    within,
)
from training.errors import DataError
from training.ferplus import FERPLUS_EMOTIONS, LabelsFrom, emotion_shares
from training.label_names import canonical_label
from training.layouts import Rejected, Row


@dataclass(frozen=True)
class SplitContents:
    """The pictures of one split. left_out: how many have no label, by reason; they are none of `faces`."""

    name: str
    faces: tuple[Face, ...]
    rejected: tuple[Rejected, ...]
    left_out: tuple[tuple[str, int], ...]

    @property
    def classes(self) -> dict[str, int]:
        """Faces by label, sorted by label."""
        return dict(sorted(Counter(face.label for face in self.faces).items()))

    @property
    def blank(self) -> tuple[str, ...]:
        """Names of the pictures that are all of one grey."""
        return tuple(face.name for face in self.faces if not face.fingerprint.thumbnail.any())


@dataclass(frozen=True)
class Repetition:
    """Groups of pictures that are the same by one rule of `training.duplicates`.

    within: groups by split. across: for each ordered pair of splits how many faces of the first have a twin in the
    second.
    """

    rule: str
    within: dict[str, list[Group]]
    across: dict[tuple[str, str], Twins]
    differing: tuple[Group, ...]


@dataclass(frozen=True)
class Inspection:
    """What `inspect_splits` found."""

    splits: tuple[SplitContents, ...]
    repetitions: tuple[Repetition, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "splits": [
                {
                    "name": split.name,
                    "n": len(split.faces),
                    "classes": split.classes,
                    "rejected": [asdict(rejected) for rejected in split.rejected],
                    "left_out": dict(split.left_out),
                    "blank": list(split.blank),
                }
                for split in self.splits
            ],
            "duplicates": [
                {
                    "rule": found.rule,
                    "within": [{"split": split, **_sizes(groups)} for split, groups in found.within.items()],
                    "across": [
                        {"split": split, "other": other, **asdict(counts)}
                        for (split, other), counts in found.across.items()
                    ],
                    "differing_labels": [
                        [{"split": face.split, "name": face.name, "label": face.label} for face in group]
                        for group in found.differing
                    ],
                }
                for found in self.repetitions
            ],
        }

    def as_text(self) -> str:
        """A table of the classes, then what is left out, then repetitions with each group whose labels differ."""
        lines = _class_table(self.splits)
        for split in self.splits:
            lines += [f"{split.name}: {len(split.rejected)} unreadable"]
            lines += [f"  {rejected.name}: {rejected.reason}" for rejected in split.rejected]
            lines += [f"{split.name}: {count} without a label: {reason}" for reason, count in split.left_out]
            if split.blank:
                lines.append(f"{split.name}: {len(split.blank)} of one grey: {', '.join(split.blank)}")
        for found in self.repetitions:
            lines.append(f"\n{found.rule} duplicates")
            for name, groups in found.within.items():
                sizes = _sizes(groups)
                lines.append(
                    f"  within {name}: {sizes['groups']} groups, {sizes['faces']} faces, "
                    f"{sizes['groups_with_differing_labels']} groups with differing labels"
                )
            n_of = {split.name: len(split.faces) for split in self.splits}
            for (name, other), counts in found.across.items():
                lines.append(
                    f"  {name} with a twin in {other}: {counts.faces} of {n_of[name]} "
                    f"({counts.faces / (n_of[name] or 1):.1%}), with the same label for {counts.with_same_label}, "
                    f"another for {counts.with_other_label}, both for {counts.with_both}"
                )
            lines.append(f"  groups with differing labels: {len(found.differing)}")
            for group in found.differing:
                lines.append("    " + ", ".join(f"{face.label} {face.split}/{face.name}" for face in group))
        return "\n".join(lines)


def contents_of(name: str, rows: Iterable[Row], labels_from: LabelsFrom = "label") -> SplitContents:
    """Read a split, keeping a fingerprint of each picture instead of its pixels.

    labels_from: see `training.data.load_faces`. The names of one expression get one spelling, so that layouts compare.
    Raises DataError for labels from votes that the rows do not have.
    """
    faces, votes, rejected = [], [], []
    for row in rows:
        if isinstance(row.pixels, Rejected):
            rejected.append(row.pixels)
            continue
        faces.append(Face(name, row.name, canonical_label(row.label), fingerprint(row.pixels)))
        votes.append(row.votes)
    if labels_from == "label":
        return SplitContents(name, tuple(faces), tuple(rejected), ())
    if None in votes:
        raise DataError(f"{name}: has no FER+ votes")
    said = emotion_shares(np.array(votes, np.int8).reshape(len(votes), -1), labels_from)
    labelled = tuple(
        Face(name, face.name, canonical_label(FERPLUS_EMOTIONS[int(shares.argmax())]), face.fingerprint)
        for face, shares, reason in zip(faces, said.shares, said.reasons, strict=True)
        if reason is None
    )
    left_out = Counter(reason for reason in said.reasons if reason is not None)
    return SplitContents(name, labelled, tuple(rejected), tuple(sorted(left_out.items())))


def inspect_splits(splits: Sequence[SplitContents], *, near: bool = False) -> Inspection:
    """Find what the splits repeat, within and across. near: also by the rule for nearly the same pictures."""
    faces = [face for split in splits for face in split.faces]
    rules: list[tuple[str, Callable[[Sequence[Face]], list[Group]]]] = [("exact", exact_groups)]
    if near:
        rules.append(("near", near_groups))
    names = [split.name for split in splits]
    repetitions = []
    for rule, find in rules:
        groups = find(faces)
        repetitions.append(
            Repetition(
                rule,
                {name: within(groups, name) for name in names},
                {(name, other): twins(groups, name, other) for name in names for other in names if name != other},
                tuple(group for group in groups if differs_in_label(group)),
            )
        )
    return Inspection(tuple(splits), tuple(repetitions))


def _sizes(groups: Sequence[Group]) -> dict[str, int]:
    return {
        "groups": len(groups),
        "faces": sum(map(len, groups)),
        "groups_with_differing_labels": sum(map(differs_in_label, groups)),
    }


def _class_table(splits: Sequence[SplitContents]) -> list[str]:
    labels = sorted({label for split in splits for label in split.classes})
    width = max(map(len, ("class", *labels)))
    titles = [split.name for split in splits]
    lines = [f"{'class':{width}}  " + "  ".join(f"{title:>14}" for title in titles)]
    for label in labels:
        counts = [(split.classes.get(label, 0), len(split.faces)) for split in splits]
        cells = (f"{count} {count / (n or 1):6.1%}" for count, n in counts)
        lines.append(f"{label:{width}}  " + "  ".join(f"{cell:>14}" for cell in cells))
    return [*lines, f"{'':{width}}  " + "  ".join(f"{len(split.faces):>14}" for split in splits)]
