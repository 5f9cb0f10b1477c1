"""Codecs side by side: how small, how fast, and what the lossy ones do to a model.

The folder above this one is no package: it would hide Python's own `codecs`."""
