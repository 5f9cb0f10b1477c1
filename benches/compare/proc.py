"""What the kernel counts of processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Used:
    """CPU seconds and page faults of a server, ended threads included."""

    user: float = 0.0
    kernel: float = 0.0
    minor_faults: int = 0
    major_faults: int = 0

    def __add__(self, other: Used) -> Used:
        return Used(
            self.user + other.user,
            self.kernel + other.kernel,
            self.minor_faults + other.minor_faults,
            self.major_faults + other.major_faults,
        )

    def __sub__(self, other: Used) -> Used:
        return Used(
            self.user - other.user,
            self.kernel - other.kernel,
            self.minor_faults - other.minor_faults,
            self.major_faults - other.major_faults,
        )


def available() -> int:
    """Bytes of memory that the machine could give to a new process."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def busy() -> float:
    """CPU seconds that all processes of the machine have used, and those that its host gave to others."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _idle, _waiting, irq, soft_irq, stolen = map(int, fields)
    return (user + nice + system + irq + soft_irq + stolen) * TICK


def used(pids: list[int]) -> Used:
    """What these processes have used since they started."""
    total = Used()
    for pid in pids:
        # The name, in brackets, may hold blanks.
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        minor, major, user, kernel = (int(fields[at]) for at in (7, 9, 11, 12))
        total = total + Used(user * TICK, kernel * TICK, minor, major)
    return total
