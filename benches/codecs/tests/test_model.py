"""A model that reads a prefix in one go or from a cache is the same model, and a judge that is given the
original finds no damage."""

from __future__ import annotations

import numpy as np
import pytest

import small
from codecbench.documents import LENGTH, PREFIX
from codecbench.judge import Judge, moments
from codecbench.lossy import kivi
from codecbench.model import attention, halves
from codecbench.tensors import Cache


def test_attention_is_a_mean_of_what_may_be_seen() -> None:
    draw = np.random.default_rng(0)
    queries = draw.normal(0, 1, (3, 4, 8)).astype(np.float32)
    keys, values = draw.normal(0, 1, (2, 5, 2, 8)).astype(np.float32)
    found = attention(queries, keys, values).reshape(3, 4, 8)
    for token in range(3):
        for head in range(4):
            visible = slice(0, 2 + token + 1)
            scores = np.exp(keys[visible, head // 2] @ queries[token, head] / 8**0.5)
            mean = scores @ values[visible, head // 2] / scores.sum()
            assert np.allclose(found[token, head], mean, atol=1e-5)


def test_a_prefix_may_come_from_a_cache() -> None:
    model, ids = small.model(), small.tokens(600)
    whole, cache = model.read(ids)
    first, prefix = model.read(ids[:350])
    rest, added = model.read(ids[350:], prefix)
    assert np.allclose(np.concatenate([first, rest]), whole, atol=1e-3)
    assert np.allclose(np.concatenate([prefix.keys, added.keys], axis=1), cache.keys, atol=1e-3)
    assert np.exp(model.log_probabilities(rest)).sum(axis=1) == pytest.approx(1, abs=1e-4)


def test_what_is_watched_is_before_rope() -> None:
    model, ids = small.model(), small.tokens(40)
    keys = []
    _, cache = model.read(ids, watch=lambda layer, seen: keys.append(seen.keys))
    assert cache.rope is not None
    assert np.allclose(cache.rope.turned(cache.keys, -1), np.stack(keys), atol=1e-4)


def test_rows_of_rope_pairs_come_apart() -> None:
    # Two heads of four rows: (0, 1) and (2, 3) are pairs in the file, (0, 2) and (1, 3) in an engine.
    rows = np.arange(8, dtype=np.float32)[:, None]
    assert halves(rows, 4).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_no_change_is_no_damage_and_more_change_is_more() -> None:
    ids = small.tokens(LENGTH)
    judge = Judge(small.model(), ids)
    assert judge.original.tokens == PREFIX
    same = judge.judge(judge.original)
    assert (same.kl, same.top1, same.perplexity_change, same.error_k) == (0, 1, 0, 0)
    assert same.recall == same.recall_original
    fine, coarse = (judge.judge(kivi(bits, 32, 8)(judge.original).decoded) for bits in (6, 2))
    assert 0 < fine.kl < fine.kl_p99
    assert 20 * fine.kl < coarse.kl
    assert fine.top1 >= coarse.top1
    assert fine.error_k < coarse.error_k


def test_divergence_is_of_the_distributions() -> None:
    model, ids = small.model(), small.tokens(LENGTH)
    judge = Judge(model, ids)
    other = Cache(judge.original.keys, np.float32(2) * judge.original.values, judge.original.rope)
    before, after = (
        model.log_probabilities(model.read(ids[PREFIX:-1], cache)[0]).astype(np.float64)
        for cache in (judge.original, other)
    )
    found = judge.judge(other)
    assert found.kl == pytest.approx((np.exp(before) * (before - after)).sum(axis=1).mean(), rel=1e-3)
    targets = ids[PREFIX + 1 :]
    nll = [-scores[np.arange(len(targets)), targets].mean() for scores in (before, after)]
    assert found.perplexity_change == pytest.approx(np.exp(nll[1] - nll[0]) - 1, rel=1e-3)
    assert found.error_v == pytest.approx(1)


def test_moments_predict_what_errors_do_to_scores() -> None:
    model = small.model()
    found = moments(model, [small.tokens(LENGTH), small.tokens(LENGTH, seed=5)])
    assert found.k_metric.shape == found.v_metric.shape == (2, 2, 8, 8)
    assert np.allclose(found.k_metric, found.k_metric.transpose(0, 1, 3, 2), atol=1e-4)
    # A turn keeps a query's length, so the trace is its mean square.
    squares: list[float] = []
    model.read(
        small.tokens(PREFIX),
        watch=lambda layer, seen: squares.append(float(np.square(seen.queries).sum(axis=2).mean())),
    )
    assert np.trace(found.k_metric, axis1=2, axis2=3).mean(axis=1) == pytest.approx(squares, rel=0.1)
    # An error in a value moves the residual by its part of the output projection.
    error = np.random.default_rng(0).normal(0, 1, 8).astype(np.float32)
    output = model.layers[1].output
    moved = sum(np.square(error @ output[8 * head : 8 * head + 8]).sum() for head in (2, 3))
    assert error @ found.v_metric[1, 1] @ error == pytest.approx(moved, rel=1e-4)
