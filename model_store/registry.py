"""Models in the BentoML store: register, list, load, promote, roll back. The only module here that imports bentoml.

A registered model is the BentoML model `name:version`. The defaults are a BentoML model too, `mien-defaults`: each
promotion adds a version that maps every task to a tag, and rolling back removes the newest. So the choice travels
into a Bento like any other model.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model_store.bundle import Bundle, version_key
from model_store.errors import ModelNotFoundError, ModelStoreError, NothingToRollBackError
from model_store.servable import ServableModel, open_servable

if TYPE_CHECKING:
    import bentoml

Task = Literal["face-detection", "emotion-classification"]
DEFAULTS_NAME, DEFAULTS_FILE = "mien-defaults", "defaults.json"


@dataclass(frozen=True)
class RegisteredModel:
    """One line of the listing."""

    tag: str
    task: str
    is_default: bool
    size_bytes: int


def register(bundle: Bundle) -> ServableModel:
    """Build what serving needs from the bundle and save it in the store as `name:version`.

    Registering a version that stands returns it when it is whole and was built from the same bundle, and replaces it
    otherwise, once the new one is built. The first model of a task becomes its default, and so does another version of
    a default that no longer opens, such as one that an older Mien registered.
    Raises ParityError when the export does not hold.
    """
    import bentoml

    from model_store.export import build_servable

    manifest = bundle.manifest
    with contextlib.suppress(ModelStoreError):  # not there, or damaged: build it
        standing = load(manifest.tag)
        if standing.bundle.sha256 == bundle.sha256:
            return standing
    with tempfile.TemporaryDirectory() as work:
        build_servable(bundle, Path(work))
        if _find(manifest.tag) is not None:
            bentoml.models.delete(manifest.tag)
        with bentoml.models.create(
            manifest.tag, labels={"task": manifest.task}, metadata={"bundle_sha256": bundle.sha256}
        ) as entry:
            shutil.copytree(work, entry.path, dirs_exist_ok=True)
    current = defaults().get(manifest.task)
    if current is None or (current.partition(":")[0] == manifest.name and not _opens(current)):
        promote(manifest.tag)
    return load(manifest.tag)


def load(name: str) -> ServableModel:
    """Open the registered model `name:version`, or the highest version of `name`, with every digest verified.

    Raises ModelNotFoundError when it is not in the store, and what `open_servable` raises.
    """
    entry = _find(name)
    if entry is None:
        raise ModelNotFoundError(f"{name} is not registered: python -m model_store register {name}")
    return open_servable(Path(entry.path))


def load_default(task: Task) -> ServableModel:
    """Open the default model of a task. Raises ModelNotFoundError when none is registered."""
    tag = defaults().get(task)
    if tag is None:
        raise ModelNotFoundError(f"no {task} model is registered: python -m model_store register --all")
    return load(tag)


def list_registered() -> list[RegisteredModel]:
    """Every registered model, by name and version."""
    import bentoml

    chosen = set(defaults().values())
    models = []
    for entry in bentoml.models.list():
        if entry.tag.name != DEFAULTS_NAME and "task" in entry.info.labels:
            tag = str(entry.tag)
            models.append(RegisteredModel(tag, entry.info.labels["task"], tag in chosen, entry.file_size))
    return sorted(models, key=lambda model: _sort_key(model.tag))


def defaults() -> dict[str, str]:
    """The default tag of each task that has one."""
    import bentoml

    try:
        entry = bentoml.models.get(DEFAULTS_NAME)
    except bentoml.exceptions.NotFound:
        return {}
    mapping: dict[str, str] = json.loads(Path(entry.path_of(DEFAULTS_FILE)).read_text())
    return mapping


def promote(name: str) -> str:
    """Make the registered model `name` the default of its task and return its tag. Raises ModelNotFoundError."""
    import bentoml

    manifest = load(name).manifest
    current = defaults()
    mapping = {**current, manifest.task: manifest.tag}
    if mapping != current:
        with bentoml.models.create(DEFAULTS_NAME) as entry:
            Path(entry.path_of(DEFAULTS_FILE)).write_text(json.dumps(mapping, indent=2) + "\n")
    return manifest.tag


def rollback() -> dict[str, str]:
    """Undo the newest promotion and return the defaults that hold now.

    Raises NothingToRollBackError when no earlier defaults stand, when they name a model that is gone, or when a task
    would be left without any.
    """
    import bentoml

    try:
        history = sorted(bentoml.models.list(DEFAULTS_NAME), key=lambda entry: entry.creation_time)
    except bentoml.exceptions.NotFound:
        history = []
    if len(history) < 2:
        raise NothingToRollBackError("there is no earlier promotion")
    earlier: dict[str, str] = json.loads(Path(history[-2].path_of(DEFAULTS_FILE)).read_text())
    if orphaned := sorted(set(defaults()) - set(earlier)):
        raise NothingToRollBackError(f"{', '.join(orphaned)} has no earlier default")
    if gone := [tag for tag in earlier.values() if _find(tag) is None]:
        raise NothingToRollBackError(f"the earlier default {', '.join(gone)} is no longer registered")
    bentoml.models.delete(history[-1].tag)
    return defaults()


def _opens(tag: str) -> bool:
    try:
        load(tag)
    except ModelStoreError:
        return False
    return True


def _find(name: str) -> bentoml.Model | None:
    """The store's entry for `name:version`, or for the highest version of `name`.

    Exact names only: `bentoml.models.get` would also take a version's first characters for the version.
    """
    import bentoml

    base, _, version = name.partition(":")
    try:
        entries = [entry for entry in bentoml.models.list(base) if entry.tag.name == base]
    except (bentoml.exceptions.BentoMLException, ValueError):
        return None
    if base == DEFAULTS_NAME:
        return None
    if version:
        return next((entry for entry in entries if entry.tag.version == version), None)
    return max(entries, key=lambda entry: version_key(str(entry.tag.version)), default=None)


def _sort_key(tag: str) -> tuple[str, tuple[int, ...]]:
    name, _, version = tag.partition(":")
    return name, version_key(version)
