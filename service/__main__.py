"""`python -m service`: check the settings and models, then hand over to `bentoml serve`."""

from __future__ import annotations

import os
import sys

from handlers.engines import choose_engine
from handlers.errors import HandlerError
from handlers.pipeline import describe_classifier
from service.settings import SettingsError, get_settings


def main() -> None:
    """Replace this process by BentoML's server; exit with 1 and a line on stderr when a setting or model is wrong."""
    try:
        settings = get_settings()
        for model in settings.models:
            describe_classifier(model)
        choose_engine(settings.engine)
    except (SettingsError, HandlerError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True"}
    arguments = ["-m", "bentoml", "serve", "service.app:Mien", "--host", settings.host, "--port", str(settings.port)]
    os.execve(sys.executable, [sys.executable, *arguments], environment)


if __name__ == "__main__":
    main()
