from __future__ import annotations

import contextlib
import os
import pickle
import sys
from pathlib import Path

import pytest

from scoring.errors import InputError, OptionsError, ScoringError, UnreadableError
from scoring.parts import Entry
from scoring.sources import Source, open_source


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for path in ("a.jpg", "B.JPG", "n.txt", "x/a.jpg", "x/y/a.jpg", "x2/a.jpg", ".h.jpg", ".h/a.jpg"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())
    return folder


def paths(source: Source) -> list[str]:
    return sorted(entry.path for entry in source.list())


def test_a_folder(tree: Path) -> None:
    source = pickle.loads(pickle.dumps(open_source(str(tree))))
    assert source.root == str(tree)
    assert paths(source) == ["B.JPG", "a.jpg", "n.txt"]
    assert {source.read(entry, 10) for entry in source.list()} == {b"B.JPG", b"a.jpg", b"n.txt"}
    whole = ["B.JPG", "a.jpg", "n.txt", "x/a.jpg", "x/y/a.jpg", "x2/a.jpg"]
    for form in (str(tree), f"{tree}/", f"file://{tree}", f"local://{tree}", f"{tree}/x/.."):
        assert paths(open_source(form, recursive=True)) == whole
    whole.remove("n.txt")
    assert paths(open_source(str(tree), recursive=True, include=["*.jpg"])) == whole


def test_a_relative_input_stands_when_the_working_directory_changes(tree: Path) -> None:
    with contextlib.chdir(tree):
        sources = [open_source(form) for form in (".", "*", "a.jpg", "x/../*.jpg")]
    assert [source.root for source in sources] == [str(tree)] * 4
    for source in sources:
        assert source.read(Entry("a.jpg", None, ""), 10) == b"a.jpg"


def test_parents_of_links_are_where_the_system_finds_them(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree / "x" / "y")
    source = open_source(f"{tmp_path}/link/../*.jpg")
    assert source.root == str(tree / "x")
    assert paths(open_source(f"{tmp_path}/link/..")) == ["a.jpg"]


def test_globs(tree: Path) -> None:
    assert paths(open_source(f"{tree}/*.jpg")) == ["a.jpg"]
    assert paths(open_source(f"{tree}/**/*.jpg")) == ["a.jpg", "x/a.jpg", "x/y/a.jpg", "x2/a.jpg"]
    assert paths(open_source(f"{tree}/x*/")) == ["x/a.jpg", "x2/a.jpg"]
    assert paths(open_source(f"{tree}/*/y/*.jpg")) == ["x/y/a.jpg"]
    assert paths(open_source(f"{tree}/*.nothing")) == []
    source = open_source(f"{tree}/x/*/a.jpg")
    assert (source.root, paths(source)) == (f"{tree}/x", ["y/a.jpg"])
    with pytest.raises(InputError, match="nothing does not exist"):
        open_source(f"{tree}/nothing/*.jpg")


def test_what_exists_as_it_is_written_is_no_glob(tree: Path) -> None:
    (tree / "[1]").mkdir()
    (tree / "[1]" / "b.jpg").write_bytes(b"1")
    (tree / "a*.jpg").write_bytes(b"1")
    assert paths(open_source(f"{tree}/[1]")) == ["b.jpg"]
    assert paths(open_source(f"{tree}/a*.jpg")) == ["a*.jpg"]


def test_what_a_source_would_select(tree: Path) -> None:
    def selected(source: Source) -> list[str]:
        return [path for path in ("o.jpg", "x/o.jpg", "o.txt", ".o/a.jpg", "o/.a.jpg", "") if source.selects(path)]

    assert selected(open_source(str(tree))) == ["o.jpg", "o.txt"]
    assert selected(pickle.loads(pickle.dumps(open_source(str(tree), recursive=True)))) == ["o.jpg", "x/o.jpg", "o.txt"]
    assert selected(open_source(str(tree), recursive=True, include=["*.jpg"])) == ["o.jpg", "x/o.jpg"]
    assert selected(open_source(f"{tree}/x*/*.jpg")) == ["x/o.jpg"]
    assert selected(open_source(f"{tree}/a.jpg")) == []
    (tree / "list.txt").write_text("o.jpg\n")
    assert selected(open_source(str(tree / "list.txt"))) == []


def test_one_picture(tree: Path) -> None:
    source = open_source(f"{tree}/x/a.jpg")
    assert (source.root, paths(source)) == (f"{tree}/x", ["a.jpg"])
    assert paths(open_source(f"file://{tree}/.h.jpg")) == [".h.jpg"]


def test_what_is_no_input(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    for given in (f"{tree}/nothing", f"{tree}/nothing/x.jpg", f"{tree}/a.jpg/", f"file://{tree}/nothing", "s3:b/x"):
        with pytest.raises(InputError, match="does not exist"):
            open_source(given)
    with pytest.raises(InputError, match="neither a folder nor a file"):
        open_source(f"{tree}/pipe")
    for given, match in (("", "empty"), ("a\0b", "zero byte"), ("file://x/y", "absolute"), ("nix://x", "no protocol")):
        with pytest.raises(InputError, match=match):
            open_source(given)
    with pytest.raises(OptionsError, match="list of patterns"):
        open_source(str(tree), include="*.jpg")


def test_a_protocol_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec  # noqa: F401

    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"s3:// needs a package that is not installed: install mien\[s3\]"):
        open_source("s3://bucket/x")


def test_a_message_about_a_name_that_is_no_utf8_can_be_printed(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_source(f"{tmp_path}/\udcff")
    assert str(caught.value).encode().endswith(rb"\xff does not exist")


def test_a_confined_source_is_a_folder_without_links_in_its_root(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    source = open_source(str(tmp_path / "link"), confined=True, recursive=True)
    assert source.root == str(tree)
    assert "x/y/a.jpg" in paths(source)
    for path in ("../in/a.jpg", "/etc/passwd", "x/../a.jpg"):
        with pytest.raises(UnreadableError):
            source.read(Entry(path, None, ""), 100)
    (tree / "l.txt").write_text("/etc/passwd\n")
    for given in (
        f"{tree}/*",
        f"{tree}/a.jpg",
        f"{tree}/l.txt",
        f"{tree}/nothing",
        "simplecache::file:///",
        "http://h/x",
    ):
        with pytest.raises(ScoringError):
            open_source(given, confined=True)


@pytest.mark.parametrize(
    "url", ["s3://KEY:SECRET@bucket/x", "https://u:SECRET@host/x", "zip://SECRET::s3://k:SECRET@b"]
)
def test_secrets_do_not_come_out(url: str) -> None:
    with pytest.raises(ScoringError) as caught:
        open_source(url)
    assert "SECRET" not in str(caught.value)
