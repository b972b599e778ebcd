from __future__ import annotations

import pytest

from scoring.errors import OptionsError
from scoring.selection import Selection


def chosen(selection: Selection, *paths: str) -> list[str]:
    return [path for path in paths if selection.picks_below(selection.start(), path, path)]


TREE = ("a.jpg", "B.JPG", "n.txt", "x/a.jpg", "x/y/a.jpg", "x2/a.jpg", ".h.jpg", ".h/a.jpg", "x/.h/a.jpg")


@pytest.mark.parametrize(
    ("pattern", "recursive", "expected"),
    [
        ("*.jpg", False, ["a.jpg"]),
        ("?.jpg", False, ["a.jpg"]),
        ("[!a].JPG", False, ["B.JPG"]),
        ("*/*.jpg", False, ["x/a.jpg", "x2/a.jpg"]),
        ("x*", False, []),
        ("x*/", False, ["x/a.jpg", "x2/a.jpg"]),
        ("x*/", True, ["x/a.jpg", "x/y/a.jpg", "x2/a.jpg"]),
        ("x*", True, ["x/a.jpg", "x/y/a.jpg", "x2/a.jpg"]),
        ("**/*.jpg", False, ["a.jpg", "x/a.jpg", "x/y/a.jpg", "x2/a.jpg"]),
        ("**", False, ["a.jpg", "B.JPG", "n.txt", "x/a.jpg", "x/y/a.jpg", "x2/a.jpg"]),
        ("x/**/a.jpg", False, ["x/a.jpg", "x/y/a.jpg"]),
        ("**/y/**", False, ["x/y/a.jpg"]),
        (".*", False, [".h.jpg"]),
        (".h/*", False, [".h/a.jpg"]),
        ("*/.h/*", False, ["x/.h/a.jpg"]),
    ],
)
def test_globs(pattern: str, recursive: bool, expected: list[str]) -> None:
    assert chosen(Selection.of_glob(pattern, recursive=recursive), *TREE) == expected


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ([], ["a.jpg", "B.JPG", "n.txt", "x/a.jpg", "x/y/a.jpg", "x2/a.jpg"]),
        (["*.jpg"], ["a.jpg", "B.JPG", "x/a.jpg", "x/y/a.jpg", "x2/a.jpg"]),
        (["*.PNG", "N.*"], ["n.txt"]),
        (["X/*"], ["x/a.jpg"]),
        (["x/**/*.jpg"], ["x/a.jpg", "x/y/a.jpg"]),
        (["/a.jpg"], ["a.jpg"]),
    ],
)
def test_include_is_deaf_to_case_and_looks_at_the_path_only_with_a_slash(
    include: list[str], expected: list[str]
) -> None:
    assert chosen(Selection.of_folder(recursive=True, include=include), *TREE) == expected


def test_a_folder_alone_is_its_own_files() -> None:
    assert chosen(Selection.of_folder(recursive=False), *TREE) == ["a.jpg", "B.JPG", "n.txt"]


def test_one_name_is_taken_as_it_is_written() -> None:
    assert chosen(Selection.of_name("[a]*.jpg"), "a.jpg", "[a]*.jpg", "a*.jpg") == ["[a]*.jpg"]
    assert chosen(Selection.of_name("**"), "a", "**", "a/b") == ["**"]
    assert chosen(Selection.of_name(".h.jpg"), *TREE) == [".h.jpg"]


def test_names_with_newlines_and_bytes_that_are_no_utf8_match_like_others() -> None:
    names = ("a\nb.jpg", "\udcff\udcfe.jpg", "🙂.jpg", "a\n")
    assert chosen(Selection.of_glob("*.jpg", recursive=False), *names) == list(names[:3])


def test_folders_in_which_nothing_can_match_are_not_entered() -> None:
    selection = Selection.of_glob("2024-*/*/x.jpg", recursive=False)
    start = selection.start()
    assert not selection.enter(start, "2023-01")
    below = selection.enter(start, "2024-01")
    assert below
    deeper = selection.enter(below, "any")
    assert selection.only_name(deeper) == "x.jpg"
    assert not selection.enter(deeper, "x.jpg")
    assert selection.name_start(start) == "2024-"
    assert selection.name_start(below) == ""
    assert not selection.any_depth(start)
    whole = Selection.of_folder(recursive=True)
    assert whole.any_depth(whole.start())


@pytest.mark.parametrize("pattern", ["", "/", "photos/"])
def test_patterns_that_match_no_file_are_refused(pattern: str) -> None:
    with pytest.raises(OptionsError, match="matches no file"):
        Selection.of_folder(recursive=True, include=["*.jpg", pattern])


def test_a_glob_cannot_go_up() -> None:
    with pytest.raises(OptionsError, match=r"\.\."):
        Selection.of_glob("*/../x", recursive=False)
