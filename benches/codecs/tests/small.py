"""A model and a cache of a size that tests can afford."""

from __future__ import annotations

import numpy as np

from codecbench.model import Layer, Model, Shape
from codecbench.tensors import Cache, Floats, Rope

VOCABULARY, WIDTH, INNER = 50, 32, 48
SHAPE = Shape(layers=2, heads=4, kv_heads=2, head_dim=8, theta=10000.0, epsilon=1e-5)


def model(seed: int = 0) -> Model:
    """Random weights."""
    draw = np.random.default_rng(seed)

    def matrix(*shape: int) -> Floats:
        return draw.normal(0, shape[0] ** -0.5, shape).astype(np.float32)

    kv = SHAPE.kv_heads * SHAPE.head_dim
    layers = [
        Layer(
            attention_norm=np.ones(WIDTH, np.float32),
            query=matrix(WIDTH, WIDTH),
            key=matrix(WIDTH, kv),
            value=matrix(WIDTH, kv),
            output=matrix(WIDTH, WIDTH),
            mlp_norm=np.ones(WIDTH, np.float32),
            gate=matrix(WIDTH, INNER),
            up=matrix(WIDTH, INNER),
            down=matrix(INNER, WIDTH),
        )
        for _ in range(SHAPE.layers)
    ]
    embedding = draw.normal(0, 1, (VOCABULARY, WIDTH)).astype(np.float32)
    return Model(SHAPE, embedding, layers, np.ones(WIDTH, np.float32))


def tokens(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCABULARY, count)]


def cache(count: int = 300, layers: int = 3, seed: int = 2) -> Cache:
    """Numbers with a scale for each channel, which depend on each other across layers."""
    draw = np.random.default_rng(seed)
    scales = np.exp(draw.normal(0, 1, (1, 1, 2, 8)))
    hidden = draw.normal(0, 1, (count, 6))

    def tensor() -> Floats:
        mixed = hidden @ draw.normal(0, 1, (6, layers * 16)) + draw.normal(0, 0.1, (count, layers * 16))
        return (mixed.reshape(count, layers, 2, 8).transpose(1, 0, 2, 3) * scales).astype(np.float32)

    return Cache(tensor(), tensor(), Rope(10000.0, 8, 0))
