"""Prints the licences of everything that is compiled into the program, each text once, from the sources that
cargo downloaded. They travel with the program in the wheel and in the image. An argument names another
package of the workspace.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("license", "licence", "copying", "copyright", "notice", "unlicense")
# C and C++ sources lie in folders of their crates, such as librocksdb-sys/rocksdb.
DEPTH = 4
# Not compiled in.
UNUSED = {"contrib", "examples", "programs", "tests", "doc", "docs"}


def metadata() -> dict[str, Any]:
    """What cargo knows of the workspace on this platform."""
    host = subprocess.run(["rustc", "--print", "host-tuple"], check=True, capture_output=True, text=True)
    command = [
        "cargo",
        "metadata",
        "--format-version=1",
        "--locked",
        f"--filter-platform={host.stdout.strip()}",
    ]
    output = subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout
    found: dict[str, Any] = json.loads(output)
    return found


def linked(cargo: dict[str, Any], root: str) -> list[dict[str, Any]]:
    """The packages from outside that `root` is made of; not those that only build or test it."""
    packages = {package["id"]: package for package in cargo["packages"]}
    nodes = {node["id"]: node for node in cargo["resolve"]["nodes"]}
    todo = [package["id"] for package in cargo["packages"] if package["name"] == root]
    seen = set(todo)
    while todo:
        for dependency in nodes[todo.pop()]["deps"]:
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                todo.append(dependency["pkg"])
    outside = [packages[id] for id in seen if packages[id]["source"] is not None]
    return sorted(outside, key=lambda package: (package["name"], package["version"]))


def texts(folder: Path) -> list[Path]:
    """The licence files in a package's folder."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if len(path.relative_to(folder).parts) <= DEPTH
        and not UNUSED.intersection(path.relative_to(folder).parts)
        and path.name.lower().startswith(NAMES)
        and path.suffix not in (".rs", ".py", ".sh", ".h", ".c")
        and path.is_file()
    ]
    # RocksDB and zstd may be used under their LICENSE or under the GPL in COPYING: Sira takes the former.
    free = {path.parent for path in files if path.name.lower().startswith(("license", "licence"))}
    return [path for path in files if not (path.name.lower() == "copying" and path.parent in free)]


def main() -> None:
    """Writes the list, then the texts."""
    users: dict[str, list[str]] = defaultdict(list)
    root = sys.argv[1] if len(sys.argv) > 1 else "sira"
    print(f"`{root}` contains these packages, each under the licence named here; the texts follow.\n")
    for package in linked(metadata(), root):
        name = f"{package['name']} {package['version']}"
        print(f"{name}: {package['license'] or 'see below'}")
        folder = Path(package["manifest_path"]).parent
        for path in texts(folder):
            text = path.read_text(errors="replace").strip()
            users[text].append(f"{name}, {path.relative_to(folder).as_posix()}")
    for text, names in users.items():
        print(f"\n{'-' * 100}\n" + "\n".join(names) + f"\n\n{text}")


if __name__ == "__main__":
    main()
