"""Counts of what became of inputs, which add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from handlers.errors import HandlerError
from scoring.parts import Outcome


@dataclass
class Tally:
    """Counts over some inputs. emotions: faces by label. errors: failed inputs by code."""

    n_inputs: int = 0
    n_faceless: int = 0
    n_failed: int = 0
    n_faces: int = 0
    emotions: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Tally:
        """The counts of these."""
        tally = cls()
        for outcome in outcomes:
            tally.n_inputs += 1
            if isinstance(outcome, HandlerError):
                tally.n_failed += 1
                tally.errors[outcome.code] += 1
            else:
                tally.n_faceless += not outcome.faces
                tally.n_faces += len(outcome.faces)
                tally.emotions.update(face.emotion for face in outcome.faces)
        return tally

    def add(self, other: Tally) -> None:
        """Take the counts of others in."""
        self.n_inputs += other.n_inputs
        self.n_faceless += other.n_faceless
        self.n_failed += other.n_failed
        self.n_faces += other.n_faces
        self.emotions.update(other.emotions)
        self.errors.update(other.errors)
