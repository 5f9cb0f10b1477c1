"""Certificates for tests, made with the openssl that every machine has."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority of its own, in a folder."""

    folder: Path
    name: str

    @property
    def cert(self) -> Path:
        """Its certificate: who trusts it trusts what it signed."""
        return self.folder / f"{self.name}.pem"

    @property
    def key(self) -> Path:
        return self.folder / f"{self.name}.key"

    def sign(self, name: str, days: int = 1) -> tuple[Path, Path]:
        """A certificate for this machine, as server or as client, and its key."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        _openssl(
            *_REQUEST, "-CA", self.cert, "-CAkey", self.key, "-days", days, *_NAMES, cert, "-keyout", key
        )
        return cert, key


def authority(folder: Path, name: str = "ca") -> Authority:
    made = Authority(folder, name)
    _openssl(*_REQUEST, "-days", 1, "-subj", f"/CN={name}", "-out", made.cert, "-keyout", made.key)
    return made


_REQUEST = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
_NAMES = (
    *("-subj", "/CN=sira", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
    *("-addext", "basicConstraints=critical,CA:FALSE", "-out"),
)


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
