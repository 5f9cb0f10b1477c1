"""The packages lie beside their tests, and nobody installs them."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHES = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(BENCHES / "codecs"), str(BENCHES)]
