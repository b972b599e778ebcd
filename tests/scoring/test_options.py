import subprocess
import sys
from pathlib import Path

import pytest

from handlers.decode import DecodeLimits
from handlers.detection.settings import SMALLEST_MIN_FACE_SIZE_PX, DetectionSettings
from handlers.engines import ENGINE_NAMES
from scoring.config import FORMATS, PART_SIZE
from scoring.options import make_parser

REPOSITORY = Path(__file__).parents[2]


def parse(*arguments: str) -> dict[str, object]:
    return vars(make_parser().parse_args(["photos", "--output", "out", *arguments]))


def test_the_defaults_are_those_of_the_core() -> None:
    options = parse()

    assert options["format"] == FORMATS[0]
    assert options["model"] == "default"
    assert (options["engine"], options["runtime"], options["precision"], options["tta"]) == (
        "local",
        "auto",
        "auto",
        "none",
    )
    left_to_the_core = (
        *("min_face_size", "detection_thresholds", "detection_max_side", "part_size", "workers", "nice"),
        *("max_image_bytes", "max_image_pixels", "max_image_side", "shard", "shards", "ray_address"),
    )
    assert all(options[name] is None for name in left_to_the_core)


def test_the_help_tells_the_cores_defaults() -> None:
    told = " ".join(make_parser().format_help().split())
    limits, detection = DecodeLimits(), DetectionSettings()

    for default in (
        *(limits.max_bytes, limits.max_pixels, limits.max_side_px),
        *(detection.min_face_size_px, detection.max_side_px, PART_SIZE),
        ",".join(map(str, detection.thresholds)),
    ):
        assert f"(default: {default})" in told


@pytest.mark.parametrize(("option", "choices"), [("--format", FORMATS), ("--runtime", ENGINE_NAMES)])
def test_every_choice_of_the_core_can_be_made(option: str, choices: tuple[str, ...]) -> None:
    for choice in choices:
        assert parse(option, choice)[option[2:]] == choice


def test_options_are_read() -> None:
    options = parse(
        *("--include", "*.jpg", "--include", "*.png", "--recursive", "--shard", "2/5", "--workers", "3"),
        *("--detection-thresholds", "0.5, 0.6,0.8", "--file-timeout-s", "2.5", "--nice", "19"),
        *("--min-face-size", str(SMALLEST_MIN_FACE_SIZE_PX)),
    )

    assert options["include"] == ["*.jpg", "*.png"]
    assert options["recursive"] is True
    assert options["shard"] == (2, 5)
    assert (options["workers"], options["nice"], options["file_timeout_s"]) == (3, 19, 2.5)
    assert options["detection_thresholds"] == (0.5, 0.6, 0.8)
    assert options["min_face_size"] == SMALLEST_MIN_FACE_SIZE_PX


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--format", "xml"], "--format"),
        (["--engine", "spark"], "--engine"),
        (["--model"], "--model"),
        (["--recursiv"], "--recursiv"),
        (["--workers", "0"], "--workers"),
        (["--workers", "two"], "--workers"),
        (["--part-size", "0"], "--part-size"),
        (["--nice", "20"], "--nice"),
        (["--file-timeout-s", "0"], "--file-timeout-s"),
        (["--file-timeout-s", "nan"], "--file-timeout-s"),
        (["--min-face-size", str(SMALLEST_MIN_FACE_SIZE_PX - 1)], "--min-face-size"),
        (["--max-image-bytes", "1"], "--max-image-bytes"),
        (["--max-image-pixels", "80000001"], "--max-image-pixels"),
        (["--max-image-side", "65536"], "--max-image-side"),
        (["--detection-thresholds", "0.6,0.7"], "--detection-thresholds"),
        (["--detection-thresholds", "0.6,0.7,1"], "--detection-thresholds"),
        (["--detection-max-side", "63"], "--detection-max-side"),
        (["--shard", "1"], "--shard"),
        (["--shard", "-1/3"], "--shard"),
        (["--shard", "a/b"], "--shard"),
        (["--shard", "0/2", "--shards", "2"], "--shard"),
        (["--shards", "0"], "--shards"),
        (["--progress", "loud"], "--progress"),
        (["--log-level", "trace"], "--log-level"),
    ],
)
def test_a_wrong_option_ends_with_one_line_that_names_it_and_1(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)

    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert named in line


@pytest.mark.parametrize("arguments", [[], ["photos"], ["--output", "out"]])
def test_input_and_output_must_be_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(arguments)

    assert ended.value.code == 1
    assert "required" in capsys.readouterr().err


def test_the_help_loads_nothing_that_is_slow() -> None:
    heavy = {"numpy", "pydantic", "PIL", "pyarrow", "fsspec", "ray", "rich", "bentoml", "handlers", "model_store"}
    code = (
        "import sys\n"
        "from scoring.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 0, ended.code\n"
        f"loaded = {heavy!r} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    for said in ("exit codes:", "examples:", "--ray-address", "JOB_COMPLETION_INDEX"):
        assert said in done.stdout
