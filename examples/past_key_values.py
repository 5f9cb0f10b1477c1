# %% [markdown]
# # A transformer's past_key_values, in Sira and back
#
# A model that has read a prompt holds what it needs to go on: for each layer the keys and values of every
# token, its `past_key_values`. This notebook stores them, throws them away, fetches them and goes on
# generating, first as one tensor, as one keeps a conversation, then as blocks of 16 tokens under the hashes
# of their text, as an inference engine shares prompts. Every bit is compared.
#
# Run it with `python examples/past_key_values.py`, or cell by cell in an editor that knows `# %%`. It needs
# torch and `sira_store`, and downloads nothing: the model is a small one with random weights. It talks to the
# server at `SIRA_URL`; without one it starts its own.

# %%
from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading

import torch
from torch import Tensor, nn
from torch.nn import functional

import sira_store

LAYERS, HEADS, KV_HEADS, DIM, WIDTH, VOCABULARY = 6, 8, 4, 64, 256, 1000
BLOCK_TOKENS = 16
ROPE = sira_store.Rope(theta=10000, dim=DIM)
PastKeyValues = tuple[tuple[Tensor, Tensor], ...]  # a layer: keys and values, each [batch, head, token, dim]

# %% [markdown]
# ## A server
#
# Port 0 takes a free one; the server's last line on standard output says which, and that it answers.


# %%
def start_server() -> str:
    """Starts a server over a temporary folder, until this program ends; gives its URL."""
    program = os.environ.get("SIRA_BIN") or shutil.which("sira")
    if program is None:
        sys.exit("no server: give SIRA_URL, or put sira on PATH (docs/install.md), or name it in SIRA_BIN")
    folder = tempfile.TemporaryDirectory(prefix="sira-example-")
    command = [program, "serve", "--listen", "127.0.0.1:0", "--admin", "off", "--data", folder.name]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def stop() -> None:
        server.terminate()
        server.wait()
        folder.cleanup()

    atexit.register(stop)
    for line in server.stdout:
        if line.startswith("sira: listening on "):
            # Nobody else reads the pipe, and a full one would stop the server.
            threading.Thread(target=server.stdout.read, daemon=True).start()
            return line.removeprefix("sira: listening on ").strip()
    sys.exit("the server did not start; standard error says why")


sira = sira_store.connect(os.environ.get("SIRA_URL") or start_server())
print(f"server {sira.url}, {sira.health()['status']}")

# %% [markdown]
# ## A model
#
# Llama's shape in small: rotary positions, grouped queries (8 heads share 4 of keys and values), bfloat16. It
# takes and gives `past_key_values` as the models of `transformers` do; of their `DynamicCache` the same
# tuples are `tuple((layer.keys, layer.values) for layer in cache.layers)`.


# %%
def rotated(x: Tensor, first: int) -> Tensor:
    """Rotary embedding of positions from `first` on: dimension i is paired with i + dim/2."""
    frequencies = ROPE.theta ** (-torch.arange(0, DIM, 2) / DIM)
    angles = torch.arange(first, first + x.shape[2])[:, None] * frequencies
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    low, high = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-high, low), dim=-1) * sin).to(x.dtype)


class Layer(nn.Module):
    """Attention, then a feed-forward network, each with a norm before and a bypass."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, HEADS * DIM, bias=False)
        self.kv = nn.Linear(WIDTH, 2 * KV_HEADS * DIM, bias=False)
        self.out = nn.Linear(HEADS * DIM, WIDTH, bias=False)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, tokens, _ = x.shape
        first = 0 if past is None else past[0].shape[2]
        normed = functional.layer_norm(x, (WIDTH,))
        q = self.q(normed).view(batch, tokens, HEADS, DIM).transpose(1, 2)
        k, v = self.kv(normed).view(batch, tokens, 2 * KV_HEADS, DIM).transpose(1, 2).chunk(2, dim=1)
        q, k = rotated(q, first), rotated(k, first)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        seen = torch.ones(tokens, first + tokens, dtype=torch.bool).tril(first)
        groups = HEADS // KV_HEADS
        every_k, every_v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        attended = functional.scaled_dot_product_attention(q, every_k, every_v, attn_mask=seen)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, HEADS * DIM))
        return x + self.feed(functional.layer_norm(x, (WIDTH,))), (k, v)


class Model(nn.Module):
    """Tokens and what came before them, to the next token's scores and what comes before that."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, past: PastKeyValues | None = None) -> tuple[Tensor, PastKeyValues]:
        x, present = self.embed(tokens), []
        for index, layer in enumerate(self.layers):
            x, kept = layer(x, None if past is None else past[index])
            present.append(kept)
        return self.head(functional.layer_norm(x[:, -1], (WIDTH,))), tuple(present)


@torch.inference_mode()
def generate(tokens: Tensor, past: PastKeyValues | None, count: int) -> list[int]:
    """The most likely `count` tokens behind `past` and `tokens`."""
    made: list[int] = []
    while len(made) < count:
        scores, past = model(tokens, past)
        tokens = scores.argmax(dim=-1, keepdim=True)
        made.append(int(tokens))
    return made


torch.manual_seed(7)
model = Model().to(torch.bfloat16).eval()
prompt = torch.randint(VOCABULARY, (1, 600))
with torch.inference_mode():
    scores, past_key_values = model(prompt)
next_token = scores.argmax(dim=-1, keepdim=True)
expected = generate(next_token, past_key_values, 20)
print(f"read {prompt.shape[1]} tokens; then it says {expected}")

# %% [markdown]
# ## A conversation: one tensor
#
# All layers go into one tensor `[layer, kv, token, head, dim]`. One key for a conversation is one commit: it
# is there whole or not at all. With tokens before heads, what one token has in a layer lies together, as
# paged attention kernels keep it; and Sira, which cuts the axis named `token` every 256, can give the first
# tokens, or the first layers while the model already computes, without reading the rest. The axes' names are
# what makes that possible: give them always.


# %%
def packed(past: PastKeyValues) -> Tensor:
    """Tuples of [batch, head, token, dim] as one tensor [layer, kv, token, head, dim]."""
    return torch.stack([torch.stack((k[0], v[0])) for k, v in past]).transpose(2, 3).contiguous()


def unpacked(kv: Tensor) -> PastKeyValues:
    """And back."""
    return tuple((k[None], v[None]) for k, v in kv.transpose(2, 3))


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal in shape and every bit, whatever the bits mean."""
    return left.dtype == right.dtype and torch.equal(left.view(torch.int16), right.view(torch.int16))


kv = packed(past_key_values)
put = sira.put(
    "example-chats/42",
    kv,
    axes=["layer", "kv", "token", "head", "dim"],
    ttl=3600,
    attributes={"model": "example-tiny"},
)
info = sira.info("example-chats/42")
print(f"stored {info.key} version {put.version}: {info.dtype} {list(info.shape)}, {info.nbytes:,} bytes")

reference = kv
del kv, past_key_values  # the memory goes to another request

fetched = sira.get("example-chats/42", framework="torch")
assert same_bits(fetched, reference)
assert generate(next_token, unpacked(fetched), 20) == expected
print(f"fetched it, {fetched.dtype}: bit for bit the same, and the model says the same")

# %% [markdown]
# Only the first 256 tokens, of the first two layers, into memory that is there already:

# %%
window = torch.empty(2, 2, 256, KV_HEADS, DIM, dtype=torch.bfloat16)
sira.get("example-chats/42", out=window, ranges={"layer": (0, 2), "token": (0, 256)})
assert same_bits(window, reference[:2, :, :256].contiguous())
print(f"fetched {window.nbytes:,} of {reference.nbytes:,} bytes: the first 2 layers of 256 tokens")

# %% [markdown]
# ## Prompts that share their beginning: blocks
#
# An engine keeps blocks of 16 tokens. A block's key is the hash of its tokens and of all that come before
# them, so equal beginnings of prompts have equal keys, whoever computed them. A `KvSpec` says what a block
# is; its hash is stored with each, and a reader that demands another spec (other model, other layout) finds
# nothing rather than garbage. K and V are two parts of a key, each contiguous, since kernels keep them apart.
#
# The namespace is a cache: at its limits the server evicts what was used least recently, puts are
# acknowledged from memory, and a lookup without an answer is a miss after 0.2 seconds, for a block that is
# not there can always be computed.

# %%
spec = sira_store.KvSpec.nhd(
    "example-tiny",
    dtype="bfloat16",
    block_tokens=BLOCK_TOKENS,
    kv_heads=KV_HEADS,
    head_dim=DIM,
    leading={"layer": LAYERS},
    block_hash="sha256",
    layers=(0, LAYERS),
    rope=ROPE,
)
sira.set_namespace("example-blocks", mode="cache", limits={"memory": 64 << 20})


def block_keys(tokens: Tensor) -> list[str]:
    """A key for each whole block; each hash covers the one before it."""
    keys, digest = [], b""
    for block in tokens[0, : tokens.shape[1] // BLOCK_TOKENS * BLOCK_TOKENS].view(-1, BLOCK_TOKENS):
        digest = hashlib.sha256(digest + block.numpy().astype("<u4").tobytes()).digest()
        keys.append(f"example-blocks/{digest.hex()}")
    return keys


keys = block_keys(prompt)
# Axes: layer, kv, block, token, head, dim.
blocks = reference[:, :, : len(keys) * BLOCK_TOKENS].unflatten(2, (len(keys), BLOCK_TOKENS))
results = sira.put_many(
    (
        (key, {"k": blocks[:, 0, i].contiguous(), "v": blocks[:, 1, i].contiguous()})
        for i, key in enumerate(keys)
    ),
    spec=spec,
)
assert not any(isinstance(result, sira_store.SiraError) for result in results)
print(f"put {len(results)} blocks of {BLOCK_TOKENS} tokens in one stream")

# %% [markdown]
# Another request comes, whose prompt begins with the same 400 tokens. How much of it is known? One round trip
# says so for all its blocks. What is there is read straight into the engine's pages, which it allocated when
# it started.

# %%
request = torch.cat((prompt[:, :400], torch.randint(VOCABULARY, (1, 100))), dim=1)
wanted = block_keys(request)
known = sira.exists_many(wanted, spec=spec).leading
assert known == 400 // BLOCK_TOKENS
print(f"of {len(wanted)} blocks of the new prompt, the first {known} are known")

# 64 pages of K, 64 of V.
pages = torch.zeros(2, 64, LAYERS, BLOCK_TOKENS, KV_HEADS, DIM, dtype=torch.bfloat16)
targets = [{"k": pages[0, i], "v": pages[1, i]} for i in range(known)]
got = sira.get_many(wanted[:known], out=targets, spec=spec)
# A block may have been evicted since it was looked up: use those before the first that is missing.
usable = next((i for i, block in enumerate(got) if block is None), known)

prefix = pages[:, :usable].permute(2, 0, 1, 3, 4, 5).flatten(2, 3)  # layer, kv, token, head, dim
tokens = usable * BLOCK_TOKENS
assert same_bits(prefix.contiguous(), reference[:, :, :tokens].contiguous())
rest = request[:, tokens:]
assert generate(rest, unpacked(prefix), 20) == generate(rest, unpacked(reference[:, :, :tokens]), 20)
print(f"read {usable} blocks into pages: bit for bit the same")
print(f"only {rest.shape[1]} of {request.shape[1]} tokens are computed")

# %% [markdown]
# A reader of another layout gets nothing, and is told so before it reads a byte:

# %%
other = sira_store.KvSpec.hnd(
    "example-tiny",
    dtype="bfloat16",
    block_tokens=BLOCK_TOKENS,
    kv_heads=KV_HEADS,
    head_dim=DIM,
    leading={"layer": LAYERS},
)
assert sira.exists_many(wanted[:known], spec=other).leading == 0
print("with another spec, no block is known")

# %%
sira.delete_prefix("example-blocks/")
sira.reset_namespace("example-blocks")
sira.delete("example-chats/42")
sira.close()
print("done: all of it deleted")
