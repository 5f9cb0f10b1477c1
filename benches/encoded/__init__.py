"""Sira with encoded chunks beside itself without."""
