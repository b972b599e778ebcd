from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handlers.decode import DecodeLimits
from handlers.detection.settings import DetectionSettings
from service import settings as settings_module
from service.settings import PREFIX, Settings, SettingsError, get_settings
from tests.service.server_process import REPOSITORY

Environment = Callable[..., None]


def test_defaults_serve_the_default_models_on_loopback_only(environment: Environment) -> None:
    settings = get_settings()

    assert (settings.host, settings.port, settings.allow_public) == ("127.0.0.1", 3000, False)
    assert (settings.models, settings.detector) == (("default",), "default")
    assert settings.limits == DecodeLimits()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "4321", 4321),
        ("timeout_s", "2.5", 2.5),
        ("detector", "fake", "fake"),
        ("log_level", "debug", "debug"),
        ("host", "127.0.0.2", "127.0.0.2"),
        ("host", "::1", "::1"),
        ("host", "localhost", "127.0.0.1"),
        ("models", "fake", ("fake",)),
        ("models", "a:1.0.0, b ,,c", ("a:1.0.0", "b", "c")),
        ("allow_public", "true", True),
        ("api_keys_file", "/run/keys", Path("/run/keys")),
        ("state_dir", "/run/mien", Path("/run/mien")),
        ("cors_origins", "*", ("*",)),
        ("cors_origins", "https://a.example, https://b.example,", ("https://a.example", "https://b.example")),
        ("cors_origins", "", ()),
        ("otlp_endpoint", "http://127.0.0.1:4318", "http://127.0.0.1:4318"),
        ("topology", "inline", "inline"),
        ("queue_size", "0", 0),
        ("queue_timeout_ms", "1", 1),
        ("readiness_interval_s", "0.5", 0.5),
        ("engine", "openvino", "openvino"),
        ("engine", "torch", "torch"),
        ("precision", "int8", "int8"),
        ("precision", "fp32", "fp32"),
        ("min_face_size_px", "12", 12),
        ("detection_thresholds", "0.5,0.6,0.8", (0.5, 0.6, 0.8)),
        ("detection_thresholds", " 0.5 , .6, 0.8 ", (0.5, 0.6, 0.8)),
        ("detection_max_side_px", "640", 640),
        ("scoring_roots", "", ()),
        ("scoring_roots", "/data/photos, s3://bucket/x,", ("/data/photos", "s3://bucket/x")),
        ("jobs_dir", "/data/jobs", Path("/data/jobs")),
        ("job_niceness", "0", 0),
    ],
)
def test_the_environment_overrides_a_default(environment: Environment, name: str, text: str, value: object) -> None:
    environment(**{name: text})

    assert getattr(get_settings(), name) == value


def test_settings_are_read_once_and_frozen(environment: Environment) -> None:
    settings = get_settings()

    assert get_settings() is settings
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "0"),
        ("port", "65536"),
        ("port", "http"),
        ("models", ""),
        ("models", " , "),
        ("threads", "0"),
        ("topology", "outline"),
        ("api_workers", "0"),
        ("detector_workers", "-1"),
        ("detector_workers", "65"),
        ("emotion_workers", "0"),
        ("concurrency", "-1"),
        ("queue_size", "-1"),
        ("queue_timeout_ms", "0"),
        ("max_pending_bytes", "1023"),
        ("readiness_interval_s", "0"),
        ("grace_s", "0"),
        ("max_files", "0"),
        ("max_request_bytes", "1023"),
        ("max_header_bytes", "1023"),
        ("max_header_bytes", "65537"),
        ("timeout_s", "0"),
        ("timeout_s", "nan"),
        ("detector_batch_size", "1"),
        ("max_image_bytes", "10"),
        ("log_level", "loud"),
        ("allow_public", "perhaps"),
        ("host", "mien.example"),
        ("host", ""),
        ("engine", "tensorrt"),
        ("engine", ""),
        ("precision", "bf16"),
        ("precision", "INT8"),
        ("min_face_size_px", "11"),
        ("min_face_size_px", "10001"),
        ("scoring_roots", "photos"),
        ("scoring_roots", "/a/photos,/b/photos"),
        ("job_workers", "0"),
        ("job_niceness", "20"),
        ("job_niceness", "-1"),
        ("max_jobs", "0"),
        ("job_part_size", "0"),
        ("detection_thresholds", ""),
        ("detection_thresholds", "0.6"),
        ("detection_thresholds", "0.6,0.7"),
        ("detection_thresholds", "0.6,0.7,0.7,0.7"),
        ("detection_thresholds", "0.6,high,0.7"),
        ("detection_thresholds", "0.6,0.7,1"),
        ("detection_thresholds", "0,0.7,0.7"),
        ("detection_thresholds", "0.6,nan,0.7"),
        ("detection_max_side_px", "63"),
        ("detection_max_side_px", "65536"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(environment: Environment, name: str, text: str) -> None:
    environment(**{name: text})

    with pytest.raises(SettingsError, match=f"^{PREFIX}{name.upper()}: "):
        get_settings()


def test_all_wrong_values_are_named_at_once(environment: Environment) -> None:
    environment(port="0", threads="x")

    with pytest.raises(SettingsError, match=r"MIEN_PORT: .*; MIEN_THREADS: "):
        get_settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
@pytest.mark.parametrize("protection", [{"allow_public": "true"}, {"api_keys_file": "/run/keys"}])
def test_an_address_that_others_reach_needs_keys_or_permission(
    environment: Environment, host: str, protection: dict[str, str]
) -> None:
    environment(host=host)
    with pytest.raises(SettingsError, match=f"{host} .*MIEN_API_KEYS_FILE.*MIEN_ALLOW_PUBLIC"):
        get_settings()

    environment(**protection)
    assert get_settings().host == host


def test_keys_are_optional_on_loopback_and_nothing_is_allowed_to_other_origins(environment: Environment) -> None:
    settings = get_settings()

    assert (settings.api_keys_file, settings.cors_origins, settings.otlp_endpoint) == (None, (), None)


@pytest.mark.parametrize(
    ("cores", "asked", "n_workers"), [(1, "0", 1), (3, "0", 3), (16, "0", 4), (16, "7", 7), (1, "2", 2)]
)
def test_there_is_a_detector_for_each_core_but_four_at_most_unless_told(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, cores: int, asked: str, n_workers: int
) -> None:
    monkeypatch.setattr(settings_module, "usable_cores", lambda: cores)
    environment(detector_workers=asked)

    assert get_settings().n_detector_workers == n_workers


@pytest.mark.parametrize(
    ("changes", "n_concurrent"),
    [
        ({}, 16),
        ({"detector_workers": "3"}, 24),
        ({"detector_workers": "3", "api_workers": "2"}, 12),
        ({"detector_workers": "1", "api_workers": "3"}, 3),
        ({"detector_workers": "3", "topology": "inline"}, 8),
        ({"topology": "inline", "api_workers": "3"}, 8),
        ({"detector_workers": "3", "concurrency": "5"}, 5),
    ],
)
def test_every_detector_process_has_eight_pictures_that_the_api_processes_share(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], n_concurrent: int
) -> None:
    monkeypatch.setattr(settings_module, "usable_cores", lambda: 2)
    environment(**changes)

    assert get_settings().n_concurrent == n_concurrent


def test_faces_are_looked_for_as_the_defaults_say_unless_told_otherwise(environment: Environment) -> None:
    assert get_settings().detection == DetectionSettings()

    environment(min_face_size_px="40", detection_thresholds="0.5,0.6,0.8", detection_max_side_px="640")
    assert get_settings().detection == DetectionSettings(
        min_face_size_px=40, thresholds=(0.5, 0.6, 0.8), max_side_px=640
    )


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_description(name: str) -> None:
    assert (Settings.model_fields[name].description or "").endswith(".")


@pytest.mark.parametrize(
    ("variable", "text", "named"),
    [
        ("MIEN_PORT", "0", "MIEN_PORT"),
        ("MIEN_HOST", "0.0.0.0", "MIEN_ALLOW_PUBLIC"),
        ("MIEN_MODELS", "fake,nope", "nope is not registered"),
    ],
)
def test_the_command_ends_with_one_line_that_names_what_is_wrong(variable: str, text: str, named: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=REPOSITORY,
        env={**os.environ, variable: text},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(("SettingsError: ", "ModelUnavailableError: "))
    assert named in line
