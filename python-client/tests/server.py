"""A real server as a child process, for tests that start, stop and kill it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]
LISTENING = "sira: listening on "
ADMIN = "sira: admin on "
SOCKET = "sira: socket on "


def program() -> Path:
    """The server under test: the environment's SIRA_BIN, or the repository's build."""
    return Path(os.environ.get("SIRA_BIN") or REPOSITORY / "bin" / "sira")


class Server:
    """`sira serve` over a data folder. `config` is the text of its configuration file, `flags` are further
    ones, of which a `--listen` wins over the one given here."""

    def __init__(self, data: Path, config: str = "", flags: Sequence[str] = ()) -> None:
        self.data = data
        self.config = config
        self.flags = list(flags)
        self.url = ""
        self.admin = ""
        self.socket = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The running server's process id."""
        return self._running().pid

    @property
    def log(self) -> Path:
        """What all runs over this folder wrote to their standard error."""
        return self.data.with_name(f"{self.data.name}.log")

    def start(self) -> Server:
        """Starts it and waits until it listens."""
        if self._process is not None:
            raise RuntimeError("the server runs already")
        # The system picks a free port, which the server then says.
        command = [str(program()), "serve", "--data", str(self.data), *self.flags]
        if "--listen" not in self.flags:
            command += ["--listen", "127.0.0.1:0"]
        if self.config:
            config = self.data.with_name(f"{self.data.name}.toml")
            config.write_text(self.config)
            command += ["--config", str(config)]
        with self.log.open("a") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(ADMIN):
                self.admin = line.removeprefix(ADMIN).strip()
            if line.startswith(SOCKET):
                self.socket = line.removeprefix(SOCKET).strip()
            if line.startswith(LISTENING):
                self.url = line.removeprefix(LISTENING).strip()
                self._process = process
                # Nobody else reads the pipe, and a full one would stop the server.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                return self
        process.stdout.close()
        raise RuntimeError(
            f"{' '.join(command)}: exit status {process.wait()}\n{self.log.read_text()[-4000:]}"
        )

    def kill(self) -> None:
        """SIGKILL: nothing is written, nobody is told."""
        self._end(signal.SIGKILL)

    def suspend(self) -> None:
        """SIGSTOP, and waits until every thread has stopped: the signal alone is only on its way."""
        os.kill(self.pid, signal.SIGSTOP)

        def state(task: Path) -> str:
            return (task / "stat").read_text().rsplit(")", 1)[1].split()[0]

        while any(state(task) != "T" for task in Path(f"/proc/{self.pid}/task").iterdir()):
            time.sleep(0.001)

    def terminate(self) -> int:
        """SIGTERM; the exit status once it has drained."""
        return self._end(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status of a server that somebody else told to end."""
        status = self._running().wait(timeout=120)
        self._process = None
        return status

    def restart(self) -> Server:
        """Starts it again over the same folder. The port is another one."""
        return self.start()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self._running(), None
        process.send_signal(how)
        try:
            # Far longer than a drain ever takes: this only keeps a hanging server from hanging the tests.
            return process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()
