"""Parts of the Markdown documents: blocks, links, headings and commands."""

from __future__ import annotations

import re
from pathlib import Path

import click

from tests.support.command import subcommands
from tests.support.source import ROOT
from tkserver.cli.main import main

DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "deploy").glob("*.md")])

_FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"\btkserver ([a-z]+)(?: ([a-z-]+))?")


def text_of(name: str) -> str:
    """Return the text of a document in ``docs/``."""
    return (DOCS / name).read_text()


def blocks_of(text: str, *languages: str) -> list[tuple[str, str]]:
    """Return the language and the content of each block in these languages, or of all blocks."""
    return [(language, block) for language, block in _FENCED.findall(text) if not languages or language in languages]


def links_of(path: Path) -> list[str]:
    """Return the targets of all links in a document."""
    text = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", path.read_text()))
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)


def anchors_of(path: Path) -> set[str]:
    """Return the anchors that GitHub creates for the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_of(text: str) -> list[str]:
    """Return the blocks and the inline code of a text that can contain commands."""
    blocks = [block for _, block in blocks_of(text, "sh", "python", "text")]
    return blocks + re.findall(r"`(tkserver [^`]+)`", text)


def missing_in(code: str) -> set[str]:
    """Return the commands in a text that do not exist."""
    missing: set[str] = set()
    for name, subcommand in _COMMAND.findall(code):
        command = subcommands(main).get(name)
        if command is None:
            missing.add(name)
        elif isinstance(command, click.Group) and subcommand and subcommand not in command.commands:
            missing.add(subcommand)
    return missing
