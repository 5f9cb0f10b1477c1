"""docs/operations.md says of every error code what to do, and of nothing that is none."""

from __future__ import annotations

import re
from pathlib import Path

from server import REPOSITORY


def text(path: str) -> str:
    return (REPOSITORY / path).read_text()


def rows(path: str) -> dict[str, list[str]]:
    """The rows of tables that begin with a code; each its other cells."""
    found = re.findall(r"^\| `(SIRA_[A-Z_]+)` \|(.*)\|$", text(path), re.MULTILINE)
    assert len({code for code, _ in found}) == len(found), f"{path} has a code twice"
    return {code: [cell.strip() for cell in rest.split("|")] for code, rest in found}


def test_every_code_has_a_row() -> None:
    program = set(re.findall(r'"(SIRA_[A-Z_]+)"', text("crates/wire/src/error.rs")))
    wire, page = rows("docs/wire.md"), rows("docs/operations.md")
    assert len(program) >= 19  # the pattern still finds them
    assert set(wire) == program
    assert set(page) == program


def test_every_row_says_what_it_means_and_what_to_do() -> None:
    for code, cells in rows("docs/operations.md").items():
        means, *actions = cells
        assert means, code
        assert len(actions) == 2, code
        assert any(actions), code


def test_links_lead_somewhere() -> None:
    page = REPOSITORY / "docs" / "operations.md"
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target


def anchors(file: Path) -> set[str]:
    """Where links into a page lead, as Markdown's headings are named."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
