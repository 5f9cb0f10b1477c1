"""What packages say of the program, against the program: versions, command lines, environment, times."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess

import sira_store
from server import REPOSITORY, program

DOCKERFILE = "docker/Dockerfile"
COMPOSE = "docker/compose.yaml"
UNIT = "packaging/sira.service"


def found(pattern: str, file: str) -> str:
    match = re.search(pattern, (REPOSITORY / file).read_text(), re.MULTILINE)
    assert match, f"{file} has no line such as {pattern}"
    return match[1]


def sira(*arguments: str, **environment: str) -> str:
    """What the program says; only the environment given here is read."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SIRA_")}
    run = subprocess.run([program(), *arguments], capture_output=True, text=True, env=clean | environment)
    assert run.returncode == 0, f"sira {shlex.join(arguments)}: {run.stderr}"
    return run.stdout


def seconds(config: str, setting: str) -> int:
    match = re.search(rf'^{setting} = "(\d+)s"', config, re.MULTILINE)
    assert match, f"no {setting} in whole seconds in {config}"
    return int(match[1])


def test_there_is_one_version() -> None:
    version = sira_store.__version__
    assert sira("--version").split() == ["sira", version]
    assert found(r'^version = "(.+)"$', "Cargo.toml") == version
    assert found(r"^ARG VERSION=(.+)$", DOCKERFILE) == version
    assert found(r"--tag sira:(\S+)", DOCKERFILE) == version
    assert found(r"^ +image: sira:(.+)$", COMPOSE) == version


def test_the_image_builds_with_the_rust_that_the_crates_ask_for() -> None:
    minimum = found(r'^rust-version = "(\d+\.\d+)', "Cargo.toml")
    assert found(r"^ARG RUST=(\d+\.\d+)\.\d+$", DOCKERFILE) == minimum


def test_the_program_knows_the_command_lines() -> None:
    lines = [
        json.loads(found(r"^CMD (\[.+\])$", DOCKERFILE)),
        json.loads(found(r"^ +command: (\[.+\])$", COMPOSE)),
        json.loads(found(r"^HEALTHCHECK .+ CMD (\[.+\])$", DOCKERFILE))[1:],
        json.loads(found(r"^ +test: (\[.+\])$", COMPOSE))[2:],
        shlex.split(found(r"^ExecStart=/usr/bin/sira (.+)$", UNIT)),
    ]
    for line in lines:
        # An unknown word before --help is an error.
        assert "Usage: sira" in sira(*line, "--help")


def test_the_program_takes_the_environment_of_the_image() -> None:
    text = (REPOSITORY / DOCKERFILE).read_text()
    environment = dict(re.findall(r"(SIRA_[A-Z]+__[A-Z_]+)=(\S+)", text))
    assert environment, "the image sets its address and folder"
    shown = sira("config", "check", SIRA_SERVER__INSECURE="true", **environment)
    for value in environment.values():
        assert f'"{value}"' in shown


def test_a_stop_waits_longer_than_a_drain() -> None:
    drain = seconds(sira("config", "check"), "drain_timeout")
    assert int(found(r"^ +stop_grace_period: (\d+)s$", COMPOSE)) > drain
    assert int(found(r"^TimeoutStopSec=(\d+)$", UNIT)) > drain
