"""A process that lends Mooncake memory: `mooncake_owner.py MASTER BYTES`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from compare.peers.mooncake_peer import open_store

if __name__ == "__main__":
    store = open_store(sys.argv[1], int(sys.argv[2]))
    # Mooncake writes its log to standard output too: the line must be one of its own.
    print("\nlends memory", flush=True)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    store.close()
