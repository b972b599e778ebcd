from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.jobs.inputs import find_place
from service.jobs.roots import Root, parse_roots
from service.settings import SettingsError, get_settings


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("/data/photos", Root("photos", "/data/photos")),
        ("/data/photos/", Root("photos", "/data/photos")),
        ("may=/data/2026/photos", Root("may", "/data/2026/photos")),
        ("all=/", Root("all", "/")),
        ("/data/a=b", None),
        ("x=/data/a=b", Root("x", "/data/a=b")),
        ("s3://bucket", Root("s3://bucket", "s3://bucket")),
        ("s3://bucket/pre/fix/", Root("s3://bucket/pre/fix", "s3://bucket/pre/fix")),
        ("photos", None),
        ("./photos", None),
        ("/data/../etc", None),
        ("/", None),
        ("/data/my photos", None),
        ("s3://", None),
        ("s3://Bucket", None),
        ("s3://key:secret@bucket", None),
        ("s3://bucket/../x", None),
        ("s3://bucket/*", None),
        ("http://example.org/x", None),
        ("file:///data", None),
        ("x=s3://bucket", None),
    ],
)
def test_a_root_is_an_absolute_folder_or_a_bucket(text: str, root: Root | None) -> None:
    if root is None:
        with pytest.raises(ValueError, match=r".+: "):
            parse_roots([text])
    else:
        assert parse_roots([text]) == (root,)


def test_two_roots_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="photos"):
        parse_roots(["/a/photos", "/b/photos"])

    assert [root.name for root in parse_roots(["/a/photos", "b=/b/photos"])] == ["photos", "b"]


def test_wrong_roots_are_refused_by_the_variables_name(environment: Callable[..., None]) -> None:
    environment(scoring_roots="/data/photos, relative")

    with pytest.raises(SettingsError, match=r"MIEN_SCORING_ROOTS: .*relative"):
        get_settings()


def test_a_place_is_below_the_root_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "photos").symlink_to("real")
    roots = parse_roots([str(tmp_path / "photos"), "s3://bucket/a", "s3://bucket/a/b"])

    # The root itself may be a link: whoever runs the service chose it.
    assert find_place("photos/x/y", roots).location == f"{tmp_path}/real/x/y"
    assert find_place("photos", roots).location == f"{tmp_path}/real"
    assert find_place("s3://bucket/a/b/c", roots).location == "s3://bucket/a/b/c"
    assert find_place("s3://bucket/a/b/c", roots).name == "s3://bucket/a/b/c"


@pytest.mark.parametrize("name", ["50% off", "a+b", "ä 😀", "x:y", "a@b", "#1", "100%", "with 'quotes'"])
def test_plain_names_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    roots = parse_roots([f"photos={tmp_path}"])

    assert find_place(f"photos/{name}", roots).location == f"{tmp_path}/{name}"
