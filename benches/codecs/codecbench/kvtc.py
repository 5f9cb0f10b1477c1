"""KVTC (arXiv 2511.01815) without what Sira's own `kvtc` adds: one principal component analysis over all
layers and heads, keys without RoPE, keys and values apart, bits allotted to the components, DEFLATE last.
The first tokens and the latest stay in bfloat16."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codecbench.lossy import SINKS, WINDOW, Method, Outcome
from codecbench.tensors import Cache, Floats

WIDTHS = range(9)
"""Bits that a component may have."""
GROUP = 8
"""Components that share a width."""
BODIES = (4.0, 8.0, 16.0, 20.0)
"""How many times smaller the tokens become that are not kept."""
CLOSE = 0.005
"""Relative distance from such a rate at which the search for it ends."""


@dataclass
class Basis:
    """What calibration finds of keys or of values."""

    mean: Floats
    vectors: Floats
    """[number, component], the largest variance first"""
    distortion: NDArray[np.float64]
    """[width, component]: mean squared error in the calibration at each width"""
    spread: Floats
    """[component]: standard deviation"""


@dataclass
class Calibration:
    """Bases of a model, with the size that they would have in bfloat16."""

    keys: Basis
    values: Basis

    @property
    def bytes(self) -> int:
        return 2 * sum(basis.mean.size + basis.vectors.size for basis in (self.keys, self.values))


def calibrated(caches: Sequence[Cache]) -> Calibration:
    """Bases of these caches, sinks left out."""
    keys = np.concatenate([rows(unroped(c).keys)[SINKS:] for c in caches])
    values = np.concatenate([rows(c.values)[SINKS:] for c in caches])
    return Calibration(basis(keys), basis(values))


def basis(samples: Floats) -> Basis:
    """Principal components of samples [token, number]."""
    mean = samples.mean(axis=0)
    centred = samples - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred / np.float32(len(samples)))
    vectors = np.ascontiguousarray(vectors[:, ::-1])
    spread = np.sqrt(np.maximum(variances[::-1], 0)).astype(np.float32)
    # Every eighth token says enough of how a width does.
    seen = centred[::8] @ vectors
    errors = [
        np.square(seen - dequantized(quantized(seen, width, spread), width, spread)) for width in WIDTHS
    ]
    return Basis(mean, vectors, np.stack([e.mean(axis=0, dtype=np.float64) for e in errors]), spread)


def step(width: int, spread: Floats) -> Floats:
    """The uniform quantiser of so many bits that suits a normal distribution best (Max 1960), in the
    component's unit."""
    known = (0.0, 1.596, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.05687, 0.03076)
    return np.float32(known[width]) * spread


def quantized(seen: Floats, width: int, spread: Floats) -> NDArray[np.int16]:
    """Levels of coefficients [token, component], from -2**(width-1) on."""
    if width == 0:
        return np.zeros(seen.shape, np.int16)
    size = np.maximum(step(width, spread), np.finfo(np.float32).tiny)
    edge = 2 ** (width - 1)
    return np.clip(np.floor(seen / size), -edge, edge - 1).astype(np.int16)


def dequantized(levels: NDArray[np.int16], width: int, spread: Floats) -> Floats:
    """The middle of each level."""
    if width == 0:
        return np.zeros(levels.shape, np.float32)
    return (levels + np.float32(0.5)) * step(width, spread)


class Allotment:
    """Widths by dynamic programming: for each number of bits a token, the least total error of all ways to
    spend them. Neighbours, which are about alike, have one width, as in the paper."""

    def __init__(self, distortion: NDArray[np.float64]) -> None:
        self._components = distortion.shape[1]
        missing = -self._components % GROUP
        errors = np.pad(distortion, ((0, 0), (0, missing))).reshape(len(WIDTHS), -1, GROUP).sum(axis=2)
        self._groups = errors.shape[1]
        most = self._groups * WIDTHS[-1]
        self.most = most * GROUP
        best = np.zeros(most + 1)
        self._chosen = np.zeros((self._groups, most + 1), np.uint8)
        for at in range(self._groups):
            options = np.full((len(WIDTHS), most + 1), np.inf)
            for width in WIDTHS:
                options[width, width:] = best[: most + 1 - width] + errors[width, at]
            self._chosen[at] = options.argmin(axis=0)
            best = options.min(axis=0)

    def widths(self, budget: int) -> NDArray[np.int64]:
        """Of each component, for at most so many bits a token."""
        left = budget // GROUP
        widths = np.zeros(self._groups, np.int64)
        for at in reversed(range(self._groups)):
            widths[at] = self._chosen[at, left]
            left -= widths[at]
        return np.repeat(widths, GROUP)[: self._components]


@dataclass
class Coded:
    """A body as it would be stored."""

    decoded: Floats
    bytes: int


def coded(body: Floats, basis: Basis, target: float) -> Coded:
    """Tokens [token, number] in about `target` bytes: a budget is searched of which DEFLATE makes so many."""
    seen = ((body - basis.mean) @ basis.vectors).astype(np.float32, copy=False)
    allotment = Allotment(basis.distortion)
    low, high = 0, allotment.most
    budget = min(round(8 * target / len(body)), high)
    while True:
        widths = allotment.widths(budget)
        levels, size = packed(seen, widths, basis.spread)
        low, high = (budget, high) if size < target else (low, budget)
        following = min(max(round(budget * target / size), low + GROUP), high - GROUP)
        if abs(size / target - 1) < CLOSE or following <= low:
            break
        budget = following
    found = np.zeros(seen.shape, np.float32)
    for width in WIDTHS:
        these = widths == width
        found[:, these] = dequantized(levels[:, these], width, basis.spread[these])
    return Coded(found @ basis.vectors.T + basis.mean, size)


def packed(seen: Floats, widths: NDArray[np.int64], spread: Floats) -> tuple[NDArray[np.int16], int]:
    """Levels of coefficients at these widths, and how many bytes DEFLATE makes of them, widths included."""
    levels = np.zeros(seen.shape, np.int16)
    for width in WIDTHS:
        these = widths == width
        levels[:, these] = quantized(seen[:, these], width, spread[these])
    # A component's levels lie together: neighbours have about the same distribution.
    used = np.ascontiguousarray(levels[:, widths > 0].T).astype(np.int8)
    return levels, len(zlib.compress(used.data, 6)) + -(-widths.size // GROUP)


def method(calibration: Calibration, smaller: float) -> Method:
    """KVTC with a body so many times smaller than bfloat16."""

    def apply(cache: Cache) -> Outcome:
        end = max(cache.tokens - WINDOW, SINKS)
        bare = unroped(cache)
        keys, values = bare.keys.copy(), cache.values.copy()
        bits = 16.0 * cache.count
        for tensor, basis in ((keys, calibration.keys), (values, calibration.values)):
            body = tensor[:, SINKS:end]
            if not body.size:
                continue
            found = coded(rows(body), basis, 2 * body.size / smaller)
            tensor[:, SINKS:end] = unrows(found.decoded, body)
            bits += 8 * found.bytes - 16 * body.size
        keys = cache.rope.turned(keys, 1) if cache.rope else keys
        # Kept tokens are kept to the bit.
        keys[:, :SINKS], keys[:, end:] = cache.keys[:, :SINKS], cache.keys[:, end:]
        return Outcome(Cache(keys, values, cache.rope), bits)

    about = f"KVTC, one PCA for all: tokens but the first {SINKS} and last {WINDOW} {smaller:g}x smaller"
    return Method(f"kvtc-plain {smaller:g}x", about, apply)


def unroped(cache: Cache) -> Cache:
    """Keys as they were before RoPE, where that is known."""
    keys = cache.rope.turned(cache.keys, -1) if cache.rope else cache.keys
    return Cache(keys, cache.values, None)


def rows(tensor: Floats) -> Floats:
    """[layer, token, head, dim] as [token, layer * head * dim]"""
    return np.ascontiguousarray(tensor.transpose(1, 0, 2, 3)).reshape(tensor.shape[1], -1)


def unrows(flat: Floats, like: Floats) -> Floats:
    """`rows`, undone."""
    layers, tokens, heads, dim = like.shape
    return flat.reshape(tokens, layers, heads, dim).transpose(1, 0, 2, 3)


def remembered(caches: Sequence[Cache], folder: Path) -> Calibration:
    """The calibration of these caches, from an earlier run where there was one: it takes minutes."""
    digest = hashlib.sha256()
    for cache in caches:
        digest.update(cache.keys.tobytes() + cache.values.tobytes() + repr(cache.rope).encode())
    file = folder / f"kvtc-plain-{digest.hexdigest()[:16]}.npz"
    if not file.exists():
        found = calibrated(caches)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"keys": found.keys, "values": found.values}
        arrays = {
            f"{name}.{part}": array for name, basis in parts.items() for part, array in vars(basis).items()
        }
        unfinished = file.with_suffix(".part.npz")
        np.savez(unfinished, **arrays)
        unfinished.rename(file)
    with np.load(file) as saved:
        parts_of = [{f.name: saved[f"{name}.{f.name}"] for f in fields(Basis)} for name in ("keys", "values")]
    return Calibration(*(Basis(**part) for part in parts_of))
