"""The real command when the ground gives way: a bucket that vanishes, a server that stops, a full disk; then again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scoring.pictures import make_folder
from tests.scoring.s3 import S3

N = 240
DEADLINE_S = 120
OPTIONS = ("--recursive", "--model", "fake", "--workers", "2", "--part-size", "16", "--progress", "plain")


def begin(source: str, out: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scoring", source, "--output", out, *OPTIONS, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    _, stderr = process.communicate(timeout=DEADLINE_S)
    return process.returncode, stderr


def wait_until(is_time: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not is_time():
        assert process.poll() is None, end(process)
        assert time.monotonic() < until
        time.sleep(0.005)


def assert_clear_failure(code: int, stderr: str, *words: str) -> None:
    assert code == 1, stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert any(word in last.lower() for word in words), last
    assert "Traceback" not in stderr


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    make_folder(folder, N, size_px=64)
    return folder


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run from the folder writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert end(begin(str(photos), str(out)))[0] == 2
    return files_of(out)


def files_of(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def upload(photos: Path, s3: S3) -> None:
    for path in sorted(photos.rglob("*.jpg")):
        s3.put(f"photos/{path.relative_to(photos).as_posix()}", path.read_bytes())


def rows_of(files: dict[str, bytes]) -> list[dict[str, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(pa.BufferReader(data)) for name, data in files.items() if name.endswith(".parquet")]
    rows: list[dict[str, object]] = pa.concat_tables(tables).to_pylist()
    return sorted(rows, key=lambda row: (str(row["path"]), int(str(row["face_index"] or 0))))


def stored(s3: S3, prefix: str = "out/") -> dict[str, bytes]:
    return {key.removeprefix(prefix): s3.get(key) for key in s3.keys(prefix)}


class TestBuckets:
    @pytest.fixture(autouse=True)
    def uploaded(self, photos: Path, s3: S3) -> None:
        upload(photos, s3)

    @pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
    def test_from_a_bucket_to_a_bucket(self, s3: S3, whole: dict[str, bytes], engine: str) -> None:
        code, stderr = end(begin(f"{s3.url}/photos", f"{s3.url}/out", "--engine", engine))
        assert code == 2, stderr
        files = stored(s3)
        assert files["_SUCCESS"] == b""
        assert rows_of(files) == rows_of(whole)

    def test_a_bucket_that_vanishes(self, photos: Path, s3: S3, whole: dict[str, bytes], tmp_path: Path) -> None:
        out = tmp_path / "out"
        process = begin(f"{s3.url}/photos", str(out))
        wait_until(lambda: len(list(out.glob("parts/part-*"))) >= 1, process)
        s3.delete_bucket()
        assert_clear_failure(*end(process), "not there any more", "does not exist")
        standing = {path.name for path in out.glob("parts/part-*")}
        assert 1 <= len(standing) < len([name for name in whole if name.startswith("parts/")])
        assert not (out / "_SUCCESS").exists()

        s3.client.create_bucket(Bucket=s3.bucket)
        upload(photos, s3)
        assert end(begin(f"{s3.url}/photos", str(out)))[0] == 2
        assert rows_of(files_of(out)) == rows_of(whole)
        assert standing == standing & {path.name for path in out.glob("parts/part-*")}

    @pytest.mark.slow
    def test_a_server_that_stops(self, s3: S3, whole: dict[str, bytes]) -> None:
        process = begin(f"{s3.url}/photos", f"{s3.url}/out")
        wait_until(lambda: len(s3.keys("out/parts/")) >= 1, process)
        s3.stop()
        assert_clear_failure(*end(process), "reach", "connect")
        s3.start()
        assert "out/_SUCCESS" not in s3.keys("out/")
        assert end(begin(f"{s3.url}/photos", f"{s3.url}/out"))[0] == 2
        assert rows_of(stored(s3)) == rows_of(whole)


class TestDisk:
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of a hundred kilobytes."""
        folder = tmp_path / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
        yield folder
        subprocess.run(["umount", str(folder)], check=True)

    def test_a_full_disk(self, photos: Path, whole: dict[str, bytes], disk: Path) -> None:
        out = disk / "out"
        assert_clear_failure(*end(begin(str(photos), str(out))), "no space left")
        standing = files_of(out)
        assert {name for name in standing if name.startswith("parts/part-")}
        assert {name: data for name, data in standing.items() if name != "_lock"}.items() <= whole.items()
        assert "_SUCCESS" not in standing

        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        assert end(begin(str(photos), str(out)))[0] == 2
        assert files_of(out) == whole
