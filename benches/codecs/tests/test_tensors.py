"""Files and bits, and where a file is not what was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import small
from codecbench.tensors import AXES, FileError, Rope, Tensor, cache, joined, read, rounded, write


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_file_gives_its_bits_back(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).normal(0, 1, (3, 5)).astype(np.float32)
    tensor = rounded(values, dtype)
    write(tmp_path / "t.safetensors", {"a": tensor}, {"why": "a test"})
    again = read(tmp_path / "t.safetensors")
    assert (again.dtype, again.shape, again.metadata) == (dtype, (3, 5), {"why": "a test"})
    assert np.array_equal(again.raw, tensor.raw)
    assert np.abs(again.numbers() - values).max() <= {"BF16": 2**-7, "F16": 2**-10, "F32": 0}[dtype]


def test_bfloat16_rounds_ties_to_even() -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], np.float32)
    assert rounded(values, "BF16").numbers().tolist() == [1, 1 + 2**-6, -1]


def test_files_that_are_none_say_so(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    for content, what in (
        (b"abc", "8-byte length"),
        (b"\x04" + b"\0" * 7 + b"{abc", "no JSON"),
        (b"\x02" + b"\0" * 7 + b"{}", "there is none"),
    ):
        file.write_bytes(content)
        with pytest.raises(FileError, match=what):
            read(file)
    write(file, {"a": rounded(np.zeros(4, np.float32), "F32")}, {})
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FileError, match="15 bytes of data"):
        read(file)
    with pytest.raises(FileError, match=r"there is a \(F32\)"):
        read(file, "b")


def test_a_cache_is_found_by_its_axes() -> None:
    original = small.cache(7)
    facts = {"axes": ",".join(AXES), "rope": "half", "rope_theta": "10000", "first_position": "5"}
    found = cache(rounded(original.joined(), "F32", facts))
    assert np.array_equal(found.keys, original.keys)
    assert np.array_equal(found.values, original.values)
    assert found.rope == Rope(10000.0, 8, 5)
    # Tokens first, as some engines have it, and a rotation that is not known.
    turned = rounded(original.joined().transpose(2, 0, 1, 3, 4), "F32", {"axes": "token,layer,kv,head,dim"})
    assert np.array_equal(cache(turned).values, original.values)
    assert cache(turned).rope is None
    with pytest.raises(FileError, match="wants the axes"):
        cache(rounded(original.joined(), "F32", {"axes": "a,b"}))


def test_rope_turns_and_turns_back() -> None:
    keys = small.cache(20).keys
    rope = Rope(10000.0, 8, 3)
    turned = rope.turned(keys, 1)
    assert np.allclose(rope.turned(turned, -1), keys, atol=1e-5)
    # The fastest pair (0, 4) turns by a radian a token, from the first position on.
    one = np.zeros((1, 1, 8), np.float32)
    one[..., 0] = 1
    assert np.allclose(rope.turned(one, 1)[0, 0, [0, 4]], [np.cos(3), np.sin(3)])


def test_files_are_joined_by_whole_rows() -> None:
    tensor = Tensor("BF16", (3, 4), np.arange(24, dtype=np.uint8))
    both = joined([tensor, tensor], limit=42, far=1000)
    assert both.shape == (5, 4)
    assert both.raw.tolist() == [*range(24), *range(16)]
    # Alone it is repeated only where repetitions are far apart.
    assert joined([tensor], limit=42, far=1000).shape == (3, 4)
    assert joined([tensor], limit=42, far=24).shape == (5, 4)
    with pytest.raises(FileError, match="one dtype"):
        joined([tensor, Tensor("F16", (3, 4), tensor.raw)], limit=42, far=0)
