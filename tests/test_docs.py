"""The documents for people: their links lead to what is there, and their code blocks can be read."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]

LINK = re.compile(r"\[[^]]*\]\(([^)\s]*)\)")
FENCE = re.compile(r" *```(\S*)$")


def parts(text: str) -> Iterator[tuple[str, list[str]]]:
    """The prose and the code blocks of a document, in order: `prose` or `code:<language>`, and the lines.

    A block that is not closed is `open`.
    """
    kind, lines = "prose", list[str]()
    for line in text.splitlines():
        if not (fence := FENCE.match(line)):
            lines.append(line)
            continue
        yield kind, lines
        kind, lines = (f"code:{fence[1]}" if kind == "prose" else "prose"), []
    yield kind if kind == "prose" else "open", lines


def prose(text: str) -> str:
    """A document without code."""
    return re.sub(r"`[^`\n]*`", "", "\n".join(line for kind, lines in parts(text) if kind == "prose" for line in lines))


def anchors(text: str) -> set[str]:
    """The fragments that lead to the headings of a document, as forges make them."""
    headings = [line for kind, lines in parts(text) if kind == "prose" for line in lines if re.match(r"#+ ", line)]
    found = [re.sub(r"[^\w\- ]", "", each.lstrip("#").strip().lower()).replace(" ", "-") for each in headings]
    return {f"{each}-{before}" if (before := found[:at].count(each)) else each for at, each in enumerate(found)}


def link_faults(path: Path, text: str) -> list[str]:
    """Relative links to a file or a heading that is not there."""
    faults = []
    for link in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, heading = link.partition("#")
        file = path.parent / target if target else path
        if target and not file.exists():
            faults.append(f"{path.name}: {link} leads to no file")
        elif heading and heading not in anchors(file.read_text() if target else text):
            faults.append(f"{path.name}: {link} leads to no heading")
    return faults


def read_block(language: str, block: str) -> str:
    """What keeps a block from being what it says it is; nothing when it is, or in a language that is not checked."""
    try:
        if language == "yaml":
            list(yaml.safe_load_all(block))
        elif language == "json":
            json.loads(block)
        elif language in ("sh", "bash"):
            done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
            return done.stderr.strip()
        elif language == "python":
            compile(block, "block", "exec")
    except (ValueError, SyntaxError, yaml.YAMLError) as error:
        return str(error)
    return ""


def block_faults(name: str, text: str) -> list[str]:
    """Code blocks that are not closed, or cannot be read."""
    faults = []
    for kind, lines in parts(text):
        language = kind.partition(":")[2]
        if kind == "open":
            faults.append(f"{name}: a block is not closed")
        elif problem := read_block(language, "\n".join(lines) + "\n"):
            faults.append(f"{name}: a block is no {language}: {problem}")
    return faults


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_are_there(path: Path) -> None:
    """Each relative link of a document names a file of the repository, and a heading in it where it names one."""
    assert link_faults(path, path.read_text()) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_are_closed_and_can_be_read(path: Path) -> None:
    """Each block has an end, and YAML, JSON, shell and Python are just that."""
    assert block_faults(path.name, path.read_text()) == []


def test_a_link_to_nothing_is_found() -> None:
    """A missing file and a missing heading, here or elsewhere, are faults; addresses and code are not looked at."""
    text = """# One thing: `a-b`, twice
## Same
## Same
[a](x.md) [b](none.md) [c](#one-thing-a-b-twice) [d](#one) [e](#same-1) [f](#same-2) [g](README.md#nothing)
[h](https://example.org/x#y) `[a-z](?:x)`
```text
## Block
[i](none2.md)
```
[j](#block)
"""
    assert [fault.split()[1] for fault in link_faults(ROOT / "x.md", text)] == [
        *("x.md", "none.md", "#one", "#same-2", "README.md#nothing", "#block"),
    ]


@pytest.mark.parametrize(
    "block",
    [
        "```yaml\na: [\n```",
        "```yaml\na: b: c\n```",
        "```json\n{'a': 1}\n```",
        "```sh\nif true; then\n```",
        "```python\ndef a(:\n```",
        "```text\nnot closed",
        "- item\n\n  ```json\n  {,}\n  ```",
    ],
)
def test_a_block_that_cannot_be_read_is_found(block: str) -> None:
    """One planted fault is found, and its mended twin is fine."""
    assert len(block_faults("x.md", f"# Title\n\n{block}\n")) == 1
    assert block_faults("x.md", "```yaml\na: [1]\n---\nb: 2\n```\n\n```sh\nmake\n```\n") == []
