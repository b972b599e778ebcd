"""`python -m training`: from data to a published bundle."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

from handlers.errors import HandlerError
from model_store.errors import ModelStoreError
from training.commands import (
    compare,
    errors,
    evaluate,
    fit_crop,
    inspect_data,
    publish,
    quantise,
    report,
    split,
    train,
    wild,
)
from training.errors import TrainingError

_COMMANDS: tuple[ModuleType, ...] = (
    inspect_data, split, train, report, compare, evaluate, errors, publish, quantise, wild, fit_crop,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 1 after a line on stderr that names what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (TrainingError, ModelStoreError, HandlerError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that may not be read, a file where a folder should be
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
