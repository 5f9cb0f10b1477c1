"""Stores a real KV cache with plain pyarrow, kills the server, and reads everything back.

    python scripts/demo.py

Needs a built server (bin/sira, or the program that SIRA_BIN names) and pyarrow, numpy and ml_dtypes, and no
package of Sira's.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pyarrow as pa
from pyarrow import flight

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(os.environ.get("SIRA_BIN") or ROOT / "bin" / "sira")
SAMPLE = ROOT / "examples" / "sample" / "smollm2-kv.safetensors"
PREFIX = "demo/smollm2/"
LISTENING = "sira: listening on "
# The sample this often, one after the other along its tokens, is about 64 MiB.
REPEAT = 36
SECONDS = 10


class Tensor(NamedTuple):
    """What is put under a key."""

    key: str
    array: np.ndarray
    axes: list[str]
    attributes: dict[str, str]


def main() -> int:
    print(
        "The demo stores a real KV cache in a server of its own, kills that server, starts it again and\n"
        f"compares every bit. It takes about {SECONDS} seconds and leaves nothing behind.\n"
    )
    tensors = load()
    total = sum(tensor.array.nbytes for tensor in tensors)
    with tempfile.TemporaryDirectory(prefix="sira-demo-") as folder:
        data = Path(folder) / "data"
        server, url = start(data)
        try:
            step(f"started {PROGRAM.name} on {url}: memory, RocksDB, and an object store in a local folder")
            client = flight.connect(url)
            puts = {tensor.key: put(client, tensor) for tensor in tensors}
            step(f"put {len(tensors)} tensors, {total / 1e6:.1f} MB, with pyarrow's Flight client")
            entries = listed(client)
            step(f"listed {len(entries)} tensors under {PREFIX}")
            client.close()

            server.send_signal(signal.SIGKILL)
            server.wait()
            step(f"killed process {server.pid} with SIGKILL")
            server, url = start(data)
            client = flight.connect(url)
            step(f"started it again over the same folder: process {server.pid}")

            gets, wrong = {}, []
            for tensor in tensors:
                gets[tensor.key], problem = check(client, tensor)
                wrong += problem
            after = listed(client)
            if set(after) != set(entries):
                wrong.append(
                    f"listed before the kill and after it differ: {sorted(set(after) ^ set(entries))}"
                )
            client.close()
            if not wrong:
                step(
                    f"read {len(tensors)} tensors back: every bit, shape, axis name and attribute is the same"
                )

            server.send_signal(signal.SIGTERM)
            if status := server.wait(timeout=60):
                wrong.append(f"the server ended with status {status} after SIGTERM")
            else:
                step("stopped the server with SIGTERM; it drained and ended with status 0")
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    if wrong:
        print("\nFAILED", *wrong, sep="\n  ", file=sys.stderr)
        return 1
    print()
    table(tensors, entries, puts, gets)
    return 0


def step(text: str) -> None:
    print(f"  {text}", flush=True)


def load() -> list[Tensor]:
    """The sample whole, by layers, and repeated. A safetensors file is a JSON header and bytes."""
    file = SAMPLE.read_bytes()
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    facts, entry = header["__metadata__"], header["kv"]
    start, stop = (end + offset for offset in entry["data_offsets"])
    cache = np.frombuffer(file[start:stop], ml_dtypes.bfloat16).reshape(entry["shape"])
    axes = facts.pop("axes").split(",")
    repeated = np.ascontiguousarray(np.tile(cache, (1, 1, REPEAT, 1, 1)))
    return [
        Tensor(f"{PREFIX}whole", cache, axes, facts),
        *(
            Tensor(f"{PREFIX}layer={number:02}", layer, axes[1:], {**facts, "layer": str(number)})
            for number, layer in enumerate(cache)
        ),
        Tensor(f"{PREFIX}repeated", repeated, axes, {**facts, "repeated": str(REPEAT)}),
    ]


def start(data: Path) -> tuple[subprocess.Popen[str], str]:
    """Starts the server and waits until it listens."""
    if not PROGRAM.exists():
        sys.exit(f"{PROGRAM} is not there: run `make build` first")
    command = [str(PROGRAM), "serve", "--listen", "127.0.0.1:0", "--data", str(data)]
    with data.with_suffix(".log").open("a") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith(LISTENING):
            # Whatever it says later must not fill the pipe.
            threading.Thread(target=server.stdout.read, daemon=True).start()
            return server, line.removeprefix(LISTENING).strip()
    sys.exit(f"{' '.join(command)} did not start:\n{data.with_suffix('.log').read_text()}")


def put(client: flight.FlightClient, tensor: Tensor) -> float:
    """Stores a tensor; gives the seconds it took."""
    array, inner = tensor.array, tensor.array.shape[1:]
    # Arrow has no bfloat16: its bits travel as uint16, and the metadata says what they are.
    kind = pa.fixed_shape_tensor(pa.uint16(), inner, dim_names=tensor.axes[1:])
    schema = pa.schema(
        [pa.field("tensor", kind)],
        metadata={
            "sira.shape": json.dumps(array.shape),
            "sira.dtype": "bfloat16",
            "sira.axes": json.dumps(tensor.axes),
            **{f"sira.attr.{name}": text for name, text in tensor.attributes.items()},
        },
    )

    def batches() -> Iterator[pa.RecordBatch]:
        # Messages of up to 4 MiB over the array's own memory.
        rows = max(1, (4 << 20) // (array[0].nbytes))
        for first in range(0, len(array), rows):
            flat = pa.array(array[first : first + rows].reshape(-1).view(np.uint16))
            storage = pa.FixedSizeListArray.from_arrays(flat, math.prod(inner))
            yield pa.RecordBatch.from_arrays([pa.ExtensionArray.from_storage(kind, storage)], schema=schema)

    began = time.perf_counter()
    writer, answers = client.do_put(flight.FlightDescriptor.for_path(tensor.key), schema)
    with writer:
        for batch in batches():
            writer.write_batch(batch)
        writer.done_writing()
        # The answer comes when the tensor is committed; before it, nothing of it is visible.
        answer = json.loads(answers.read().to_pybytes())
    seconds = time.perf_counter() - began
    assert answer["key"] == tensor.key
    return seconds


def listed(client: flight.FlightClient) -> dict[str, dict[str, Any]]:
    """What the server knows of each tensor, by key."""
    criteria = json.dumps({"v": 1, "prefix": PREFIX}).encode()
    entries = [json.loads(info.app_metadata) for info in client.list_flights(criteria)]
    return {entry["key"]: entry for entry in entries}


def check(client: flight.FlightClient, tensor: Tensor) -> tuple[float, list[str]]:
    """Reads a tensor back; gives the seconds it took, and what is not as it was put."""
    array = tensor.array
    info = client.get_flight_info(flight.FlightDescriptor.for_path(tensor.key))
    entry = json.loads(info.app_metadata)
    read = np.empty(array.size, np.uint16)
    filled = 0
    began = time.perf_counter()
    for chunk in client.do_get(info.endpoints[0].ticket):
        values = chunk.data.column(0).storage.flatten().to_numpy()
        read[filled : filled + values.size] = values
        filled += values.size
    seconds = time.perf_counter() - began
    facts = [
        ("values", filled, array.size),
        ("bits", np.array_equal(read, array.reshape(-1).view(np.uint16)), True),
        ("shape", tuple(entry["shape"]), array.shape),
        ("dtype", entry["dtype"], "bfloat16"),
        ("axes", entry["axes"], tensor.axes),
        ("attributes", entry["attributes"], tensor.attributes),
    ]
    return seconds, [
        f"{tensor.key}: {name}: {found}, not {put}" for name, found, put in facts if found != put
    ]


def table(
    tensors: list[Tensor],
    entries: dict[str, dict[str, Any]],
    puts: dict[str, float],
    gets: dict[str, float],
) -> None:
    """One row for the whole, one for all layers, one for the repeated."""
    layers = [tensor for tensor in tensors if "layer=" in tensor.key]
    rows = [("tensor", "shape", "dtype", "lies in", "raw MB", "stored MB", "put GB/s", "get GB/s")]
    for name, group in [
        (tensors[0].key, tensors[:1]),
        (f"{layers[0].key} to {len(layers) - 1}", layers),
        (tensors[-1].key, tensors[-1:]),
    ]:
        keys = [tensor.key for tensor in group]
        nbytes = sum(tensor.array.nbytes for tensor in group)
        shape = "x".join(map(str, group[0].array.shape))
        places = {place for key in keys for place in [entries[key]["backend"], *entries[key]["tiers"]]}
        rows.append(
            (
                name,
                f"{len(group)} of {shape}" if len(group) > 1 else shape,
                entries[keys[0]]["dtype"],
                ", ".join(sorted(places)),
                f"{nbytes / 1e6:.1f}",
                f"{sum(entries[key]['stored_bytes'] for key in keys) / 1e6:.1f}",
                f"{nbytes / sum(puts[key] for key in keys) / 1e9:.2f}",
                f"{nbytes / sum(gets[key] for key in keys) / 1e9:.2f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        cells = zip(row, widths, strict=True)
        print(
            "  ".join(
                text.rjust(width) if n > 3 else text.ljust(width) for n, (text, width) in enumerate(cells)
            )
        )
        if i == 0:
            print("  ".join("-" * width for width in widths))
    print(
        "\nput: until acknowledged, at the default level, which survives a kill.\n"
        "get: after the restart, from disk. Both by one pyarrow client over loopback.\n"
        f"The last tensor is the first one {REPEAT} times over, along its tokens: real bits, but a codec\n"
        "that looks far back may find them again."
    )


if __name__ == "__main__":
    sys.exit(main())
