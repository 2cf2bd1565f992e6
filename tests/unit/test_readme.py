"""The README's tables are the code's. `THAW_WRITE_README=1` writes them anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from shim import cli, config
from shim.annotations import TABLE as ANNOTATIONS
from shim.cli import VERBS, exits
from shim.gpu.spec import ENVIRONMENT

README = Path(__file__).resolve().parents[2] / "README.md"


def annotation_table() -> str:
    rows = [f"| `{r.key}` | {r.type} | {r.default or '-'} | {r.sentence} |" for r in ANNOTATIONS]
    return "\n".join(["| annotation | value | default | meaning |", "|---|---|---|---|", *rows])


def configuration_table() -> str:
    rows = [f"| `{k.name}` | `{shown(k.default)}` | {k.sentence} |" for k in config.TABLE]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def environment_table() -> str:
    rows = [f"| `{name}` | `{value}` | {reason} |" for name, value, reason in ENVIRONMENT]
    return "\n".join(["| variable | value | why |", "|---|---|---|", *rows])


def shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value!r}".replace("'", '"')


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("annotations", annotation_table()),
        ("configuration", configuration_table()),
        ("environment", environment_table()),
        ("verbs", cli.as_markdown()),
        ("statuses", exits.as_markdown()),
    ],
)
def test_table(name: str, table: str) -> None:
    text = README.read_text()
    section = re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)
    if os.environ.get("THAW_WRITE_README"):
        text = section.sub(lambda m: f"{m[1]}{table}\n{m[3]}", text)
        README.write_text(text)
    found = section.search(text)
    assert found is not None
    assert found[2].strip() == table


def test_every_verb_is_named() -> None:
    text = README.read_text()
    assert [verb for verb in VERBS if f"thaw {verb}" not in text] == []


def test_links_lead_somewhere() -> None:
    """To a heading, as GitHub makes anchors of them, or to a file of the repository."""
    text = README.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        there = link[1:] in anchors if link.startswith("#") else (README.parent / link).exists()
        assert there or "://" in link, link
