"""Sira beside its peers, in one run."""
