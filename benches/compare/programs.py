"""The programs that are measured and measured with."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def sira() -> Path:
    """The server: SIRA_BIN, or what `make build` made."""
    return Path(os.environ.get("SIRA_BIN") or ROOT / "bin" / "sira")


def wirebench() -> Path:
    """Responders and clients in Rust: WIREBENCH, or what scripts/compare.sh built."""
    return Path(os.environ.get("WIREBENCH") or ROOT / "bin" / "wirebench")
