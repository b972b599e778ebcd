"""Which files of a tree are meant: a pattern for every level of folders, and patterns to include.

A walk asks level by level, so that no folder is entered in which nothing can match.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scoring.errors import OptionsError

_MAGIC = re.compile(r"[*?\[]")
_ANY_DEPTH = "**"

Levels = frozenset[int]
"""Places in `Selection.steps` that a folder stands at; several, since `**` is any number of folders."""


def has_magic(text: str) -> bool:
    """Whether this is a shell pattern rather than a name."""
    return _MAGIC.search(text) is not None


@dataclass(frozen=True)
class Selection:
    """Files below a folder.

    steps: a shell pattern for each level, `**` for any number of levels, none included. exact: the steps are names, not
    patterns. include: shell patterns of which one must match, whatever the case: the name, or the whole path below the
    folder where the pattern has a `/`; none means every file. Names that begin with a dot match only where a step does.
    """

    steps: tuple[str, ...]
    include: tuple[str, ...] = ()
    exact: bool = False

    @classmethod
    def of_folder(cls, *, recursive: bool, include: Sequence[str] = ()) -> Selection:
        """The folder's own files, or with `recursive` all below it. Raises OptionsError."""
        return cls((_ANY_DEPTH,) if recursive else ("*",), _checked(include))

    @classmethod
    def of_name(cls, name: str, include: Sequence[str] = ()) -> Selection:
        """One file of the folder. Raises OptionsError."""
        return cls((name,), _checked(include), exact=True)

    @classmethod
    def of_glob(cls, pattern: str, *, recursive: bool, include: Sequence[str] = ()) -> Selection:
        """Files whose path below the folder matches.

        With a `/` at the end the pattern matches folders, and their files are meant. With `recursive` so is everything
        below the folders that match. Raises OptionsError.
        """
        steps = [step for step in pattern.split("/") if step not in ("", ".")]
        if ".." in steps:
            raise OptionsError("there cannot be '..' after the first pattern of a glob")
        if pattern.endswith("/"):
            steps.append("*")
        if recursive:
            steps.append(_ANY_DEPTH)
        return cls(tuple(steps), _checked(include))

    def start(self) -> Levels:
        """Where the folder itself stands."""
        return self._closed([0])

    def enter(self, levels: Levels, name: str) -> Levels:
        """Where its folder `name` stands; empty when nothing in there can match."""
        below = self._after(levels, name)
        return below if any(level < len(self.steps) for level in below) else Levels()

    def picks(self, levels: Levels, name: str, path: str) -> bool:
        """Whether the file `name` of a folder at `levels` is meant; `path` is its path below the first folder."""
        return len(self.steps) in self._after(levels, name) and self.includes(name, path)

    def picks_below(self, levels: Levels, below: str, path: str) -> bool:
        """The same for a file at the path `below` such a folder."""
        *folders, name = below.split("/")
        for folder in folders:
            levels = self.enter(levels, folder)
            if not levels:
                return False
        return self.picks(levels, name, path)

    def selects(self, path: str) -> bool:
        """The same for a file at a path below the first folder, whether it is there or not."""
        return bool(path) and self.picks_below(self.start(), path, path)

    def any_depth(self, levels: Levels) -> bool:
        """Whether files of any depth may match from here on."""
        return not self.exact and any(level < len(self.steps) and self.steps[level] == _ANY_DEPTH for level in levels)

    def only_name(self, levels: Levels) -> str | None:
        """The one name that can match here, if there is only one."""
        steps = [self.steps[level] for level in levels if level < len(self.steps)]
        return steps[0] if len(steps) == 1 and (self.exact or not has_magic(steps[0])) else None

    def name_start(self, levels: Levels) -> str:
        """What every name that can match here begins with; empty where that is not known."""
        steps = [self.steps[level] for level in levels if level < len(self.steps)]
        if len(steps) != 1:
            return ""
        return steps[0] if self.exact else _MAGIC.split(steps[0], maxsplit=1)[0]

    def _after(self, levels: Levels, name: str) -> Levels:
        reached: list[int] = []
        for level in levels:
            if level == len(self.steps):
                continue
            step = self.steps[level]
            if self.exact:
                if name == step:
                    reached.append(level + 1)
            elif name.startswith(".") and not step.startswith("."):
                continue
            elif step == _ANY_DEPTH:
                reached.append(level)
            elif fnmatch.fnmatchcase(name, step):
                reached.append(level + 1)
        return self._closed(reached)

    def _closed(self, levels: Iterable[int]) -> Levels:
        closed: set[int] = set()
        for level in levels:
            closed.add(level)
            while not self.exact and level < len(self.steps) and self.steps[level] == _ANY_DEPTH:
                level += 1
                closed.add(level)
        return Levels(closed)

    def includes(self, name: str, path: str) -> bool:
        """Whether a pattern to include matches a file, or there is none."""
        if not self.include:
            return True
        lower_name = name.lower()
        for pattern in self.include:
            if "/" not in pattern:
                if fnmatch.fnmatchcase(lower_name, pattern):
                    return True
            else:
                whole = Selection(tuple(step for step in pattern.split("/") if step))
                if whole.picks_below(whole.start(), path.lower(), path):
                    return True
        return False


def _checked(include: Sequence[str]) -> tuple[str, ...]:
    patterns = tuple(pattern.lower() for pattern in include)
    for pattern in patterns:
        if not pattern.strip("/") or pattern.endswith("/"):
            raise OptionsError(f"{pattern!r} matches no file: patterns are like *.jpg or 2024/**/*.jpg")
    return patterns
