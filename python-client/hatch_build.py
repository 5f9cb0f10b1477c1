"""Puts the server into the wheel. With SIRA_PROGRAM, the path of the built program, the wheel is for this
platform and installs that program as `sira`. Without it, the wheel is the client alone, for any platform.
"""

from __future__ import annotations

import os
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProgramHook(BuildHookInterface[Any]):
    """Called by hatchling for each wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the program and says for which platform the wheel is."""
        program = os.environ.get("SIRA_PROGRAM")
        if program is None or version == "editable":
            return
        if not os.access(program, os.X_OK):
            raise FileNotFoundError(f"SIRA_PROGRAM={program} is no program; `make build` makes bin/sira")
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        # Any Python 3 will do: the program is not an extension of it.
        build_data["tag"] = f"py3-none-{platform}"
        build_data["shared_scripts"][os.path.abspath(program)] = "sira"
