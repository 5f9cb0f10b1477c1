"""Lossy baselines as their papers or programs have them: what they decode, and how many bytes they store.

All bytes count: scales, zero points, and the tokens that a method keeps as they are. Nothing is timed: numpy
says nothing of how fast a method could be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from codecbench.tensors import Cache, Floats

SINKS, WINDOW = 4, 128
"""First and last tokens that some methods keep in bfloat16."""
SCALE_BITS = 16
E4M3_MAX = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)

TOKEN, DIM = 1, 3
"""Axes of keys and of values."""


@dataclass
class Outcome:
    """What a method makes of a cache."""

    decoded: Cache
    bits: float

    @property
    def bytes(self) -> int:
        return math.ceil(self.bits / 8)


@dataclass(frozen=True)
class Method:
    """A lossy codec."""

    name: str
    about: str
    apply: Callable[[Cache], Outcome]


def methods() -> list[Method]:
    """All that need no calibration."""
    return [
        Method(
            "int8", "8 bits, a scale for each token and head", lambda c: symmetric(c, 8, c.keys.shape[DIM])
        ),
        Method("int8/32", "8 bits, a scale for each 32 channels", lambda c: symmetric(c, 8, 32)),
        Method("int4/32", "4 bits, scale and zero point for each 32 channels, keys too", int4),
        Method("fp8", "float8 e4m3, without a scale", fp8),
        Method("kivi-4 32/32", "KIVI: keys by channel, values by token, groups of 32", kivi(4, 32, 32)),
        Method("kivi-4 128/64", "KIVI: 4 bits, groups of 128 tokens and 64 channels", kivi(4, 128, 64)),
        Method("kivi-3 32/32", "KIVI: 3 bits, groups of 32", kivi(3, 32, 32)),
        Method(
            "kivi-2 32/32 kept",
            f"KIVI: 2 bits; {SINKS} sinks and a window of {WINDOW} kept",
            kept(kivi(2, 32, 32)),
        ),
        Method("cachegen", "CacheGen as LMCache has it: its bins, an adaptive arithmetic code", cachegen),
    ]


def symmetric(cache: Cache, bits: int, group: int) -> Outcome:
    """Integers with a scale in float16 for each group of channels."""
    top = 2 ** (bits - 1) - 1

    def coded(values: Floats) -> tuple[Floats, float]:
        groups = grouped(values, DIM, group)
        scale = half(np.abs(groups).max(axis=-1, keepdims=True) / top)
        whole = np.clip(np.rint(divided(groups, scale)), -top, top)
        return ungrouped(whole * scale, values, DIM), bits * values.size + SCALE_BITS * scale.size

    return both(cache, coded, coded)


def int4(cache: Cache) -> Outcome:
    """Both by token, as a KV cache of 4 bits that knows nothing of keys would be."""
    return both(cache, lambda k: asymmetric(k, 4, DIM, 32), lambda v: asymmetric(v, 4, DIM, 32))


def fp8(cache: Cache) -> Outcome:
    """What lies beyond the type's largest number becomes that."""

    def cast(values: Floats) -> tuple[Floats, float]:
        small = np.clip(values, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)
        return small.astype(np.float32), 8.0 * values.size

    return both(cache, cast, cast)


def kivi(bits: int, tokens: int, channels: int) -> Callable[[Cache], Outcome]:
    """KIVI (arXiv 2402.02750): keys in groups of tokens of one channel, values in groups of channels of one
    token."""
    return lambda cache: both(
        cache,
        lambda keys: asymmetric(keys, bits, TOKEN, tokens),
        lambda values: asymmetric(values, bits, DIM, channels),
    )


def kept(
    method: Callable[[Cache], Outcome], sinks: int = SINKS, window: int = WINDOW
) -> Callable[[Cache], Outcome]:
    """The method over all tokens but the first and last ones, which stay in 16 bits."""

    def apply(cache: Cache) -> Outcome:
        end = max(cache.tokens - window, sinks)
        found = method(Cache(cache.keys[:, sinks:end], cache.values[:, sinks:end], None))
        keys, values = cache.keys.copy(), cache.values.copy()
        keys[:, sinks:end], values[:, sinks:end] = found.decoded.keys, found.decoded.values
        whole = cache.count - found.decoded.count
        return Outcome(Cache(keys, values, cache.rope), found.bits + 16 * whole)

    return apply


def asymmetric(values: Floats, bits: int, axis: int, group: int) -> tuple[Floats, float]:
    """Integers between the least and the largest value of each group; scale and zero point in float16."""
    groups = grouped(values, axis, group)
    low = half(np.min(groups, axis=-1, keepdims=True))
    scale = half((np.max(groups, axis=-1, keepdims=True) - low) / (2**bits - 1))
    whole = np.clip(np.rint(divided(groups - low, scale)), 0, 2**bits - 1)
    return ungrouped(whole * scale + low, values, axis), bits * values.size + 2 * SCALE_BITS * scale.size


def cachegen(cache: Cache) -> Outcome:
    """CacheGen (arXiv 2310.07240) as LMCache has it, which leaves out the paper's anchors and differences: a
    scale for each layer and token, 32 bins in the first 10 layers of the keys and the first 2 of the values,
    16 in the others; symbols are coded by layer and channel.

    LMCache sends a table for each layer and channel of 256 tokens; here the code adapts and sends none,
    which is smaller.
    """

    def coded(fine: int) -> Callable[[Floats], tuple[Floats, float]]:
        def apply(values: Floats) -> tuple[Floats, float]:
            layers, tokens = values.shape[:2]
            flat = values.reshape(layers, tokens, -1)
            top = np.where(np.arange(layers) < fine, 32, 16)[:, None, None] // 2 - 1
            largest = half(np.abs(flat).max(axis=-1, keepdims=True))
            symbols = np.clip(np.rint(divided(flat * top, largest)), -top, top)
            bits = adaptive_bits((symbols + top).astype(np.int64), 2 * top.ravel() + 1)
            decoded = (symbols / top * largest).astype(np.float32)
            return decoded.reshape(values.shape), bits + SCALE_BITS * largest.size

        return apply

    return both(cache, coded(10), coded(2))


def adaptive_bits(symbols: NDArray[np.int64], alphabet: NDArray[np.int64]) -> float:
    """Length of symbols [layer, token, channel] under an arithmetic code that learns each channel's
    frequencies as it goes, from half a count for each symbol of the layer's alphabet on (Krichevsky and
    Trofimov 1981). The order does not matter, so counts suffice."""
    log_gamma = np.vectorize(math.lgamma, otypes=[float])
    table = log_gamma(np.arange(symbols.shape[1] + 1) + 0.5) - math.lgamma(0.5)
    total = 0.0
    for layer, size in zip(symbols, alphabet, strict=True):
        channels = layer.shape[1]
        counts = np.bincount((layer + np.arange(channels) * size).ravel(), minlength=channels * size)
        start = math.lgamma(layer.shape[0] + size / 2) - math.lgamma(size / 2)
        total += channels * start - table[counts].sum()
    return total / math.log(2)


def both(
    cache: Cache,
    for_keys: Callable[[Floats], tuple[Floats, float]],
    for_values: Callable[[Floats], tuple[Floats, float]],
) -> Outcome:
    """Each of a cache's tensors by its own function, which gives what is decoded and the bits of it."""
    keys, key_bits = for_keys(cache.keys)
    values, value_bits = for_values(cache.values)
    return Outcome(Cache(keys, values, cache.rope), key_bits + value_bits)


def grouped(values: Floats, axis: int, group: int) -> Floats:
    """The axis last and cut into groups; the last one is filled with its last value, which changes neither
    end of its range."""
    last = np.moveaxis(values, axis, -1)
    missing = -last.shape[-1] % group
    filled = np.pad(last, [(0, 0)] * (last.ndim - 1) + [(0, missing)], mode="edge")
    return filled.reshape(*last.shape[:-1], filled.shape[-1] // group, group)


def ungrouped(groups: Floats, like: Floats, axis: int) -> Floats:
    """`grouped`, undone."""
    last = groups.reshape(*groups.shape[:-2], groups.shape[-2] * groups.shape[-1])[..., : like.shape[axis]]
    return np.ascontiguousarray(np.moveaxis(last, -1, axis), dtype=np.float32)


def half(values: Floats) -> Floats:
    """As float16 keeps it."""
    return np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)


def divided(values: Floats, by: Floats) -> Floats:
    """0 where a group is all the same."""
    return np.divide(
        values, by, out=np.zeros(np.broadcast_shapes(values.shape, by.shape), np.float32), where=by != 0
    )
