"""The measurement itself on the sample, with a program that answers as Sira's does and libraries where they
are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHES = Path(__file__).resolve().parents[2]
SAMPLE = BENCHES.parent / "examples" / "sample" / "smollm2-kv.safetensors"

ANSWERS = """#!{python}
import json, os, sys
codec, file = sys.argv[sys.argv.index("--codec") + 1], sys.argv[3]
if codec == "broken":
    sys.exit("SIRA_NO_CODEC: there is no codec broken")
size = os.path.getsize(file)
for name, exact in (("half", True), ("rough", False)):
    if codec in ("all", name):
        print(json.dumps({{"codec": name, "lossless": exact, "raw_bytes": size, "stored_bytes": size // 2,
            "ratio": 2.0, "bits_per_value": 8.0, "encode_gb_s": 1.0, "decode_gb_s": 2.0, "exact": exact,
            "error_k": None, "error_v": None,
            "calibration": None}}))
"""


def measured(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    program, figures = tmp_path / "sira", tmp_path / "figures.json"
    program.write_text(ANSWERS.format(python=sys.executable))
    program.chmod(0o755)
    command = [
        sys.executable,
        "-m",
        "codecbench",
        "speed",
        str(SAMPLE),
        "--rounds",
        "2",
        "--json",
        str(figures),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{BENCHES / 'codecs'}:{BENCHES}", "SIRA_BIN": str(program)}
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(figures.read_text()), done.stdout


def test_codecs_of_the_program_and_of_libraries_take_turns(tmp_path: Path) -> None:
    document, said = measured(tmp_path, "--peers", "copy,zstd-1,zipnn")
    [(name, found)] = document["speed"].items()
    assert name.startswith("lcet10.txt")
    assert (found["dtype"], found["rounds"]) == ("BF16", 2)
    # As it is: repeated so near, it would be smaller than it is.
    assert found["bytes"] == 30 * 2 * 80 * 3 * 64 * 2
    codecs = {codec["name"]: codec for codec in found["codecs"]}
    # The lossy one is none of these.
    assert list(codecs) == ["copy", "zstd-1", "zipnn", "sira half"]
    for codec in codecs.values():
        if codec["error"]:
            assert "No module named" in codec["error"]
            assert f"**{codec['name']} did not take part**" in said
        else:
            assert len(codec["encode_gb_s"]) == len(codec["decode_gb_s"]) == 2
            assert all(rate > 0 for rate in codec["encode_gb_s"] + codec["decode_gb_s"])
    assert codecs["copy"]["bytes"] == found["bytes"]
    assert not codecs["copy"]["error"]
    assert codecs["sira half"]["encode_gb_s"] == [1.0, 1.0]


def test_a_codec_that_is_not_exact_or_not_there_is_named(tmp_path: Path) -> None:
    document, said = measured(tmp_path, "--peers", "copy", "--lossless", "rough,broken")
    errors = {codec["name"]: codec["error"] for codec in next(iter(document["speed"].values()))["codecs"]}
    assert errors == {
        "copy": "",
        "sira rough": "gives other bytes back",
        "sira broken": "sira codec try: SIRA_NO_CODEC: there is no codec broken",
    }
    assert "**sira broken did not take part**" in said
