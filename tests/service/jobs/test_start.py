"""Roots of jobs that the service does not start with: they would show what is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.pipeline import FAKE
from service.__main__ import check_models
from service.settings import Settings, SettingsError


def _check(folder: Path, root: str, **settings: Path) -> None:
    (folder / root).mkdir(parents=True, exist_ok=True)
    made = Settings(models=(FAKE,), detector=FAKE, scoring_roots=(f"photos={folder / root}",), **settings)  # type: ignore[arg-type]
    check_models(made)


@pytest.mark.parametrize(
    ("root", "setting", "own", "says"),
    [
        ("data", "jobs_dir", "data/jobs", "holds the folder of jobs"),
        ("data", "jobs_dir", "data", "holds the folder of jobs"),
        ("jobs/x/output", "jobs_dir", "jobs", "lies in the folder of jobs"),
        ("data", "state_dir", "data/state", "holds the state folder"),
        ("state/tmp", "state_dir", "state", "lies in the state folder"),
        ("data", "api_keys_file", "data/secret/keys", "holds the file of API keys"),
    ],
)
def test_a_root_and_what_is_the_services_own_lie_apart(
    tmp_path: Path, root: str, setting: str, own: str, says: str
) -> None:
    with pytest.raises(SettingsError, match=rf"^MIEN_SCORING_ROOTS: {tmp_path}/{root} {says}, {tmp_path}/{own}$"):
        _check(tmp_path, root, **{setting: tmp_path / own})


def test_a_link_to_a_root_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")

    with pytest.raises(SettingsError, match="holds the state folder"):
        _check(tmp_path, "link", state_dir=tmp_path / "data" / "state")


def test_roots_beside_it_are_fine(tmp_path: Path) -> None:
    own = {"jobs_dir": tmp_path / "jobs", "state_dir": tmp_path / "state", "api_keys_file": tmp_path / "keys"}

    _check(tmp_path, "data", **own)
