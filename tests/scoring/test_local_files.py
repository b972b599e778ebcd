from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.errors import TooLargeError
from scoring.errors import InputError, UnreadableError
from scoring.local_files import LocalFiles
from scoring.parts import Entry
from scoring.selection import Selection

BOTH = pytest.mark.parametrize("confined", [False, True], ids=["open", "confined"])
EVERYTHING = Selection.of_folder(recursive=True)


def files_in(folder: Path, *, confined: bool = False, selection: Selection = EVERYTHING) -> LocalFiles:
    return LocalFiles(str(folder.resolve()), selection, confined)


def paths(files: LocalFiles) -> list[str]:
    return sorted(entry.path for entry in files.list())


def write(path: Path, data: bytes = b"picture") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def plain_user_folder() -> Iterator[Path]:
    """A folder of an ordinary user, whom this process is meanwhile: root may read everything."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


@BOTH
@pytest.mark.parametrize(
    "name",
    [
        b"with space.jpg",
        b" lead and trail ",
        b"new\nline.jpg",
        b"no-utf8-\xff\xfe.jpg",
        "emoji-🙂-é.jpg".encode(),
        b"x" * 251 + b".jpg",
        b"back\\slash.jpg",
        b"-rf",
        b"[a]*?.jpg",
        b"per%20cent#+?.jpg",
    ],
)
def test_any_name_is_listed_and_read(tmp_path: Path, name: bytes, confined: bool) -> None:
    (tmp_path / "sub").mkdir()
    with open(os.fsencode(tmp_path) + b"/sub/" + name, "wb") as file:  # noqa: PTH123 - a Path is no bytes
        file.write(name)
    files = pickle.loads(pickle.dumps(files_in(tmp_path, confined=confined)))
    (entry,) = files.list()
    assert entry.sort_key == b"sub/" + name
    assert entry.size_bytes == len(name)
    assert files.read(entry, 1000) == name


def test_the_version_is_the_time_of_modification(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg")
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    (entry,) = files_in(tmp_path).list()
    assert entry == Entry("a.jpg", 7, "1700000000123456789")


@BOTH
def test_deep_folders(tmp_path: Path, confined: bool) -> None:
    depth, name = 500, "deep-folder"  # the path is longer than the system takes in one piece
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=folder)
            below = os.open(name, os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = below
        os.close(os.open("a.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    finally:
        os.close(folder)
    files = files_in(tmp_path, confined=confined)
    (entry,) = files.list()
    assert entry.path == f"{name}/" * depth + "a.jpg"
    assert files.read(entry, 10) == b""


@BOTH
def test_loops_of_links_end(tmp_path: Path, confined: bool) -> None:
    write(tmp_path / "sub" / "a.jpg")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    expected = ["sub/a.jpg"] if confined else ["self", "sub/a.jpg"]
    files = files_in(tmp_path, confined=confined)
    assert paths(files) == expected
    with pytest.raises(UnreadableError, match="symbolic link"):
        files.read(Entry("self", None, ""), 10)


def test_links_to_files_are_followed_and_dangling_ones_are_not_lost(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "real.jpg")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.jpg").symlink_to("../elsewhere/real.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "folder").symlink_to("../elsewhere")
    files = files_in(folder)
    entries = {entry.path: entry for entry in files.list()}
    assert {path: entry.size_bytes for path, entry in entries.items()} == {"good.jpg": 7, "gone.jpg": None}
    assert files.read(entries["good.jpg"], 10) == b"picture"
    with pytest.raises(UnreadableError, match="no such file") as caught:
        files.read(entries["gone.jpg"], 10)
    assert str(tmp_path) not in caught.value.detail


def test_a_confined_folder_has_no_links(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.jpg")
    folder = tmp_path / "in"
    write(folder / "a.jpg")
    (folder / "out.jpg").symlink_to(secret)
    (folder / "inside.jpg").symlink_to("a.jpg")
    (folder / "folder").symlink_to(tmp_path)
    files = files_in(folder, confined=True)
    assert paths(files) == ["a.jpg"]
    for path in ("out.jpg", "inside.jpg", "folder/secret.jpg", "../secret.jpg", "/etc/passwd", "./a.jpg", "x//y", ""):
        with pytest.raises(UnreadableError):
            files.read(Entry(path, None, ""), 100)


def test_a_folder_swapped_for_a_link_between_listing_and_reading(tmp_path: Path) -> None:
    write(tmp_path / "private" / "a.jpg", b"secret")
    folder = tmp_path / "in"
    write(folder / "sub" / "a.jpg")
    files = files_in(folder, confined=True)
    (entry,) = files.list()
    (folder / "sub").rename(folder / "old")
    (folder / "sub").symlink_to(tmp_path / "private")
    with pytest.raises(UnreadableError):
        files.read(entry, 100)


def test_a_folder_swapped_for_a_link_while_it_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "private" / "b.jpg", b"secret")
    folder = tmp_path / "in"
    write(folder / "a.jpg")
    write(folder / "sub" / "a.jpg")
    listing = files_in(folder, confined=True).list()
    first = next(listing)
    (folder / "sub").rename(tmp_path / "old")
    (folder / "sub").symlink_to(tmp_path / "private")
    assert [entry.path for entry in (first, *listing)] == ["a.jpg"]


def test_a_confined_root_swapped_for_a_link(tmp_path: Path) -> None:
    write(tmp_path / "private" / "in" / "a.jpg", b"secret")
    write(tmp_path / "allowed" / "in" / "a.jpg")
    files = files_in(tmp_path / "allowed" / "in", confined=True)
    (entry,) = files.list()
    (tmp_path / "allowed").rename(tmp_path / "old")
    (tmp_path / "allowed").symlink_to(tmp_path / "private")
    with pytest.raises(InputError):
        files.read(entry, 100)
    with pytest.raises(InputError):
        list(files.list())


def test_a_confined_folder_below_one_that_cannot_be_listed(plain_user_folder: Path) -> None:
    write(plain_user_folder / "closed" / "in" / "a.jpg")
    (plain_user_folder / "closed").chmod(0o311)
    try:
        files = files_in(plain_user_folder / "closed" / "in", confined=True)
        (entry,) = files.list()
        assert files.read(entry, 10) == b"picture"
    finally:
        (plain_user_folder / "closed").chmod(0o700)


@BOTH
def test_what_is_no_regular_file_is_neither_listed_nor_waited_for(tmp_path: Path, confined: bool) -> None:
    write(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.chdir(tmp_path):  # the address of a socket is short
        listener.bind("socket.jpg")
    files = files_in(tmp_path, confined=confined)
    assert paths(files) == ["a.jpg"]
    for path in ("pipe.jpg", "socket.jpg"):
        with pytest.raises(UnreadableError, match="not a regular file"):
            files.read(Entry(path, None, ""), 10)
    (tmp_path / "sub").mkdir()
    with pytest.raises(UnreadableError, match="not a regular file"):
        files.read(Entry("sub", None, ""), 10)
    listener.close()


def test_a_device_behind_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    files = files_in(tmp_path)
    assert paths(files) == []
    with pytest.raises(UnreadableError, match="not a regular file"):
        files.read(Entry("zero.jpg", None, ""), 10)


@BOTH
def test_large_files_are_not_read(tmp_path: Path, confined: bool) -> None:
    with write(tmp_path / "a.jpg").open("wb") as file:
        file.truncate(1 << 40)
    write(tmp_path / "fits.jpg", b"x" * 100)
    files = files_in(tmp_path, confined=confined)
    large, fits = sorted(files.list(), key=lambda entry: entry.path)
    with pytest.raises(TooLargeError, match="over the limit"):
        files.read(large, 100)
    assert files.read(fits, 100) == b"x" * 100
    with pytest.raises(TooLargeError):
        files.read(fits, 99)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_file_that_says_less_than_it_holds_is_bounded() -> None:
    files = LocalFiles("/proc/self", Selection.of_name("maps"))
    (entry,) = files.list()
    assert entry.size_bytes == 0
    with pytest.raises(TooLargeError):
        files.read(entry, 10)
    assert len(files.read(entry, 10_000_000)) > 10


def test_what_may_not_be_read(plain_user_folder: Path) -> None:
    closed = write(plain_user_folder / "closed.jpg")
    closed.chmod(0)
    files = files_in(plain_user_folder)
    (entry,) = files.list()
    with pytest.raises(UnreadableError, match="permission denied"):
        files.read(entry, 10)
    write(plain_user_folder / "sub" / "a.jpg").parent.chmod(0)
    try:
        with pytest.raises(InputError, match="sub cannot be listed: Permission denied"):
            list(files.list())
    finally:
        (plain_user_folder / "sub").chmod(0o700)


@BOTH
def test_a_missing_file_is_its_own_error_while_the_folder_stands(tmp_path: Path, confined: bool) -> None:
    folder = tmp_path / "in"
    for name in ("a.jpg", "b.jpg"):
        write(folder / name)
    files = files_in(folder, confined=confined)
    entries = list(files.list())
    (folder / "a.jpg").unlink()
    with pytest.raises(UnreadableError, match="no such file"):
        files.read(Entry("a.jpg", 7, ""), 10)
    (folder / "b.jpg").unlink()
    with pytest.raises(InputError, match="not there any more: the folder is empty"):
        files.read(entries[0], 10)
    folder.rmdir()
    with pytest.raises(InputError, match="not there any more"):
        files.read(entries[0], 10)
    with pytest.raises(InputError, match="does not exist"):
        list(files.list())


def test_an_empty_folder_has_no_entries(tmp_path: Path) -> None:
    assert paths(files_in(tmp_path)) == []


def test_too_many_open_files_are_not_the_files_fault(tmp_path: Path) -> None:
    import resource

    write(tmp_path / "a.jpg")
    files = files_in(tmp_path)
    (entry,) = files.list()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(InputError, match="Too many open files"):
            files.read(entry, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_listing_streams_and_leaves_no_descriptor_open(tmp_path: Path) -> None:
    def open_descriptors() -> int:
        return len(os.listdir("/dev/fd"))  # noqa: PTH208

    for index in range(50):
        write(tmp_path / f"{index}.jpg")
    before = open_descriptors()
    listing: Iterator[Entry] = files_in(tmp_path).list()
    next(listing)
    assert open_descriptors() > before
    listing.close()  # type: ignore[attr-defined]
    files = files_in(tmp_path)
    for entry in files.list():
        files.read(entry, 10)
    assert open_descriptors() == before
