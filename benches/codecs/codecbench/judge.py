"""What a lossy codec does to the model that reads back what it stored.

A document's first tokens are the stored prefix; those that follow read it. The distribution of each next
token with the decoded prefix is compared with the one that the original prefix gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codecbench.documents import PREFIX
from codecbench.model import Model, Seen
from codecbench.tensors import Cache, Floats, Rope, rounded

PASSAGE = (400, 656)
"""Tokens of the prefix that are read again after it: a model with its prefix intact nearly copies them."""
SETTLED = 32
"""Tokens of the passage after which the model knows that it is one."""
SINKS = 16
"""First tokens, whose norms are out of proportion: they do not count in the residual's."""
FROM = 256
"""Queries from this token on see about as many keys as those that read a whole prefix."""


@dataclass(frozen=True)
class Damage:
    """Measures of one decoded prefix."""

    kl: float
    """Mean Kullback-Leibler divergence from the original's distribution, in nats a token"""
    kl_p99: float
    top1: float
    """Share of tokens whose likeliest successor is the same"""
    perplexity_change: float
    """Of the continuation; .01 is 1 % more"""
    perplexity_error: float
    """Standard error of that"""
    recall: float
    """Mean negative log likelihood of a passage of the prefix that comes again"""
    recall_original: float
    error_k: float
    """Root mean squared error against the root mean square"""
    error_v: float


class Judge:
    """A model with a document before it."""

    def __init__(self, model: Model, tokens: Sequence[int], original: Cache | None = None) -> None:
        self._model = model
        self._tokens = list(tokens)
        self.original = stored(original or model.read(tokens[:PREFIX])[1])
        """What the codecs get: bfloat16's numbers"""
        self._distribution, self._recall = self._reading(self.original)

    def judge(self, decoded: Cache) -> Damage:
        """The damage of a decoded prefix, which an engine would hold in bfloat16."""
        decoded = stored(decoded)
        before = self._distribution
        after, recall = self._reading(decoded)
        divergence = (np.exp(before) * (before - after)).sum(axis=1, dtype=np.float64)
        targets = np.asarray(self._tokens[PREFIX + 1 :])
        rows = np.arange(len(targets))
        worse = (before - after)[rows, targets].astype(np.float64)
        return Damage(
            kl=float(divergence.mean()),
            kl_p99=float(np.quantile(divergence, 0.99)),
            top1=float((before.argmax(axis=1) == after.argmax(axis=1)).mean()),
            perplexity_change=float(np.expm1(worse.mean())),
            perplexity_error=float(worse.std() / len(worse) ** 0.5),
            recall=recall,
            recall_original=self._recall,
            error_k=error(decoded.keys, self.original.keys),
            error_v=error(decoded.values, self.original.values),
        )

    def _reading(self, prefix: Cache) -> tuple[Floats, float]:
        """Log probabilities of what follows the continuation's tokens but the last, and the passage's NLL."""
        hidden, _ = self._model.read(self._tokens[PREFIX:-1], prefix)
        begin, end = PASSAGE
        passage = self._tokens[begin:end]
        again, _ = self._model.read(passage[:-1], prefix)
        found = self._model.log_probabilities(again[SETTLED:])
        likelihoods = found[np.arange(len(found)), passage[SETTLED + 1 :]]
        return self._model.log_probabilities(hidden), float(-likelihoods.mean(dtype=np.float64))


@dataclass
class Moments:
    """What errors in keys and values cost a model, as a calibration wants to know it."""

    k_metric: Floats
    """[layer, kv head, dim, dim]: mean of q q^T over queries, as a key without RoPE sees them"""
    v_metric: Floats
    """[layer, kv head, dim, dim]: sum of W W^T over the query heads' parts of the output projection"""
    residual: Floats
    """[layer]: mean squared norm of what enters"""


def moments(model: Model, documents: Sequence[Sequence[int]]) -> Moments:
    """Means over documents. A query that stands n tokens after a key is the key's turned by n, so each query
    of a sample is turned by a distance drawn from those of a prefix."""
    shape = model.shape
    draw = np.random.default_rng(0)
    k_metric = np.zeros((shape.layers, shape.kv_heads, shape.head_dim, shape.head_dim))
    residual = np.zeros(shape.layers)

    def watch(number: int, seen: Seen) -> None:
        residual[number] += np.square(seen.residual[SINKS:], dtype=np.float64).sum(axis=1).mean()
        for query in draw.choice(seen.queries[FROM:], 512):
            turned = Rope(shape.theta, shape.head_dim, int(draw.integers(1, PREFIX))).turned(query[None], 1)
            grouped = turned.reshape(shape.kv_heads, shape.group, -1).astype(np.float64)
            k_metric[number] += np.einsum("gqi,gqj->gij", grouped, grouped) / (512 * shape.group)

    for document in documents:
        model.read(document[:PREFIX], watch=watch)
    outputs = np.stack([layer.output.reshape(shape.heads, shape.head_dim, -1) for layer in model.layers])
    per_head = np.einsum("lhiw,lhjw->lhij", outputs, outputs)
    grouped = per_head.reshape(shape.layers, shape.kv_heads, shape.group, shape.head_dim, shape.head_dim)
    count = len(documents)
    return Moments(
        (k_metric / count).astype(np.float32), grouped.sum(axis=2), (residual / count).astype(np.float32)
    )


def stored(cache: Cache) -> Cache:
    """As bfloat16 keeps it."""
    return Cache(rounded(cache.keys, "BF16").numbers(), rounded(cache.values, "BF16").numbers(), cache.rope)


def error(decoded: Floats, original: Floats) -> float:
    """Root mean squared error against the root mean square."""
    apart = np.square(decoded - original, dtype=np.float64).mean()
    power = np.square(original, dtype=np.float64).mean()
    return float(np.sqrt(apart / power)) if power else float(apart > 0)
