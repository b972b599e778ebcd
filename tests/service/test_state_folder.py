from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from service.state_folder import MAX_SOCKET_PATH_BYTES, StateError, owned_state_folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store" / "models" / "mtcnn").mkdir(parents=True)
    return tmp_path / "store"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_missing_folder_is_made_for_its_owner_only(tmp_path: Path, store: Path) -> None:
    with owned_state_folder(tmp_path / "new" / "state", store) as state:
        assert state.path == tmp_path / "new" / "state"
        assert {_mode(path) for path in (state.path, *state.path.iterdir()) if path.is_dir()} == {0o700}


def test_a_folder_of_no_name_is_private_and_removed_in_the_end(store: Path) -> None:
    with owned_state_folder(None, store) as state:
        (state.path / "tmp" / "upload").write_bytes(b"x")
        assert _mode(state.path) == 0o700

    assert not state.path.exists()


def test_the_folder_is_removed_when_the_block_fails_and_the_error_is_kept(store: Path) -> None:
    with pytest.raises(OSError, match="of the block"), owned_state_folder(None, store) as state:
        raise OSError("of the block")

    assert not state.path.exists()


def test_two_owners_at_once_are_refused_and_one_after_the_other_is_fine(tmp_path: Path, store: Path) -> None:
    with (
        owned_state_folder(tmp_path / "state", store),
        pytest.raises(StateError, match="MIEN_STATE_DIR: another service"),
        owned_state_folder(tmp_path / "state", store),
    ):
        pass

    with owned_state_folder(tmp_path / "state", store):
        pass


def test_what_an_earlier_owner_left_is_removed_but_not_what_others_keep_there(tmp_path: Path, store: Path) -> None:
    with owned_state_folder(tmp_path / "state", store) as state:
        left = [state.metrics / "counter_1.db", state.socket_path("detector"), state.path / "tmp" / "upload"]
        kept = [state.path / "jobs", state.path / "numba", state.path / "bentoml" / "models" / "mtcnn" / "1"]
        for path in left + kept:
            path.parent.mkdir(exist_ok=True)
            path.touch()

    with owned_state_folder(tmp_path / "state", store):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in kept)


@pytest.mark.parametrize("name", ["photo.jpg", "tmp"])
def test_a_folder_that_holds_something_else_is_refused_and_untouched(tmp_path: Path, store: Path, name: str) -> None:
    (tmp_path / "state" / name).mkdir(parents=True)

    with (
        pytest.raises(StateError, match=r"MIEN_STATE_DIR: .* is not empty"),
        owned_state_folder(tmp_path / "state", store),
    ):
        pass

    assert [path.name for path in (tmp_path / "state").iterdir()] == [name]


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_setting(tmp_path: Path, store: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StateError, match="MIEN_STATE_DIR: "), owned_state_folder(tmp_path / "file" / "state", store):
        pass


def test_the_workers_see_the_models_of_the_store_of_this_start(tmp_path: Path, store: Path) -> None:
    other = tmp_path / "other"

    with owned_state_folder(tmp_path / "state", other) as state:
        home = Path(state.environment()["BENTOML_HOME"])
        assert not (home / "models").exists()
        (home / "models").mkdir()  # as BentoML does
    with owned_state_folder(tmp_path / "state", store):
        assert (home / "models" / "mtcnn").is_dir()
    (other / "models" / "fer").mkdir(parents=True)
    with owned_state_folder(tmp_path / "state", other):
        assert [path.name for path in (home / "models").iterdir()] == ["fer"]


def test_a_socket_path_that_is_too_long_names_the_setting(tmp_path: Path, store: Path) -> None:
    fits = MAX_SOCKET_PATH_BYTES - len(os.fsencode(tmp_path / "x" / "run" / "detector.sock")) + 1

    with owned_state_folder(tmp_path / ("x" * fits), store) as state:
        assert len(str(state.socket_path("detector"))) == MAX_SOCKET_PATH_BYTES
    with (
        owned_state_folder(tmp_path / ("x" * (fits + 1)), store) as state,
        pytest.raises(StateError, match=r"MIEN_STATE_DIR: .* too long"),
    ):
        state.socket_path("detector")


def test_kernels_are_cached_in_it_only_where_they_cannot_lie_beside_their_source(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    with owned_state_folder(tmp_path / "state", store) as state:
        beside = state.environment()
        # Root may write to folders whatever their mode, so a read-only file system is simulated.
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        apart = state.environment()
        monkeypatch.setenv("NUMBA_CACHE_DIR", "chosen")
        chosen = state.environment()

    assert apart["NUMBA_CACHE_DIR"] == str(state.path / "numba")
    assert "NUMBA_CACHE_DIR" not in beside
    assert "NUMBA_CACHE_DIR" not in chosen
