"""Jobs of the server: migrations and checks, which are started, watched and stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ._base import Base

_LOOK = 0.2
"""Seconds between two looks at a job that is waited for."""


@dataclass(frozen=True)
class Finding:
    """Something that a check found not to be as its record says."""

    key: str
    """The tensor; empty where no record names what was found."""
    backend: str
    problem: Literal["missing", "damaged", "lacking", "orphan", "unreachable"] | str
    detail: str
    """The same in words."""
    mended: bool


@dataclass(frozen=True)
class Job:
    """What a job of the server does, and how far it is."""

    id: str
    kind: Literal["migrate", "check"] | str
    state: Literal["running", "stopped", "failed", "done"] | str
    """`stopped` and `failed` ones go on where they were when they are started again with the same words."""
    keys: int
    """Tensors moved or, of a check, looked at."""
    keys_total: int
    """Tensors that it is for, as counted when it began."""
    bytes: int
    """Stored bytes of those that are done."""
    bytes_total: int
    resumed: int
    """How often it went on after a stop, a failure or a restart of the server."""
    changed: int
    """Tensors that changed while they were moved: they are where their writer put them."""
    inline: int
    """Tensors that lie in their records, which do not move."""
    failed: int
    """Tensors that could not be moved, and stay where they were."""
    failures: Mapping[str, str]
    """The first of them, and why: a stable code, a colon, the reason."""
    found: int
    """Of a check: what is not as its record says."""
    mended: int
    findings: tuple[Finding, ...]
    """The first of what was found."""
    error: str | None
    """Why it failed: a stable code, a colon, the reason."""

    @classmethod
    def from_json(cls, job: Mapping[str, Any]) -> Job:
        """From an answer of the server. Fields of a newer one are left out."""
        findings = (
            Finding(found["key"], found["backend"], found["problem"], found["detail"], found["mended"])
            for found in job.get("findings", ())
        )
        return cls(
            id=job["id"],
            kind=job["kind"],
            state=job["state"],
            keys=job["keys"],
            keys_total=job["keys_total"],
            bytes=job["bytes"],
            bytes_total=job["bytes_total"],
            resumed=job.get("resumed", 0),
            changed=job.get("changed", 0),
            inline=job.get("inline", 0),
            failed=job.get("failed", 0),
            failures={failed["key"]: failed["error"] for failed in job.get("failures", ())},
            found=job.get("found", 0),
            mended=job.get("mended", 0),
            findings=tuple(findings),
            error=job.get("error"),
        )


class Jobs(Base):
    """Actions on jobs."""

    def migrate(
        self,
        source: str,
        target: str,
        pattern: str,
        *,
        dry_run: bool = False,
        wait: bool = True,
        progress: Callable[[Job], object] | None = None,
    ) -> Job:
        """Moves the tensors whose keys match `pattern` from one backend to another; they are read and
        written meanwhile as always. In the glob, `*` matches `/` too. What has moved was read back from the
        target, and its checksums compared, before it left the source. With `dry_run`, what would move is only
        counted.

        A job of the same words that was stopped or failed goes on where it was, and a running one goes on
        after a restart of the server. `wait`: for its end, looking at it now and then, with what `progress`
        is called; without, the job as it was started. An exception while waiting (Ctrl-C) leaves it running:
        see `stop_job`.
        """
        started = Job.from_json(
            self._action("migrate", source=source, target=target, pattern=pattern, dry_run=dry_run)
        )
        return self.wait_job(started.id, progress=progress) if wait else started

    def check(
        self,
        prefix: str = "",
        *,
        mend: bool = False,
        wait: bool = True,
        progress: Callable[[Job], object] | None = None,
    ) -> Job:
        """Reads every copy of the tensors whose keys start with `prefix`, and holds it against its record.
        With `mend`, what is damaged or missing is written again from a copy that is good. Without a prefix,
        chunks that no record names are looked for as well, and removed by `mend`. `wait` and `progress` as of
        `migrate`."""
        started = Job.from_json(self._action("check", prefix=prefix, mend=mend))
        return self.wait_job(started.id, progress=progress) if wait else started

    def jobs(self) -> list[Job]:
        """The jobs that run, and the last ones that ended, in the order in which they were started."""
        return [Job.from_json(job) for job in self._action("jobs")["jobs"]]

    def job(self, id: str) -> Job:
        """How far a job is. Raises NotFoundError where there is none of this id."""
        return Job.from_json(self._action("job", id=id))

    def stop_job(self, id: str) -> Job:
        """Stops a job once what it has begun is done. Of one that has ended, how it ended."""
        return Job.from_json(self._action("job_stop", id=id))

    def wait_job(self, id: str, *, progress: Callable[[Job], object] | None = None) -> Job:
        """Waits until a job has ended. `progress` is called with it now and then, and in the end."""
        while True:
            job = self.job(id)
            if progress is not None:
                progress(job)
            if job.state != "running":
                return job
            time.sleep(_LOOK)
