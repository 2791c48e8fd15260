"""Documents name what exists: paths, links, modules, names in the code, commands, options, exit codes.

Checked are README.md, docs/*.md and the two package docstrings that tell a reader where to begin.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main

import hostagent
import target
from hostagent.cli.app import app
from target.control.wire_error import error_to_wire
from target.errors import ConflictError, IntegrityError, OperatorError, PeerError, ReplctlError

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
PACKAGES = (target, hostagent)

FENCE = re.compile(r"^```.*?$(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
PATH = re.compile(r"(?:target|hostagent|scripts|tests|docs|vagrant)/[\w./*-]*")
DOTTED = re.compile(r"[a-z_]\w*(?:\.\w+)+")
SNAKE = re.compile(r"[a-z]+(?:_[a-z0-9]+)+")
SITE = re.compile(r"(?:replctl|a|b)\b(?:\s+--(?:lab|site|config|socket)\s+\S+)*\s*")
FILE_SUFFIXES = (".toml", ".json", ".md", ".img", ".sh", ".journal", ".py")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def spans(text: str) -> list[str]:
    """What stands in backquotes outside of fenced blocks."""
    return [span.replace("\\|", "|") for span in SPAN.findall(FENCE.sub("", text))]


@cache
def python_source() -> str:
    """All Python of the product and its scripts, in one text; not the docstrings that are checked."""
    files = [path for name in ("target", "hostagent", "scripts") for path in (ROOT / name).rglob("*.py")]
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    files += [path for path in scripts if b"python" in path.read_bytes()[:40]]
    checked = {ROOT / package.__name__ / "__init__.py" for package in PACKAGES}
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path not in checked)


@cache
def words_of_the_source() -> set[str]:
    return set(re.findall(r"\w+", python_source()))


@pytest.mark.parametrize("script", ["pair-states-doc"])
def test_what_is_generated_is_up_to_date(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


# Paths and links


def headings(path: Path) -> set[str]:
    """The anchors of a document, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", text_of(name))):
        file, _, anchor = link.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        if "://" in link:
            continue
        if not path.exists() or (anchor and anchor not in headings(path)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_there(name: str) -> None:
    paths = [path.rstrip(".") for span in spans(text_of(name)) for path in PATH.findall(span.split(" ")[0])]
    paths += PATH.findall(
        " ".join(line for line in commands_in(text_of(name)) if line.startswith("scripts/"))
    )
    paths += [text for text in re.findall(r"\[([^\]]+)\]\(", text_of(name)) if PATH.fullmatch(text)]
    missing = [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]
    assert not missing


# Names in the code


@cache
def module_names() -> set[str]:
    """Every module, by each dotted name that ends with its own: target.journal.ring, journal.ring, ring."""
    names = set()
    for package in ("target", "hostagent"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            names |= {".".join(parts[start:]) for start in range(len(parts))}
    return names


def resolves(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something in one."""
    parts = name.split(".")
    for prefix in ("", "target.", "hostagent."):
        for end in range(len(parts), 0, -1):
            module_name = prefix + ".".join(parts[:end])
            if not module_name.startswith(("target", "hostagent")):
                continue
            try:
                found: object = importlib.import_module(module_name)
            except ImportError:
                continue
            for attribute in parts[end:]:
                found = getattr(found, attribute, None) or getattr(found, "__annotations__", {}).get(
                    attribute
                )
            if found is not None:
                return True
    return False


def unknown_names(found: list[str]) -> Iterator[str]:
    for span in found:
        if DOTTED.fullmatch(span) and not span.endswith(FILE_SUFFIXES):
            if not resolves(span) and span not in module_names() and f'"{span}"' not in python_source():
                yield span
        elif SNAKE.fullmatch(span) and span not in words_of_the_source():
            yield span


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_code_exist(name: str) -> None:
    assert not list(unknown_names(spans(text_of(name))))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: str(package.__name__))
def test_package_docstrings_name_what_exists(package: object) -> None:
    text = package.__doc__ or ""
    found = spans(text)
    assert not list(unknown_names(found))
    known = module_names() | words_of_the_source()
    assert not [span for span in found if re.fullmatch(r"[a-z_]+", span) and span not in known]


# Commands and options


ROOT_COMMAND = typer.main.get_command(app)
FAMILIES = set(ROOT_COMMAND.commands)  # type: ignore[attr-defined]


def commands_in(text: str) -> list[str]:
    """Lines of fenced blocks; where some have a prompt, those alone. Behind three blanks is a remark."""
    found = []
    for block in FENCE.findall(text):
        lines = block.splitlines()
        typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or lines
        found += [re.split(r"   | \| |[;#]|&&", line)[0].strip() for line in typed]
    return found


def replctl_lines(text: str) -> Iterator[str]:
    """Everything that is written as a `replctl` command, without what says which site."""
    for line in commands_in(text):
        if re.match(r"(replctl|a|b) (?!\[)", line):
            yield SITE.sub("", line, count=1)
    for span in spans(text):
        rest = SITE.sub("", span, count=1) if re.match(r"(replctl|a|b) ", span) else span
        if rest.split(" ")[0] in FAMILIES:
            yield rest


def mistakes(line: str) -> list[str]:
    """What of a command line does not exist; `one|other` stands for both."""
    commands = [ROOT_COMMAND]
    words = line.split()
    while words and any(hasattr(command, "commands") for command in commands):
        alternatives = words.pop(0).split("|")
        if alternatives[0].startswith(("-", "[")) or alternatives == ["..."]:
            break
        children = [command.commands for command in commands if hasattr(command, "commands")]
        unknown = [word for word in alternatives if not any(word in known for known in children)]
        if unknown:
            return unknown
        commands = [known[word] for known in children for word in alternatives if word in known]
    offered = {option for command in commands for parameter in command.params for option in parameter.opts}
    return [option for option in OPTION.findall(" ".join(words)) if option not in offered]


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_their_options_exist(name: str) -> None:
    wrong = {line: found for line in replctl_lines(text_of(name)) if (found := mistakes(line))}
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_some_commands(name: str) -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "scripts").iterdir() if path.is_file())
    known = set(OPTION.findall(python_source() + scripts)) | all_options(ROOT_COMMAND)
    plain = re.sub(r"^\$ (?!replctl).*$", "", text_of(name), flags=re.MULTILINE)
    assert not set(OPTION.findall(plain)) - known


def all_options(command: object) -> set[str]:
    own = {option for parameter in getattr(command, "params", []) for option in parameter.opts}
    children = getattr(command, "commands", {}).values()
    return own.union({"--help"}, *(all_options(child) for child in children))


def test_every_command_is_in_the_reference() -> None:
    told = {tuple(line.split()[:2]) for line in replctl_lines(text_of("docs/cli.md"))}
    pairs = {(first, second) for first, *rest in told for seconds in rest for second in seconds.split("|")}
    alone = {words[0] for words in told}
    for name, command in ROOT_COMMAND.commands.items():  # type: ignore[attr-defined]
        children = getattr(command, "commands", None)
        if children is None:
            assert name in alone
        else:
            assert {(name, child) for child in children} <= pairs


@pytest.mark.parametrize(
    "error", [ReplctlError(""), OperatorError(""), PeerError(""), IntegrityError(""), ConflictError("")]
)
def test_exit_codes_are_as_documented(error: ReplctlError) -> None:
    wire = error_to_wire(error)
    assert re.search(rf"^\| {wire['exit_code']} \| `{wire['kind']}` \|", text_of("docs/cli.md"), re.MULTILINE)
