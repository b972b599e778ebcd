from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from handlers.decode import DecodeLimits
from handlers.detection.settings import DetectionSettings
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
        ("engine", "openvino", "openvino"),
        ("engine", "torch", "torch"),
        ("precision", "int8", "int8"),
        ("precision", "fp32", "fp32"),
        ("min_face_size_px", "12", 12),
        ("detection_thresholds", "0.5,0.6,0.8", (0.5, 0.6, 0.8)),
        ("detection_thresholds", " 0.5 , .6, 0.8 ", (0.5, 0.6, 0.8)),
        ("detection_max_side_px", "640", 640),
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
def test_an_address_that_others_reach_needs_permission(environment: Environment, host: str) -> None:
    environment(host=host)
    with pytest.raises(SettingsError, match=f"{host} .*MIEN_ALLOW_PUBLIC"):
        get_settings()

    environment(allow_public="true")
    assert get_settings().host == host


def test_faces_are_looked_for_as_the_defaults_say_unless_told_otherwise(environment: Environment) -> None:
    assert get_settings().detection == DetectionSettings()

    environment(min_face_size_px="40", detection_thresholds="0.5,0.6,0.8", detection_max_side_px="640")
    assert get_settings().detection == DetectionSettings(
        min_face_size_px=40, thresholds=(0.5, 0.6, 0.8), max_side_px=640
    )


def test_the_body_limit_leaves_room_for_a_form_around_the_largest_image(environment: Environment) -> None:
    environment(max_image_bytes="5000")

    assert get_settings().limits.max_bytes == 5000
    assert get_settings().max_body_bytes > 5000 + 1024


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
