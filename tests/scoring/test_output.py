from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.local import LocalFileSystem

import scoring.connection
import scoring.local_folder
from scoring.errors import OutputError, StoppedError
from scoring.output import Output

if TYPE_CHECKING:
    from tests.scoring.s3 import S3

NAMES = [f"part-{digit * 32}.parquet" for digit in "0123"]
ROOT = sys.platform == "linux" and os.geteuid() == 0


class PlainFileSystem(LocalFileSystem):
    """Real files behind a protocol that is no object store's: written by temporary name and move."""

    protocol = "plain"

    @classmethod
    def _strip_protocol(cls, path: str, remove_trailing_slash: bool = False) -> str:
        return str(path).removeprefix("plain://")


fsspec.register_implementation("plain", PlainFileSystem, clobber=True)


@pytest.fixture(params=["folder", "s3", "memory", "plain"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    """Nothing is there yet."""
    match request.param:
        case "folder":
            return Output(str(tmp_path / "new" / "out"))
        case "s3":
            return Output(request.getfixturevalue("s3").url + "/results/out")
        case "memory":
            return Output(f"memory://bucket-{tmp_path.name}/out")
        case _:
            return Output(f"plain://{tmp_path}/new/out")


@pytest.fixture
def folder(tmp_path: Path) -> Output:
    output = Output(str(tmp_path / "out"))
    output.prepare()
    return output


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring.connection, "RETRY_WAITS_S", (0.01, 0.01, 0.01))


def files_in(folder: str | Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestLifeOfAnOutput:
    def test_from_nothing_to_finished(self, output: Output):
        assert output.finished() is None
        assert output.part_names() == set()
        output.prepare()
        assert output.part_names() == set()
        with output.lock(shared=False):
            output.begin()
            for name in NAMES[:3]:
                output.write_part(name, name.encode() * 1000)
            assert output.part_names() == set(NAMES[:3])
            assert output.finished() is None
            assert output.read_part(NAMES[1]) == NAMES[1].encode() * 1000
            output.remove_part(NAMES[2])
            output.remove_part(NAMES[2])
            output.write_part(NAMES[0], b"again")
            output.finish({"b": [1], "a": "é"}, {"n": 2})
        assert output.finished() == {"a": "é", "b": [1]}
        output.prepare()  # what is there already is no obstacle
        assert output.part_names() == set(NAMES[:2])
        assert output.read_part(NAMES[0]) == b"again"
        output.begin()
        assert output.finished() is None
        output.begin()
        assert output.part_names() == set(NAMES[:2])

    def test_another_process_sees_the_same(self, output: Output):
        copy = pickle.loads(pickle.dumps(output))
        assert copy == output
        output.prepare()
        copy.write_part(NAMES[0], b"rows")
        assert output.part_names() == {NAMES[0]}
        assert output.read_part(NAMES[0]) == b"rows"
        copy.remove_part(NAMES[0])
        assert output.part_names() == set()

    def test_pickles_after_use_and_without_connections(self, output: Output):
        output.prepare()
        assert len(pickle.dumps(output)) < 500

    def test_a_part_that_is_not_there(self, output: Output):
        output.prepare()
        with pytest.raises(OutputError, match="cannot be read"):
            output.read_part(NAMES[0])

    def test_an_empty_part(self, output: Output):
        output.prepare()
        output.write_part(NAMES[0], b"")
        assert output.read_part(NAMES[0]) == b""

    def test_an_unreadable_manifest_is_no_finished_output(self, output: Output):
        output.prepare()
        output.finish({"a": 1}, {})
        for broken in (b"", b"{", b"[1]", b"\xff\xfe"):
            output._folder.write("manifest.json", broken)
            assert output.finished() is None
        output._folder.remove("manifest.json")
        assert output.finished() is None

    def test_other_content_is_refused_and_left_alone(self, output: Output):
        output._folder.prepare("")
        output._folder.write("thesis.doc", b"years of work")
        with pytest.raises(OutputError, match="holds other files"):
            output.prepare()
        assert output._folder.names() == ["thesis.doc"]

    @pytest.mark.parametrize(
        "theirs",
        [
            ["manifest.json", "app.js"],
            ["manifest.json"],
            ["manifest.json", "summary.json", "_SUCCESS"],
            ["_SUCCESS"],
            ["_lock", "app.js"],
            ["parts/app.js", "index.html"],
        ],
    )
    def test_folders_of_others_with_names_like_ours_are_refused(self, tmp_path: Path, theirs: list[str]):
        for name in theirs:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("theirs")
        with pytest.raises(OutputError, match=r"holds other files, '.*' among them"):
            Output(str(tmp_path)).prepare()
        assert files_in(tmp_path) == sorted(theirs)

    def test_foreign_files_among_the_parts_are_refused(self, output: Output):
        output._folder.prepare("parts")
        output._folder.write("parts/old.parquet", b"PAR1")
        with pytest.raises(OutputError, match=r"files that are not Mien's, 'old\.parquet' among them"):
            output.prepare()


class TestLayout:
    def test_what_stands_at_the_end(self, folder: Output):
        with folder.lock(shared=False):
            folder.write_part(NAMES[0], b"rows")
            folder.finish({"b": 1, "a": {"d": 1, "c": 2}}, {"n": 2})
        assert files_in(folder.url) == ["_SUCCESS", "_lock", "manifest.json", f"parts/{NAMES[0]}", "summary.json"]
        path = Path(folder.url)
        assert (path / "_SUCCESS").read_bytes() == (path / "_lock").read_bytes() == b""
        assert (path / "manifest.json").read_text() == '{\n  "a": {\n    "c": 2,\n    "d": 1\n  },\n  "b": 1\n}\n'
        assert json.loads((path / "summary.json").read_text()) == {"n": 2}

    def test_success_comes_last_and_goes_first(self, folder: Output, monkeypatch: pytest.MonkeyPatch):
        seen: list[str] = []
        real = scoring.local_folder.LocalFolder

        def noting(name: str) -> Any:
            method = getattr(real, name)

            def noted(self: Any, file: str, *rest: Any) -> Any:
                seen.append(f"{name} {file}")
                return method(self, file, *rest)

            return noted

        for name in ("write", "remove"):
            monkeypatch.setattr(real, name, noting(name))
        folder.finish({}, {})
        folder.begin()
        assert seen == [
            *("write manifest.json", "write summary.json", "write _SUCCESS"),
            *("remove _SUCCESS", "remove summary.json", "remove manifest.json"),
        ]

    def test_an_existing_empty_folder_will_do(self, tmp_path: Path):
        (tmp_path / ".DS_Store").touch()
        (tmp_path / "lost+found").mkdir()
        Output(str(tmp_path)).prepare()
        assert (tmp_path / "parts").is_dir()

    def test_permissions_follow_the_umask(self, folder: Output):
        before = os.umask(0o027)
        try:
            folder.write_part(NAMES[0], b"rows")
        finally:
            os.umask(before)
        assert (Path(folder.url) / "parts" / NAMES[0]).stat().st_mode & 0o777 == 0o640


class TestNames:
    def test_a_relative_folder_stays_where_it_was_meant(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        output = Output("results/out/")
        monkeypatch.chdir("/")
        output.prepare()
        assert (tmp_path / "results" / "out" / "parts").is_dir()
        assert output.local_folder == tmp_path / "results" / "out"

    def test_a_file_url_is_a_folder(self, tmp_path: Path):
        assert Output(f"file://{tmp_path}/a%20b") == Output(str(tmp_path / "a b"))

    def test_a_bucket_is_no_folder(self):
        assert Output("s3://bucket/out/").local_folder is None
        assert Output("s3://bucket/out/").url == "s3://bucket/out"

    @pytest.mark.parametrize(
        "url",
        [
            "s3://AKIA:SECRET@bucket/out",
            "s3://AKIA:SEC/RET@bucket/out",
            "s3://SECRET@bucket/out",
            "sftp://user:SECRET@host/out",
            "sftp://user:SEC/RET@host/out",
            "https://:SECRET@host/out",
            "s3://bucket/out?secret=SECRET",
            "s3://bucket/out#SECRET",
        ],
    )
    def test_secrets_are_refused_and_not_repeated(self, url: str):
        with pytest.raises(OutputError) as raised:
            Output(url)
        assert "SECRET" not in str(raised.value)
        assert "RET" not in str(raised.value)

    @pytest.mark.parametrize("url", ["", "a\0b", "simplecache::s3://bucket/out", "zip://a.zip::s3://bucket"])
    def test_no_output(self, url: str):
        with pytest.raises(OutputError):
            Output(url)

    def test_an_account_in_a_url_is_no_secret(self):
        assert Output("abfs://container@account.dfs.core.windows.net/out").url.startswith("abfs://container@")

    @pytest.mark.parametrize(("url", "message"), [("nope://x/y", "no protocol"), ("adl://x/y", "not installed")])
    def test_a_protocol_that_cannot_be_had(self, url: str, message: str):
        with pytest.raises(OutputError, match=message):
            Output(url).prepare()


def hold(url: str, shared: bool, held: Any, end: Any) -> None:
    with Output(url).lock(shared=shared):
        held.set()
        end.wait(60)


@contextmanager
def held_elsewhere(output: Output, *, shared: bool) -> Iterator[Any]:
    """The process that holds the lock."""
    spawn = multiprocessing.get_context("spawn")
    held, end = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold, args=(output.url, shared, held, end))
    process.start()
    try:
        assert held.wait(60)
        yield process
    finally:
        if process.is_alive():  # an event waits for its waiters to wake, and one that was killed never does
            end.set()
        process.join(60)


class TestLock:
    @pytest.mark.parametrize(("there", "here"), [(False, False), (False, True), (True, False)])
    def test_another_run_is_refused(self, folder: Output, there: bool, here: bool):
        with (
            held_elsewhere(folder, shared=there),
            pytest.raises(OutputError, match=f"another run works in the output folder {folder.url}"),
            folder.lock(shared=here),
        ):
            pytest.fail("two runs in one folder")
        with folder.lock(shared=here):
            pass

    def test_shards_share(self, folder: Output):
        with held_elsewhere(folder, shared=True), folder.lock(shared=True):
            pass

    def test_it_dies_with_its_process(self, folder: Output):
        with held_elsewhere(folder, shared=False) as process:
            os.kill(process.pid, signal.SIGKILL)
            process.join(60)
            with folder.lock(shared=False):
                pass

    def test_it_ends_with_an_error(self, folder: Output):
        with pytest.raises(KeyError), folder.lock(shared=False):
            raise KeyError
        with folder.lock(shared=False):
            pass

    def test_a_child_does_not_inherit_it(self, folder: Output):
        with folder.lock(shared=False):
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            with folder.lock(shared=False):
                pass
        finally:
            child.communicate(b"\n")

    def test_a_file_system_without_locks(
        self, folder: Output, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        def no_locks(descriptor: int, *, shared: bool) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(scoring.local_folder, "_flock", no_locks)
        with caplog.at_level(logging.WARNING), folder.lock(shared=False):
            folder.write_part(NAMES[0], b"rows")
            folder.begin()
        assert "cannot be locked" in caplog.text
        assert folder.part_names() == {NAMES[0]}

    def test_a_bucket_has_none(self):
        output = Output("memory://locks/out")
        with output.lock(shared=False), output.lock(shared=False):
            pass

    def test_of_a_folder_that_is_not_there(self, tmp_path: Path):
        with (
            pytest.raises(OutputError, match="no such file or directory"),
            Output(str(tmp_path / "none")).lock(shared=True),
        ):
            pytest.fail("no folder, no lock")


WRITE_FOREVER = """
import sys
from scoring.output import Output
output = Output(sys.argv[1])
print("ready", flush=True)
while True:
    output.write_part("part-" + "0" * 32 + ".parquet", bytes(range(256)) * 40_000)
"""


class TestAtomicWrites:
    def test_a_part_is_whole_whenever_its_writer_is_killed(self, folder: Output):
        parts = Path(folder.url) / "parts"
        whole = bytes(range(256)) * 40_000
        for attempt in range(4):
            writer = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, folder.url], stdout=subprocess.PIPE)
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            timer = threading.Event()
            timer.wait(0.02 + 0.017 * attempt)
            writer.kill()
            writer.communicate()
            assert folder.part_names() <= {NAMES[0]}
            if folder.part_names():
                assert folder.read_part(NAMES[0]) == whole
            assert all(name.startswith((".", "part-")) for name in names_in(parts))
        folder.begin()
        assert set(names_in(parts)) <= {NAMES[0]}

    def test_what_the_dead_left_goes_and_what_the_living_write_stays(self, folder: Output):
        left = Path(folder.url) / "parts" / ".writing-0123"
        left_above = Path(folder.url) / ".writing-4567"
        for path in (left, left_above):
            path.write_bytes(b"half")
        other = Path(folder.url) / "parts" / ".nfs0001"
        other.touch()
        with left_above.open("r+b") as file:
            scoring.local_folder._flock(file.fileno(), shared=False)
            folder.begin()
            assert not left.exists()
            assert left_above.exists()
        folder.finish({}, {})
        assert not left_above.exists()
        assert other.exists()

    def test_writers_and_cleaners_at_once(self, folder: Output):
        """Cleaning never takes a file from under its writer."""
        stop = threading.Event()
        failures: list[Exception] = []

        def clean() -> None:
            mine = Output(folder.url)
            while not stop.is_set():
                try:
                    mine._folder.clean("parts")
                except Exception as error:
                    failures.append(error)

        cleaners = [threading.Thread(target=clean) for _ in range(2)]
        for cleaner in cleaners:
            cleaner.start()
        try:
            for index in range(150):
                folder.write_part(NAMES[index % 4], b"rows" * index)
        finally:
            stop.set()
            for cleaner in cleaners:
                cleaner.join()
        assert failures == []
        assert names_in(Path(folder.url) / "parts") == NAMES

    def test_two_writers_of_one_part(self, folder: Output):
        def write() -> None:
            mine = Output(folder.url)
            for _ in range(50):
                mine.write_part(NAMES[0], b"rows" * 1000)

        writers = [threading.Thread(target=write) for _ in range(3)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            if folder.part_names():
                assert folder.read_part(NAMES[0]) == b"rows" * 1000
        assert names_in(Path(folder.url) / "parts") == [NAMES[0]]

    def test_a_move_that_fails_leaves_nothing_visible(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        output = Output(f"plain://{tmp_path}/out")
        output.prepare()

        def broken(self: PlainFileSystem, path1: str, path2: str, **kwargs: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(PlainFileSystem, "mv", broken)
        with pytest.raises(OutputError, match=r"cannot be written: .*put/output error"):
            output.write_part(NAMES[0], b"rows")
        assert names_in(tmp_path / "out" / "parts") == []

    def test_being_stopped_while_it_is_written_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """The signal is not taken for a trouble that passes."""
        output = Output(f"plain://{tmp_path}/out")
        output.prepare()
        n_calls = 0

        def stopped(self: PlainFileSystem, *arguments: object, **options: object) -> None:
            nonlocal n_calls
            n_calls += 1
            raise StoppedError("stopped")

        for method in ("mv", "rm_file", "pipe_file"):
            monkeypatch.setattr(PlainFileSystem, method, stopped)
            n_calls = 0
            with pytest.raises(StoppedError):
                output.write_part(NAMES[0], b"rows")
            assert n_calls <= 2  # the second removes the temporary file

    def test_what_the_dead_left_elsewhere_goes_after_a_day(self, tmp_path: Path):
        output = Output(f"plain://{tmp_path}/out")
        output.prepare()
        parts, now = tmp_path / "out" / "parts", time.time()
        ages_h = {".writing-1-x": 25, ".probe-1": 25, ".writing-2-x": 23, ".nfs1": 99, NAMES[0]: 99}
        for name, age_h in ages_h.items():
            (parts / name).write_bytes(b"half")
            os.utime(parts / name, (now - age_h * 3600,) * 2)
        shutil.copy2(parts / ".writing-1-x", tmp_path / "out" / ".writing-1-manifest.json")
        output.begin()
        assert names_in(parts) == [".nfs1", ".writing-2-x", NAMES[0]]
        assert names_in(tmp_path / "out") == ["parts"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    if not ROOT:
        pytest.skip("mounting a small file system needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system failed: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


class TestDisks:
    def test_a_full_disk(self, small_disk: Path):
        output = Output(str(small_disk / "out"))
        output.prepare()
        output.write_part(NAMES[0], bytes(600_000))
        with pytest.raises(OutputError, match=rf"{small_disk}/out cannot be written: no space left on device"):
            output.write_part(NAMES[1], bytes(600_000))
        assert output.part_names() == {NAMES[0]}
        assert names_in(small_disk / "out" / "parts") == [NAMES[0]]
        output.remove_part(NAMES[0])
        output.write_part(NAMES[1], bytes(600_000))  # once there is room, it goes on
        assert output.part_names() == {NAMES[1]}

    def test_a_disk_that_is_full_from_the_start(self, small_disk: Path):
        with contextlib.suppress(OSError), (small_disk / ".ballast").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        with pytest.raises(OutputError, match="no space left on device"):
            Output(str(small_disk / "out")).prepare()

    def test_a_read_only_disk(self, small_disk: Path):
        output = Output(str(small_disk / "out"))
        output.prepare()
        output.write_part(NAMES[0], b"rows")
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        for act in (output.prepare, lambda: output.write_part(NAMES[1], b""), lambda: output.remove_part(NAMES[0])):
            with pytest.raises(OutputError, match="read-only file system"):
                act()
        assert output.read_part(NAMES[0]) == b"rows"


@contextmanager
def without_privileges(folder: Path) -> Iterator[None]:
    """As a user who may reach this folder but owns nothing in it, where tests run as root."""
    if os.name == "nt":
        pytest.skip("permissions are other there")
    if os.geteuid() != 0:
        yield
        return
    for above in (folder, *folder.parents[:3]):  # pytest makes them for the owner only; one more with -n
        above.chmod(above.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        folder.stat()
        yield
    finally:
        os.seteuid(0)


class TestErrors:
    def test_a_file_in_its_place(self, tmp_path: Path):
        (tmp_path / "out").write_text("a file")
        with pytest.raises(OutputError, match=f"{tmp_path}/out cannot be read: not a directory"):
            Output(str(tmp_path / "out")).prepare()

    def test_a_file_above_it(self, tmp_path: Path):
        (tmp_path / "file").write_text("a file")
        with pytest.raises(OutputError, match="not a directory"):
            Output(str(tmp_path / "file" / "out")).prepare()

    def test_a_link_to_nowhere(self, tmp_path: Path):
        (tmp_path / "out").symlink_to(tmp_path / "gone")
        with pytest.raises(OutputError, match="cannot be written"):
            Output(str(tmp_path / "out")).prepare()

    def test_a_name_too_long(self, tmp_path: Path):
        with pytest.raises(OutputError, match="file name too long"):
            Output(str(tmp_path / ("x" * 300))).prepare()

    def test_no_permission(self, tmp_path: Path):
        shut = tmp_path / "shut"
        shut.mkdir(mode=0o555)
        with (
            without_privileges(tmp_path),
            pytest.raises(OutputError, match=f"{shut}/out cannot be written: permission"),
        ):
            Output(str(shut / "out")).prepare()

    def test_no_permission_for_the_parts(self, tmp_path: Path):
        (tmp_path / "out" / "parts").mkdir(parents=True)
        (tmp_path / "out").chmod(0o777)
        (tmp_path / "out" / "parts").chmod(0o555)
        with without_privileges(tmp_path), pytest.raises(OutputError, match="cannot be written: permission denied"):
            Output(str(tmp_path / "out")).prepare()
        assert names_in(tmp_path / "out") == ["parts"]

    def test_a_folder_that_goes_away(self, folder: Output):
        shutil.rmtree(folder.url)
        with pytest.raises(OutputError, match="no such file or directory"):
            folder.write_part(NAMES[0], b"rows")
        assert not Path(folder.url).exists()

    def test_one_sentence_each(self, tmp_path: Path):
        with pytest.raises(OutputError) as raised:
            Output("/proc/out").prepare()
        assert "\n" not in str(raised.value)
        assert str(raised.value).startswith("the output folder /proc/out cannot be written: ")


class TestS3:
    def test_what_stands_in_the_bucket(self, s3: S3):
        output = Output(f"{s3.url}/a b/größe+1%")
        output.prepare()
        assert s3.keys() == []
        output.write_part(NAMES[0], b"rows")
        output.finish({}, {})
        assert s3.keys() == [
            f"a b/größe+1%/{name}" for name in ("_SUCCESS", "manifest.json", f"parts/{NAMES[0]}", "summary.json")
        ]

    def test_a_whole_bucket(self, s3: S3):
        output = Output(s3.url)
        output.prepare()
        output.write_part(NAMES[0], b"rows")
        assert output.part_names() == {NAMES[0]}
        output.finish({"a": 1}, {})
        assert output.finished() == {"a": 1}

    def test_what_others_write_is_seen_at_once(self, s3: S3):
        output = Output(f"{s3.url}/out")
        output.prepare()
        assert output.part_names() == set()
        s3.put(f"out/parts/{NAMES[0]}", b"theirs")
        assert output.part_names() == {NAMES[0]}
        assert output.read_part(NAMES[0]) == b"theirs"
        s3.delete(f"out/parts/{NAMES[0]}")
        assert output.part_names() == set()

    def test_folder_markers_are_no_content(self, s3: S3):
        s3.put("out/", b"")
        s3.put("out/parts/", b"")
        output = Output(f"{s3.url}/out")
        output.prepare()
        assert output.part_names() == set()

    def test_more_parts_than_a_page_of_a_listing(self, s3: S3):
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        names = {f"part-{index:032x}.csv" for index in range(1100)}
        for name in names:  # straight into the server, which is in this process: requests would take ten seconds
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(s3.bucket, f"out/parts/{name}", b"")
        assert Output(f"{s3.url}/out").part_names() == names

    def test_a_bucket_that_is_not_there_is_not_made(self, s3: S3):
        with pytest.raises(OutputError, match=r"s3://no-such-bucket-here/out cannot be .*bucket does not exist"):
            Output("s3://no-such-bucket-here/out").prepare()
        assert [bucket["Name"] for bucket in s3.client.list_buckets()["Buckets"]].count("no-such-bucket-here") == 0

    def test_a_bucket_that_goes_away(self, s3: S3):
        output = Output(f"{s3.url}/out")
        output.prepare()
        output.write_part(NAMES[0], b"rows")
        s3.delete_bucket()
        acts = (
            output.prepare,
            output.part_names,
            output.begin,
            output.finished,
            lambda: output.write_part(NAMES[1], b"rows"),
            lambda: output.read_part(NAMES[0]),
            lambda: output.remove_part(NAMES[0]),
        )
        for act in acts:
            with pytest.raises(OutputError, match="bucket does not exist"):
                act()

    def test_an_endpoint_that_stays_away(self, s3: S3):
        output = Output(f"{s3.url}/out")
        output.prepare()
        s3.stop()
        with pytest.raises(OutputError, match=f"{s3.url}/out cannot be reached: .*connect to the endpoint") as raised:
            output.write_part(NAMES[0], b"rows")
        assert "\n" not in str(raised.value)
        s3.start()
        output.write_part(NAMES[0], b"rows")
        assert s3.get(f"out/parts/{NAMES[0]}") == b"rows"

    def test_an_endpoint_that_comes_back(self, s3: S3, monkeypatch: pytest.MonkeyPatch):
        output = Output(f"{s3.url}/out")
        output.prepare()
        s3.stop()
        pauses = []

        def pause(duration_s: float) -> None:
            pauses.append(duration_s)
            if len(pauses) == 2:
                s3.start()

        monkeypatch.setattr(scoring.connection.time, "sleep", pause)
        output.write_part(NAMES[0], b"rows")
        assert len(pauses) == 2
        assert s3.get(f"out/parts/{NAMES[0]}") == b"rows"

    def test_no_permission(self, s3: S3, monkeypatch: pytest.MonkeyPatch):
        output = Output(f"{s3.url}/out")
        output.prepare()

        def forbidden(*args: object) -> None:
            raise PermissionError("Access Denied")

        monkeypatch.setattr(output._folder._connection.filesystem, "pipe_file", forbidden)  # type: ignore[attr-defined]
        with pytest.raises(OutputError, match=r"permission denied \(Access Denied\)"):
            output.write_part(NAMES[0], b"rows")

    def test_refused_credentials_are_not_tried_again(self, s3: S3, monkeypatch: pytest.MonkeyPatch):
        output = Output(f"{s3.url}/out")
        output.prepare()
        n_calls = 0

        def refused(*arguments: object) -> None:
            nonlocal n_calls
            n_calls += 1
            raise PermissionError("see https://h/?X-Amz-Signature=SECRET") from ClientError(
                {"Error": {"Code": "ExpiredToken"}}, "PutObject"
            )

        monkeypatch.setattr(output._folder._connection.filesystem, "pipe_file", refused)  # type: ignore[attr-defined]
        with pytest.raises(OutputError, match="out: the credentials are missing or refused") as raised:
            output.write_part(NAMES[0], b"rows")
        assert n_calls == 1
        assert "SECRET" not in str(raised.value)

    def test_signatures_in_errors_are_not_shown(self, s3: S3, monkeypatch: pytest.MonkeyPatch):
        output = Output(f"{s3.url}/out")

        def failing(*arguments: object) -> None:
            raise OSError(5, "PUT https://h/x?X-Amz-Signature=SECRET failed")

        monkeypatch.setattr(output._folder._connection.filesystem, "pipe_file", failing)  # type: ignore[attr-defined]
        with pytest.raises(OutputError, match=r"cannot be written: .*failed") as raised:
            output.write_part(NAMES[0], b"rows")
        assert "SECRET" not in str(raised.value)
