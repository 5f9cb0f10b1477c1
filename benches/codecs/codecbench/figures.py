"""Figures as tables, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compare.stats import ratios, spread
from compare.tables import short, table

BASE = "split+zstd-1"
"""The compressor that speeds are against."""


def text(document: dict[str, Any]) -> str:
    """Everything, in Markdown."""
    parts = [f"{document['machine']['cpus']}, Linux {document['machine']['kernel']}. GB are 10^9 bytes."]
    for name, found in document.get("speed", {}).items():
        parts += [f"## Lossless: {name}", *lossless(found)]
    if "damage" in document:
        parts += [*damage(document["damage"])]
    return "\n\n".join(parts) + "\n"


def lossless(found: dict[str, Any]) -> list[str]:
    """Ratio, speeds and where the codec pays."""
    heads = [
        "codec",
        "ratio",
        "bits/value",
        "encode GB/s",
        f"of {BASE}'s",
        "decode GB/s",
        f"of {BASE}'s",
        "put pays below",
        "get pays below",
    ]
    width = {"BF16": 16, "F16": 16, "F32": 32}[found["dtype"]]
    base = next((codec for codec in found["codecs"] if codec["name"] == BASE and not codec["error"]), None)
    rows, notes = [], []
    for codec in found["codecs"]:
        if codec["error"]:
            notes.append(f"**{codec['name']} did not take part**: {codec['error']}")
            continue
        if codec["fresh"]:
            notes.append(f"{codec['name']} {codec['fresh']}.")
        ratio = found["bytes"] / codec["bytes"]
        row = [codec["name"], f"{ratio:.3f}", f"{width / ratio:.2f}"]
        for side in ("encode_gb_s", "decode_gb_s"):
            row += [rates(codec[side]), times(codec[side], base[side] if base else [])]
        for side in ("encode_gb_s", "decode_gb_s"):
            row.append(link(pays_below(ratio, spread(codec[side]).median)))
        rows.append(row)
    what = (
        f"{found['bytes'] / 1e6:.1f} MB of {found['dtype']}, one core, {found['rounds']} rounds, interleaved"
    )
    what += ": medians (quartiles), ratios round by round."
    return [what, table(heads, rows), *notes]


def pays_below(ratio: float, speed: float, cores: int = 1) -> float:
    """The link speed in Gbit/s below which a put of encoded bytes takes less time than one of raw bytes (with
    the speed of encoding), or a get (of decoding), where one follows the other; 0: never.

    Raw, a byte takes 1/link; encoded, 1/(ratio * link) + 1/(cores * speed).
    """
    return 8 * cores * speed * max(1 - 1 / ratio, 0)


def damage(found: dict[str, Any]) -> list[str]:
    """What the lossy codecs do, document by document."""
    heads = [
        "codec",
        "ratio",
        "bits/value",
        "KL",
        "KL p99",
        "top-1",
        "perplexity",
        "recall NLL",
        "error K",
        "error V",
    ]
    parts = [f"**{name} did not take part**: {why}" for name, why in found["missing"].items()]
    for name in dict.fromkeys(entry["document"] for entry in found["results"]):
        here = [entry for entry in found["results"] if entry["document"] == name]
        rows = [
            [
                entry["codec"],
                f"{entry['ratio']:.2f}",
                f"{entry['bits_per_value']:.2f}",
                f"{entry['kl']:.5f}",
                f"{entry['kl_p99']:.4f}",
                f"{entry['top1']:.3f}",
                f"{entry['perplexity_change']:+.1%} ({entry['perplexity_error']:.1%})",
                f"{entry['recall']:.3f}",
                f"{entry['error_k']:.4f}",
                f"{entry['error_v']:.4f}",
            ]
            for entry in sorted(here, key=lambda entry: float(entry["ratio"]))
        ]
        parts.append(f"## Lossy: {name}")
        parts.append(
            f"{found['model']}, {found['prefix']} tokens stored; "
            f"recall NLL of the original: {here[0]['recall_original']:.3f}."
        )
        parts.append(table(heads, rows))
    for name, size in found["calibration_bytes"].items():
        parts.append(f"Calibration of {name}: {size / 1e6:.1f} MB, of {len(found['calibration'])} documents.")
    return parts


def rates(values: Sequence[float]) -> str:
    found = spread(values)
    return f"{short(found.median)} ({short(found.low)}-{short(found.high)})"


def times(ours: Sequence[float], theirs: Sequence[float]) -> str:
    found = ratios(ours, theirs)
    return f"{found.median:.2f}x ({found.low:.2f}-{found.high:.2f})" if found else ""


def link(speed: float) -> str:
    return f"{speed:.1f} Gbit/s" if speed else "never"
