"""A bundle on disk: `<root>/<name>/<version>/` with a manifest, weights and a card, verified on every open."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import (
    BundleExistsError,
    DigestMismatchError,
    FileMissingError,
    FileUnexpectedError,
    LabelMismatchError,
    ManifestError,
    ModelNotFoundError,
    SizeMismatchError,
    UnsafeWeightsError,
)
from model_store.manifest import (
    MANIFEST_NAME,
    TASKS,
    WEIGHTS_NAME,
    DetectionManifest,
    EmotionManifest,
    FileRecord,
    dump_manifest,
    read_manifest,
)

BUNDLES_ROOT = Path(__file__).parent / "bundles"
"""Where the bundles that ship with the source live."""

DEFAULTS_NAME = "defaults.json"
"""Beside the bundles: which of them is the default of its task where nobody has promoted one, as task → name."""

_LARGEST_HEADER_BYTES = 100 * 1024 * 1024


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were all found to be what its manifest says."""

    folder: Path
    manifest: DetectionManifest | EmotionManifest

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS_NAME

    @property
    def sha256(self) -> str:
        """Digest of the manifest, and through it of every file."""
        return hashlib.sha256(dump_manifest(self.manifest).encode()).hexdigest()


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle and verify all of it: schema, file set, sizes, digests, weights format, label count.

    Raises ModelNotFoundError when there is no such folder, else the error of `model_store.errors` that says what is
    wrong.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: no such bundle")
    manifest = read_manifest(folder / MANIFEST_NAME)
    verify_files(folder, manifest.files, also=(MANIFEST_NAME,))
    shapes = read_tensor_shapes(folder / WEIGHTS_NAME)
    classifier = manifest.architecture.classifier
    if isinstance(manifest, EmotionManifest) and classifier is not None:
        if not shapes.get(classifier):
            raise LabelMismatchError(f"{manifest.tag}: the weights have no tensor {classifier!r}")
        manifest.check_outputs(shapes[classifier][0])
    return Bundle(folder, manifest)


def verify_files(folder: Path, records: Mapping[str, FileRecord], also: tuple[str, ...] = ()) -> None:
    """Check that `folder` holds the recorded files and nothing else but `also`, each with its size and digest.

    Raises FileMissingError, FileUnexpectedError, SizeMismatchError or DigestMismatchError.
    """
    present = {path.name for path in folder.iterdir()}
    if missing := sorted(set(records) - present):
        raise FileMissingError(f"{folder}: {', '.join(missing)} missing")
    if extra := sorted(present - set(records) - set(also)):
        raise FileUnexpectedError(f"{folder}: {', '.join(extra)} not in the manifest")
    for name, record in records.items():
        size_bytes = (folder / name).stat().st_size
        if size_bytes != record.size_bytes:
            raise SizeMismatchError(f"{folder / name}: {size_bytes} bytes, recorded are {record.size_bytes}")
        if file_sha256(folder / name) != record.sha256:
            raise DigestMismatchError(f"{folder / name}: its sha256 is not the recorded one")


def record_file(path: Path) -> FileRecord:
    """Size and digest of a file as a manifest records them."""
    return FileRecord(size_bytes=path.stat().st_size, sha256=file_sha256(path))


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, from its header alone.

    Raises UnsafeWeightsError when the file is anything else (a pickle or a torch archive, say).
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        if prefix[:2] == b"PK" or prefix[:1] == b"\x80":
            raise UnsafeWeightsError(f"{path}: a pickle or torch archive, which can run code when it is loaded")
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(_LARGEST_HEADER_BYTES, path.stat().st_size - 8):
            raise UnsafeWeightsError(f"{path}: not a safetensors file")
        try:
            header = json.loads(file.read(length))
            return {
                name: tuple(int(side) for side in entry["shape"])
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UnsafeWeightsError(f"{path}: not a safetensors file ({error})") from None


def publish_bundle(
    root: Path, manifest: DetectionManifest | EmotionManifest, files: Mapping[str, bytes | Path]
) -> Bundle:
    """Write a bundle under `root` so that it is there whole or not at all, and open it.

    manifest: as it will be written, but for `files`, which is filled in here.
    Raises BundleExistsError when that version stands, and whatever `open_bundle` raises on the written files.
    """
    if odd := [name for name in files if Path(name).name != name]:
        raise ManifestError(f"files: {', '.join(odd)} is not a plain file name")
    target = new_folder(root, manifest.name, manifest.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{manifest.version}.", dir=target.parent))
    try:
        for name, content in files.items():
            if isinstance(content, Path):
                shutil.copyfile(content, work / name)
            else:
                (work / name).write_bytes(content)
        records = {name: record_file(work / name) for name in sorted(files)}
        manifest = manifest.model_copy(update={"files": records})
        (work / MANIFEST_NAME).write_text(dump_manifest(manifest))
        open_bundle(work)
        work.chmod(0o755)
        try:
            work.rename(target)
        except OSError:
            raise BundleExistsError(f"{target}: that version was published meanwhile") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Bundle(target, manifest)


def new_folder(root: Path, name: str, version: str) -> Path:
    """Where that version will be published. Raises BundleExistsError when it stands."""
    folder = root / name / version
    if folder.exists():
        raise BundleExistsError(f"{folder}: that version stands; choose another")
    return folder


def find_bundle(root: Path, name: str) -> Path:
    """The folder of `name` (its highest version) or `name:version` under `root`. Raises ModelNotFoundError."""
    base, _, version = name.partition(":")
    if version:
        folder = root / base / version
        if folder.is_dir():
            return folder
        raise ModelNotFoundError(f"no bundle {name} under {root}")
    versions = [path.parent for path in (root / base).glob(f"[!.]*/{MANIFEST_NAME}")]
    if not versions:
        raise ModelNotFoundError(f"no bundle {name} under {root}")
    return max(versions, key=lambda path: version_key(path.name))


def bundle_names(root: Path) -> list[str]:
    """The names of the bundles under `root`: first the defaults of `defaults.json`, then the others, sorted.

    Raises ManifestError when `defaults.json` is no map of tasks to names of bundles that are there.
    """
    names = sorted({path.parents[1].name for path in root.glob(f"[!.]*/[!.]*/{MANIFEST_NAME}")})
    first = sorted(set(shipped_defaults(root).values()))
    if absent := [name for name in first if name not in names]:
        raise ManifestError(f"{root / DEFAULTS_NAME}: no bundle {', '.join(absent)} beside it")
    return [*first, *(name for name in names if name not in first)]


def shipped_defaults(root: Path) -> dict[str, str]:
    """Task → name, from `defaults.json` under `root`; nothing where there is none. Raises ManifestError."""
    file = root / DEFAULTS_NAME
    if not file.exists():
        return {}
    try:
        values = json.loads(file.read_bytes())
    except ValueError as error:
        raise ManifestError(f"{file}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values.values()):
        raise ManifestError(f"{file}: not a map of tasks to names of bundles")
    if unknown := sorted(set(values) - set(TASKS)):
        raise ManifestError(f"{file}: {', '.join(unknown)}: none of the tasks {', '.join(TASKS)}")
    return values


def version_key(version: str) -> tuple[int, ...]:
    """`1.10.0` → (1, 10, 0), to sort versions by. Raises ManifestError for anything else."""
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError:
        raise ManifestError(f"version {version!r} is not like 1.2.3") from None
