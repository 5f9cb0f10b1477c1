"""Rates by hand, and errors that follow from them."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

import small
from codecbench import kvtc
from codecbench.judge import error
from codecbench.lossy import adaptive_bits, asymmetric, cachegen, fp8, kept, kivi, methods, symmetric
from codecbench.tensors import Cache


def bits(cache: Cache, name: str) -> float:
    [method] = [method for method in methods() if method.name == name]
    return method.apply(cache).bits / cache.count


def test_rates_are_those_of_the_formats() -> None:
    cache = small.cache(256)
    # A scale of 16 bits for 8 channels, which is all that this model has.
    assert bits(cache, "int8") == 8 + 16 / 8
    assert bits(cache, "fp8") == 8
    # Keys: 32 bits for 128 tokens of a channel. Values: 32 bits for the 8 channels of a token.
    assert kivi(4, 128, 64)(cache).bits / cache.count == 4 + (32 / 128 + 32 / 8) / 2


def test_each_group_has_a_range_of_its_own() -> None:
    values = np.zeros((1, 64, 1, 2), np.float32)
    values[0, :32, 0, 0] = np.linspace(0, 15, 32)
    values[0, 32:, 0, 0] = np.linspace(-1500, 0, 32)
    decoded, _ = asymmetric(values, 4, 1, 32)
    assert np.abs(decoded - values)[0, :32].max() <= 0.5
    assert np.abs(decoded - values)[0, 32:].max() <= 50.1
    # A group that is all the same stays so.
    assert not decoded[..., 1].any()


def test_a_last_group_may_be_short() -> None:
    cache = small.cache(45)
    found = kivi(8, 32, 32)(cache).decoded
    assert found.keys.shape == cache.keys.shape
    assert error(found.keys, cache.keys) < 0.01


def test_more_bits_are_fewer_errors() -> None:
    cache = small.cache()
    errors = [error(kivi(width, 32, 32)(cache).decoded.values, cache.values) for width in (2, 3, 4)]
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2]
    assert error(symmetric(cache, 8, 8).decoded.keys, cache.keys) < 0.01


def test_kept_tokens_stay_as_they_are() -> None:
    cache = small.cache(300)
    found = kept(kivi(2, 32, 32), sinks=4, window=128)(cache)
    changed = (found.decoded.keys != cache.keys).any(axis=(0, 2, 3))
    assert not changed[:4].any()
    assert not changed[-128:].any()
    assert changed[4:-128].all()
    body = kivi(2, 32, 32)(Cache(cache.keys[:, 4:-128], cache.values[:, 4:-128], None))
    assert found.bits == body.bits + 16 * 132 * 2 * 3 * 2 * 8
    # All are kept where there are no others.
    assert kept(kivi(2, 32, 32))(small.cache(100)).bits == 16 * small.cache(100).count


def test_fp8_saturates() -> None:
    keys = np.full((1, 1, 1, 2), 1000, np.float32)
    assert fp8(Cache(keys, -keys, None)).decoded.values.tolist() == [[[[-448, -448]]]]


def test_an_adaptive_code_costs_what_its_counts_say() -> None:
    # One channel, three symbols of two: 1/2 for the first, then 1.5/2 and 2.5/3 for its like.
    same = np.zeros((1, 3, 1), np.int64)
    assert adaptive_bits(same, np.array([2])) == pytest.approx(-np.log2(0.5 * 0.75 * 2.5 / 3))
    fair = np.random.default_rng(0).integers(0, 2, (2, 4000, 3))
    assert adaptive_bits(fair, np.array([2, 2])) == pytest.approx(fair.size, rel=0.003)


def test_cachegen_has_bins_by_layer() -> None:
    cache = small.cache(200, layers=12)
    found = cachegen(cache).decoded
    for tensor, original, fine in ((found.keys, cache.keys, 10), (found.values, cache.values, 2)):
        flat = original.reshape(12, 200, -1)
        step = np.abs(flat).max(axis=-1) / np.where(np.arange(12) < fine, 15, 7)[:, None]
        apart = np.abs(tensor.reshape(12, 200, -1) - flat).max(axis=-1) / step
        assert apart.max() < 0.51
        assert apart.min() > 0.2
    assert 2 < cachegen(cache).bits / cache.count < 6


@pytest.fixture(scope="module")
def calibration() -> kvtc.Calibration:
    return kvtc.calibrated([small.cache(600, seed=2)])


def test_plain_kvtc_meets_its_rate(calibration: kvtc.Calibration) -> None:
    cache = small.cache(600, seed=2)
    kept_bits = 16 * cache.count * 132 / 600
    errors = []
    for smaller in (3.0, 6.0):
        found = kvtc.method(calibration, smaller).apply(cache)
        body = (found.bits - kept_bits) / (cache.count * 468 / 600)
        assert body == pytest.approx(16 / smaller, rel=0.1)
        errors.append(error(found.decoded.keys, cache.keys))
        assert np.array_equal(found.decoded.keys[:, :4], cache.keys[:, :4])
        assert np.array_equal(found.decoded.values[:, -128:], cache.values[:, -128:])
    # Six directions hold nearly all of 48 numbers a token.
    assert errors[0] < errors[1] < 0.2
    assert error(kivi(3, 32, 32)(cache).decoded.keys, cache.keys) > errors[0]


def test_widths_are_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    variance = np.sort(np.exp(draw.normal(0, 2, 4 * kvtc.GROUP)))[::-1]
    distortion = variance * 4.0 ** -np.arange(9)[:, None]
    found = kvtc.Allotment(distortion)
    for budget in (0, 5 * kvtc.GROUP, 11 * kvtc.GROUP):
        widths = found.widths(budget)
        assert widths.sum() <= budget
        least = min(
            sum(distortion[w, at * kvtc.GROUP : (at + 1) * kvtc.GROUP].sum() for at, w in enumerate(some))
            for some in np.ndindex(9, 9, 9, 9)
            if sum(some) * kvtc.GROUP <= budget
        )
        assert distortion[widths, np.arange(len(widths))].sum() == pytest.approx(least)


def test_plain_kvtc_counts_what_deflate_makes() -> None:
    seen = np.random.default_rng(0).normal(0, 1, (100, 16)).astype(np.float32)
    widths = np.array([3] * 8 + [0] * 8)
    levels, size = kvtc.packed(seen, widths, np.ones(16, np.float32))
    assert set(np.unique(levels[:, :8])) == set(range(-4, 4))
    assert not levels[:, 8:].any()
    assert size == len(zlib.compress(np.ascontiguousarray(levels[:, :8].T).astype(np.int8), 6)) + 2
    # Max's table: the distortion of 3 bits on a normal distribution is .0374.
    apart = seen[:, :8] - kvtc.dequantized(levels[:, :8], 3, np.ones(8, np.float32))
    assert np.square(apart).mean() == pytest.approx(0.0374, rel=0.2)
