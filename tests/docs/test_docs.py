"""What the documents show is what the files hold and what the commands do.

A listing follows a comment that names its file, and in it the parts: names of a Python file's classes and functions
(`Class.method` for one of a class), or sections of a configuration file. A table follows a comment with its name in
`tests.docs.tables`. `python -m tests.docs.test_docs` writes all listings and tables again. Commands stand in `console`
blocks, after `$ `, with their output below; `…` stands for anything. What follows a comment `write: FILE` is
saved there.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.installation import Installation, install
from tests.builders.processes import PATIENCE, ROOT, Server, free_port
from tests.builders.programs import program
from tests.docs.signatures import with_signatures
from tests.docs.tables import with_tables

DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*/*.md")),
]
#: Programs that commands of the documents use, and their Debian packages.
CLIENTS = {
    "nc": "netcat-openbsd",
    "curl": "curl",
    "openssl": "openssl",
    "sqlite3": "sqlite3",
    "redis-server": "redis-server",
    "telnet": "inetutils-telnet",
}
#: Commands that serve until they are stopped.
SERVING = re.compile(r"\b(twistd -n|netsvc run|netsvc share|honcho start)( (?!--help)|$)")
LISTING = re.compile(r"(<!-- file: (?P<file>\S+)(?P<parts>(?: \S+)*) -->\n```\w+\n)(?P<text>.*?)(?=```$)", re.S | re.M)
FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w*)\n(?P<text>.*?)```$", re.S | re.M)


def listing(file: str, parts: list[str]) -> str:
    """Return the parts of a file, the whole of it if none is named."""
    text = (ROOT / file).read_text("utf-8")
    if not parts:
        return text
    find = python_part if file.endswith(".py") else section
    return ("\n\n" if file.endswith(".py") else "\n").join(find(text, part) for part in parts)


def python_part(text: str, name: str) -> str:
    """Return the source of a class, function or method, its decorators included."""
    body: list[ast.stmt] = ast.parse(text).body
    for step in name.split("."):
        [node] = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == step]
        body = node.body
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return textwrap.dedent("".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno]))


def section(text: str, name: str) -> str:
    """Return a section of a configuration file, its header included, without the comment before the next one."""
    _, header, rest = text.partition(f"{name}\n")
    assert header, f"no section {name}"
    lines = re.split(r"^\[", rest, maxsplit=1, flags=re.M)[0].rstrip().splitlines()
    while lines and (not lines[-1] or lines[-1].startswith("#")):
        lines.pop()
    return "\n".join([header.rstrip(), *lines, ""])


def anchors(document: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rewritten(document: str) -> str:
    """Return a document with every listing as its file has it, and every table and signature as the code has it."""
    listed = LISTING.sub(lambda match: match[1] + listing(match["file"], match["parts"].split()), document)
    return with_signatures(with_tables(listed))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
class TestDocuments:
    @pytest.mark.source
    def test_have_the_listings_of_the_files_and_the_tables_of_the_code(self, document: Path) -> None:
        text = document.read_text("utf-8")
        assert text == rewritten(text), "run python -m tests.docs.test_docs"

    def test_no_code_stands_in_a_document_alone(self, document: Path) -> None:
        for match in FENCE.finditer(document.read_text("utf-8")):
            if match["language"] not in ("console", "sh"):
                # What is to be saved, the commands that follow use.
                assert match["before"].startswith(("<!-- file: ", "<!-- write: ")), match["text"]

    @pytest.mark.source
    def test_links_lead_somewhere(self, document: Path) -> None:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", document.read_text("utf-8")):
            path = document.parent / target if target else document
            assert path.exists(), target
            assert not anchor or anchor in anchors(path.read_text("utf-8")), f"{target}#{anchor}"


def test_every_page_that_code_messages_or_deployment_files_name_exists() -> None:
    places = ("netsvc", "twisted", "deploy", "benchmarks", "examples", "tests", ".ci", ".github", "*.cfg", "*.md")
    files = [file for place in places for path in ROOT.glob(place) for file in (path, *path.rglob("*"))]
    named = {
        (page, anchor, str(file.relative_to(ROOT)))
        for file in files
        if file.is_file() and "__pycache__" not in file.parts
        for page, anchor in re.findall(
            r"(?<![\w/.])docs/([\w/.-]*\w\.\w+)(?:#([\w-]+))?", file.read_text("utf-8", "replace")
        )
    }
    assert len(named) > 5
    for page, anchor, file in named:
        path = ROOT / "docs" / page
        assert path.exists(), f"{file} names docs/{page}"
        assert not anchor or anchor in anchors(path.read_text("utf-8")), f"{file} names docs/{page}#{anchor}"


class TestParts:
    def test_the_whole_file(self) -> None:
        assert listing("examples/shout/shout.py", []) == (ROOT / "examples/shout/shout.py").read_text("utf-8")

    def test_a_class_with_its_decorator_and_a_method(self) -> None:
        text = "import x\n\n\n@x.y\nclass A:\n    def b(self):\n        pass\n\n\nclass C:\n    pass\n"
        assert python_part(text, "A") == "@x.y\nclass A:\n    def b(self):\n        pass\n"
        assert python_part(text, "A.b") == "def b(self):\n    pass\n"

    def test_a_section_without_the_comment_of_the_next(self) -> None:
        assert section("[a]\nb = 1\n\n# About c.\n[c]\nd = 2\n", "[a]") == "[a]\nb = 1\n"
        assert section("[a]\nb = 1\n\n[c]\nd = 2\n", "[c]") == "[c]\nd = 2\n"

    def test_a_changed_listing_is_written_anew(self) -> None:
        document = "<!-- file: examples/shout/shout.py -->\n```python\nold\n```\nend\n"
        assert rewritten(document) == document.replace("old\n", listing("examples/shout/shout.py", []))
        assert rewritten(rewritten(document)) == rewritten(document)


class Terminal:
    """Runs the commands of one document in turn, and saves its files. A server runs until the next one starts."""

    def __init__(self, installation: Installation, directory: Path) -> None:
        self.installation = installation
        self.directory = directory
        self.ports: dict[str, int] = {}
        self.server: Server | None = None
        # Whether the server reloads itself when a file is saved, and one was: its answers change in a moment.
        self.reloading = False

    def save(self, file: str, text: str) -> None:
        """Save a file as the reader does."""
        (self.directory / file).write_text(self._with_ports(text), "utf-8")
        self.reloading = self.server is not None and "--reload-on-change" in str(self.server.process.args)

    def converse(self, command: str, shown: str) -> None:
        """Run a command, which must write what is shown, if anything is."""
        deadline = time.monotonic() + PATIENCE
        output = self.run(command)
        while shown and not resembles(output, shown):
            assert self.reloading and time.monotonic() < deadline, f"$ {command}\n{output}"
            output = self.run(command)

    def run(self, command: str) -> str:
        """Run a command in a shell and return what it writes; a server only starts."""
        line = self._with_ports(command)
        if line.startswith("cd "):
            self.directory /= line.removeprefix("cd ")
            return ""
        if SERVING.search(line):
            self._serve(line)
            return ""
        for name, package in CLIENTS.items():
            if re.search(rf"\b{name} ", line):
                program(name, package)
        ran = subprocess.run(
            ["bash", "-c", line],
            cwd=self.directory,
            env=self.installation.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10 * PATIENCE,
            check=False,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        if made := re.match(r"netsvc new ([\w-]+)", line):
            file = f"{made[1]}/netsvc.toml"
            self.save(file, (self.directory / file).read_text("utf-8"))
        # As shown: a free port may have been used instead.
        ports = {str(port): shown for shown, port in self.ports.items()}
        return re.sub(r"\b\d{4,5}\b", lambda match: ports.get(match[0], match[0]), ran.stdout)

    def _serve(self, line: str) -> None:
        self.close()
        words = shlex.split(line)
        given = dict(word.split("=", 1) for word in words if re.match(r"[A-Z]+=", word))
        command = [word for word in words if not re.match(r"[A-Z]+=", word)]
        command[0] = str(self.installation.program(command[0]))
        self.server = Server(command, cwd=self.directory, env={**self.installation.environment, **given})
        # As text or as JSON; `netsvc share` shows where it serves.
        self.server.wait_for(r'\bready("})?$|^http://')

    def _with_ports(self, text: str) -> str:
        return re.sub(r"\b9[01]\d\d\b", lambda match: str(self._port(match[0])), text)

    def _port(self, shown: str) -> int:
        if shown not in self.ports:
            self.ports[shown] = free_port()
        return self.ports[shown]

    def close(self) -> None:
        """Stop the server."""
        if self.server is not None:
            with self.server:
                self.server, self.reloading = None, False


def conversation(block: str) -> Iterator[tuple[str, str]]:
    """Split a console block into commands, and the output shown after each."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def resembles(output: str, shown: str) -> bool:
    """Tell whether output is what is shown, where `…` stands for anything."""
    return re.fullmatch(".*?".join(map(re.escape, shown.split("…"))), output, re.S) is not None


def test_a_console_block_is_commands_and_their_output() -> None:
    assert list(conversation("$ a b\n$ c\nd\ne\n")) == [("a b", ""), ("c", "d\ne\n")]


def test_an_ellipsis_stands_for_anything() -> None:
    assert resembles("one 17 two\n", "one … two\n")
    assert not resembles("one 17 three\n", "one … two\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if "```console\n" in document.read_text("utf-8")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_commands_do_what_is_shown(document: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    installation = install(tmp_path_factory)
    place = document.parent.relative_to(ROOT)
    start = installation.work / (place if place.parts[:1] == ("examples",) else "")
    terminal = Terminal(installation, start)
    before, installed = set(start.iterdir()), installation.distributions()
    try:
        for match in FENCE.finditer(document.read_text("utf-8")):
            if match["before"].startswith("<!-- write: "):
                terminal.save(match["before"].split()[2], match["text"])
            for command, shown in conversation(match["text"]) if match["language"] == "console" else ():
                terminal.converse(command, shown)
    finally:
        terminal.close()
        # What one document writes, such as netsvc.toml, is not there for the next one.
        for made in set(start.iterdir()) - before:
            if made.is_dir():
                shutil.rmtree(made)
            else:
                made.unlink()
        if ours := [name for name in installation.distributions() - installed if name.startswith("netsvc")]:
            installation.run("pip", "uninstall", "--yes", *ours)


if __name__ == "__main__":
    for path in DOCUMENTS:
        before = path.read_text("utf-8")
        if before != rewritten(before):
            path.write_text(rewritten(before), "utf-8")
            sys.stdout.write(f"{path} rewritten\n")
