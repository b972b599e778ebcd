"""`python -m model_store`: register, list, show, verify, promote, rollback."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from model_store import mtcnn, registry
from model_store.bundle import (
    BUNDLES_ROOT,
    Bundle,
    bundle_names,
    find_bundle,
    open_bundle,
    shipped_defaults,
    version_key,
)
from model_store.errors import ModelStoreError
from model_store.manifest import CARD_NAME, dump_manifest


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 1 after a line on stderr that names what is wrong."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ModelStoreError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_store", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    register = commands.add_parser("register", help="export, check parity and save in the BentoML store")
    register.add_argument("names", nargs="*", metavar="NAME", help=f"bundle names or folders, or {mtcnn.NAME}")
    register.add_argument(
        "--all", action="store_true", help=f"{mtcnn.NAME} and every bundle, newest versions, default first"
    )
    register.add_argument("--bundles", type=Path, default=BUNDLES_ROOT, help="the folder that holds the bundles")
    register.set_defaults(run=_register)

    listing = commands.add_parser("list", help="the registered models; * marks the defaults")
    listing.set_defaults(run=_list)

    show = commands.add_parser("show", help="manifest and card of a registered model")
    show.add_argument("name", metavar="NAME[:VERSION]")
    show.set_defaults(run=_show)

    verify = commands.add_parser("verify", help="check every digest of registered models or bundle folders")
    verify.add_argument("names", nargs="*", metavar="NAME|FOLDER", help="all that are registered if none is given")
    verify.set_defaults(run=_verify)

    promote = commands.add_parser("promote", help="make a registered model the default of its task")
    promote.add_argument("name", metavar="NAME[:VERSION]")
    promote.set_defaults(run=_promote)

    rollback = commands.add_parser("rollback", help="undo the newest promotion")
    rollback.set_defaults(run=_rollback)
    return parser


def _register(options: argparse.Namespace) -> None:
    names: list[str] = list(options.names)
    if options.all:
        names += [mtcnn.NAME, *bundle_names(options.bundles)]
    if not names:
        raise ModelStoreError("name a bundle, or say --all")
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            model = registry.register(_bundle(name, options.bundles, Path(work)))
        parity = ", ".join(f"{key} {value.max_abs_difference:.1e}" for key, value in model.serving.parity.items())
        print(f"registered {model.manifest.tag}  (largest difference from torch: {parity})")
        if model.serving.int8:
            difference = model.serving.int8.max_probability_difference
            print(f"  int8: probabilities within {difference:.3f} of fp32's on {model.serving.int8.n_real} real inputs")
    if options.all:
        _say_which_defaults_stay(options.bundles)


def _say_which_defaults_stay(root: Path) -> None:
    """A line for each task whose default is another model than the one that ships as default: promoting is explicit.

    A newer version of it than ships is the same model.
    """
    current = registry.defaults()
    for task, name in shipped_defaults(root).items():
        newest = find_bundle(root, name).name
        own_name, _, version = (current.get(task) or "").partition(":")
        if own_name == name and version_key(version) >= version_key(newest):
            continue
        print(
            f"the default stays {current.get(task)}; this one ships now: python -m model_store promote {name}:{newest}"
        )


def _bundle(name: str, root: Path, work: Path) -> Bundle:
    if name == mtcnn.NAME:
        return mtcnn.publish_mtcnn(work)
    if Path(name).is_dir():
        return open_bundle(Path(name))
    return open_bundle(find_bundle(root, name))


def _list(_: argparse.Namespace) -> None:
    for model in registry.list_registered():
        mark = "*" if model.is_default else " "
        print(f"{mark} {model.tag:32} {model.task:24} {model.size_bytes / 1e6:8.1f} MB")


def _show(options: argparse.Namespace) -> None:
    bundle = registry.load(options.name).bundle
    print(dump_manifest(bundle.manifest))
    card = bundle.folder / CARD_NAME
    if card.exists():
        print(card.read_text())


def _verify(options: argparse.Namespace) -> None:
    for name in options.names or [model.tag for model in registry.list_registered()]:
        if Path(name).is_dir():
            tag = open_bundle(Path(name)).manifest.tag
        else:
            tag = registry.load(name).manifest.tag
        print(f"{tag}: every file as recorded")


def _promote(options: argparse.Namespace) -> None:
    print(f"default: {registry.promote(options.name)}")


def _rollback(_: argparse.Namespace) -> None:
    for task, tag in registry.rollback().items():
        print(f"default {task}: {tag}")


if __name__ == "__main__":
    sys.exit(main())
