"""Texts that every machine with this environment has, by name, and those of files.

source:MODULE       the source of a module of Python or of an installed package
topics:NAME         a chapter of Python's reference manual, as `help()` shows it
tokens:FILE:NAME    token ids: FILE is JSON, {NAME: {"tokens": [...]}}
FILE                any text file
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

PREFIX = 1536
"""Tokens whose keys and values are stored."""
LENGTH = 2048
"""Tokens of a document; those after the prefix read it."""

EVALUATION = ("topics:compound", "source:argparse")
"""Prose and code."""
CALIBRATION = (
    *("topics:specialnames", "topics:typesmapping", "topics:formatstrings", "topics:debugger"),
    *("source:ast", "source:tarfile", "source:inspect", "source:_pydecimal"),
    *("source:numpy.lib._npyio_impl", "source:matplotlib.axes._axes"),
)
"""As many of each kind, none of them read in the evaluation."""


class DocumentError(Exception):
    """There is no such document, or too little of it."""


def tokens(name: str, encode: Callable[[str], list[int]], length: int = LENGTH) -> list[int]:
    """The first `length` tokens of a document."""
    kind, _, rest = name.partition(":")
    if kind == "tokens":
        file, _, entry = rest.rpartition(":")
        found: list[int] = known(name, json.loads(Path(file).read_text()), entry)["tokens"]
    else:
        # Tokens are 3 to 4 characters of such texts; a long file need not be read to its end.
        found = encode(text(name)[: length * 16])
    if len(found) < length:
        raise DocumentError(f"{name}: {len(found)} tokens, {length} are needed")
    return found[:length]


def text(name: str) -> str:
    """What the document says."""
    kind, _, rest = name.partition(":")
    if kind == "source":
        spec = importlib.util.find_spec(rest)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise DocumentError(f"{name}: no module with a source of this name")
        return Path(spec.origin).read_text()
    if kind == "topics":
        from pydoc_data import topics

        return str(known(name, topics.topics, rest))
    try:
        return Path(name).read_text(errors="replace")
    except OSError as error:
        raise DocumentError(f"{name}: {error.strerror}") from None


def known(name: str, entries: dict[str, Any], entry: str) -> Any:
    if entry not in entries:
        raise DocumentError(f"{name}: there is {', '.join(sorted(entries))}")
    return entries[entry]


def stem(name: str) -> str:
    """A name for files."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name.rpartition("/")[2]).strip("-")
