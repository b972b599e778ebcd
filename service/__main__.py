"""`python -m service`: check the settings, then hand over to `bentoml serve`."""

from __future__ import annotations

import os
import sys

from service.settings import SettingsError, get_settings


def main() -> None:
    """Replace this process by BentoML's server, or exit with 1 and a line on stderr when a setting is wrong."""
    try:
        settings = get_settings()
    except SettingsError as error:
        sys.exit(f"SettingsError: {error}")
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True"}
    arguments = ["-m", "bentoml", "serve", "service.app:Mien", "--host", settings.host, "--port", str(settings.port)]
    os.execve(sys.executable, [sys.executable, *arguments], environment)


if __name__ == "__main__":
    main()
