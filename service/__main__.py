"""`python -m service` runs the service; with `--check` it only looks whether settings and models are right."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from handlers.engines import choose_engine
from handlers.errors import HandlerError
from handlers.pipeline import DEFAULT, FAKE, describe_classifier
from model_store import registry
from model_store.errors import ModelStoreError
from service.listeners import PortError
from service.settings import Settings, SettingsError, get_settings
from service.state_folder import StateError
from service.supervisor import supervise


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit with 1 and a line on stderr when a setting, model or address is wrong."""
    parser = argparse.ArgumentParser(prog="python -m service", description="Settings: see docs/settings.md.")
    parser.add_argument("--check", action="store_true", help="check the settings and models, and serve nothing")
    only_check = parser.parse_args().check
    try:
        settings = get_settings()
        if only_check:
            check_models(settings)
            return
        code = supervise(settings)
    except (SettingsError, StateError, PortError, HandlerError, ModelStoreError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(code)


def check_models(settings: Settings) -> None:
    """Look whether the roots of jobs, the engine and every model are there.

    Raises SettingsError, HandlerError or ModelStoreError.
    """
    _check_roots(settings)
    for model in settings.models:
        describe_classifier(model)
    if settings.detector == DEFAULT:
        registry.load_default("face-detection")
    elif settings.detector != FAKE:
        registry.load(settings.detector)
    choose_engine(settings.engine)


def _check_roots(settings: Settings) -> None:
    """A job must read nothing of the service's own: neither what others have scored nor keys. Raises SettingsError."""
    own = (
        ("the folder of jobs", settings.jobs_dir),
        ("the state folder", settings.state_dir),
        ("the file of API keys", settings.api_keys_file),
    )
    for root in settings.roots:
        if not root.is_local:
            continue
        folder = Path(root.location).resolve()
        if not folder.is_dir():
            raise SettingsError(f"MIEN_SCORING_ROOTS: {root.location} is not a folder")
        for what, path in own:
            if path is None:
                continue
            if path.resolve().is_relative_to(folder):
                raise SettingsError(f"MIEN_SCORING_ROOTS: {root.location} holds {what}, {path}")
            if folder.is_relative_to(path.resolve()):
                raise SettingsError(f"MIEN_SCORING_ROOTS: {root.location} lies in {what}, {path}")


if __name__ == "__main__":
    main()
