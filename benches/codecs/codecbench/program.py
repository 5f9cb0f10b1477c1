"""Sira's own codecs, through its program: `sira codec try` and `sira calibrate`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]

SAMPLE = ROOT / "examples" / "sample" / "smollm2-kv.safetensors"

FIELDS = {
    "codec": (str,),
    "lossless": (bool,),
    "raw_bytes": (int,),
    "stored_bytes": (int,),
    "ratio": (int, float),
    "bits_per_value": (int, float),
    "encode_gb_s": (int, float),
    "decode_gb_s": (int, float),
    "exact": (bool,),
    "error_k": (int, float, type(None)),
    "error_v": (int, float, type(None)),
    "calibration": (str, type(None)),
}
"""What a line of `sira codec try --json` has, at least."""


class ProgramError(Exception):
    """The program is not there, or did not do what it was asked."""


def program() -> Path:
    """SIRA_BIN, or what `make build` made."""
    return Path(os.environ.get("SIRA_BIN") or ROOT / "bin" / "sira")


def tried(
    file: Path, codec: str, calibration: Path | None = None, out: Path | None = None, seconds: float = 0
) -> list[dict[str, Any]]:
    """What `sira codec try` says of the codec, or of `all`, timed so long, or run once.
    `out` gets what one codec decoded."""
    command = ["codec", "try", str(file), "--codec", codec, "--seconds", f"{seconds:g}", "--json"]
    command += ["--calib", str(calibration)] if calibration else []
    command += ["--out", str(out)] if out else []
    return parsed(run(*command))


def calibrated(files: list[Path], moments: Path | None, out: Path) -> None:
    """Makes a calibration artefact of KV files, of models that are asked what errors cost them where there
    are moments."""
    given = ["--moments", str(moments)] if moments else []
    run("calibrate", *map(str, files), *given, "--out", str(out))


def run(*arguments: str) -> str:
    """Its standard output."""
    try:
        done = subprocess.run([program(), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ProgramError(f"{program()}: {error.strerror}; `make build` makes it") from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode} and said nothing"]
        raise ProgramError(f"sira {' '.join(arguments[:2])}: {last[0]}")
    return done.stdout


def parsed(output: str) -> list[dict[str, Any]]:
    """One object a line, with all fields."""
    found = []
    for line in filter(str.strip, output.splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            raise ProgramError(f"no JSON: {line[:80]!r}") from None
        for name, kinds in FIELDS.items():
            # A bool is an int to Python, and is none here.
            if name not in entry or type(entry[name]) not in kinds:
                raise ProgramError(f"{name} is {entry.get(name)!r} in {line[:80]!r}")
        found.append(entry)
    if not found:
        raise ProgramError("it printed nothing")
    return found


def names(calibration: Path | None, *, lossless: bool) -> list[str]:
    """The codecs that it has, of one kind; tried on the sample that the repository has, which is small."""
    found = tried(SAMPLE, "all", calibration)
    return [entry["codec"] for entry in found if entry["lossless"] == lossless]


def presets() -> dict[str, list[str]]:
    """Stages that know qualities by name, and those names, best first."""
    stages = [json.loads(line) for line in run("codec", "list", "--json").splitlines()]
    known = {entry["stage"]: [preset["name"] for preset in entry["presets"]] for entry in stages}
    return {stage: of_stage for stage, of_stage in known.items() if of_stage}


def with_presets(codecs: list[str], known: dict[str, list[str]]) -> list[str]:
    """Codecs, each stage that knows presets by all of them, with the calibration that it was named with."""
    found = []
    for codec in codecs:
        stage, at, calibration = codec.partition("@")
        name = stage.split(":")[0]
        found += [f"{name}:{preset}{at}{calibration}" for preset in known[name]] if name in known else [codec]
    return found
