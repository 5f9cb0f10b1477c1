"""What is read of the program, said in tables and drawn, of figures whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codecbench.damage import shown
from codecbench.documents import DocumentError, stem, text, tokens
from codecbench.figures import pays_below
from codecbench.figures import text as report
from codecbench.plot import family
from codecbench.program import ProgramError, parsed, with_presets

LINE: dict[str, Any] = {
    "codec": "planes+zstd",
    "lossless": True,
    "raw_bytes": 100,
    "stored_bytes": 50,
    "ratio": 2.0,
    "bits_per_value": 8,
    "encode_gb_s": 1.5,
    "decode_gb_s": 2.5,
    "exact": True,
    "error_k": None,
    "error_v": 0.5,
    "calibration": None,
}


def test_each_line_of_the_program_is_a_codec() -> None:
    lines = [LINE, {**LINE, "codec": "int8", "more": 1}]
    assert parsed("\n".join(map(json.dumps, lines)) + "\n\n") == lines


@pytest.mark.parametrize(
    ("output", "what"),
    [
        ("", "printed nothing"),
        ("ratio 2\n", "no JSON: 'ratio 2'"),
        (json.dumps({**LINE, "stored_bytes": "50"}), "stored_bytes is '50'"),
        (json.dumps({**LINE, "stored_bytes": True}), "stored_bytes is True"),
        (json.dumps({key: LINE[key] for key in LINE if key != "exact"}), "exact is None"),
    ],
)
def test_other_output_is_refused(output: str, what: str) -> None:
    with pytest.raises(ProgramError, match=what):
        parsed(output)


def test_a_codec_pays_below_a_link_speed() -> None:
    # At 4 Gbit/s, 1 GB takes 2 s. Half of it takes 1 s, and so does encoding it at 1 GB/s.
    speed = pays_below(2, 1)
    assert speed == 4
    assert 8 / speed == 4 / speed + 1
    assert pays_below(2, 1, cores=4) == 16
    assert pays_below(1, 9) == pays_below(0.9, 9) == 0


def speeds(name: str, stored: int, encode: list[float], **more: Any) -> dict[str, Any]:
    known = {"name": name, "about": "", "fresh": "", "bytes": stored, "error": ""}
    return {**known, "encode_gb_s": encode, "decode_gb_s": encode, **more}


def test_the_report_has_ratios_of_the_same_round() -> None:
    found = {
        "bytes": 1000,
        "dtype": "BF16",
        "rounds": 3,
        "codecs": [
            speeds("split+zstd-1", 800, [1.0, 0.5, 2.0]),
            speeds("zipnn", 500, [2.0, 1.0, 4.0], fresh="encodes into new memory"),
            speeds("lz4", 1, [], error="ImportError: no lz4"),
        ],
    }
    said = report({"machine": {"cpus": "1 x Test", "kernel": "6"}, "speed": {"a file": found}})
    assert "## Lossless: a file" in said
    assert "2.000 | 8.00" in said
    assert "2.00 (1.50-3.00) | 2.00x (2.00-2.00)" in said
    assert "zipnn encodes into new memory." in said
    assert "**lz4 did not take part**: ImportError: no lz4" in said
    # 2 GB/s each way and half the bytes: 8 Gbit/s.
    assert said.count("8.0 Gbit/s") == 2


def test_presets_of_a_codec_are_one_line_of_the_plot() -> None:
    assert family("sira kvq:high") == family("sira kvq") == "kvq"
    assert family("sira kvq:high@") == family("sira kvq@") == "kvq calibrated"
    assert family("sira kvtc:high@") == "kvtc"
    assert shown("kvq:high@5f5f") == "kvq:high@"
    assert shown("fp8") == "fp8"


def test_presets_are_tried_with_the_calibration_of_their_stage() -> None:
    known = {"kvq": ["high", "compact"]}
    tried = with_presets(["int8", "kvq", "kvq@5f"], known)
    assert tried == ["int8", "kvq:high", "kvq:compact", "kvq:high@5f", "kvq:compact@5f"]


def test_documents_are_texts_that_every_machine_has(tmp_path: Path) -> None:
    assert "class ArgumentParser" in text("source:argparse")
    assert "with" in text("topics:compound")
    (tmp_path / "ids.json").write_text('{"a": {"tokens": [1, 2, 3]}}')
    assert tokens(f"tokens:{tmp_path}/ids.json:a", lambda _: [], 2) == [1, 2]
    (tmp_path / "t.txt").write_text("abc")
    assert tokens(str(tmp_path / "t.txt"), lambda said: list(said.encode()), 2) == [97, 98]
    for name, what in (
        ("source:no_such_module", "no module"),
        ("topics:no-such-topic", "there is assert, "),
        (f"tokens:{tmp_path}/ids.json:b", "there is a"),
        (str(tmp_path / "nothing"), "No such file"),
    ):
        with pytest.raises(DocumentError, match=what):
            tokens(name, lambda _: [1])
    with pytest.raises(DocumentError, match="1 tokens, 2048 are needed"):
        tokens(str(tmp_path / "t.txt"), lambda _: [1])
    assert stem("source:numpy.lib._npyio_impl") == "source-numpy-lib-npyio-impl"
