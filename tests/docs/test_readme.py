"""What README.md and README.zh.md show is what happens, from their first command to their last."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.builders.facts import states
from tests.builders.installation import INSTALLING, clean_environment, copy_checkout, requirements
from tests.builders.processes import PATIENCE, ROOT, Server, run

ENGLISH, CHINESE = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh.md"))
#: A machine of its own, where all ports are free and no other netsvc runs. A namespace ends with its first process.
MACHINE = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--map-root-user"]
PREPARE = 'mount -t tmpfs none /run && ip link set lo up && exec "$@"'


def commands(document: str) -> list[list[str]]:
    """Return the commands of each `sh` block, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", document, re.S)
    return [[re.split(r"\s+# ", line)[0] for line in block.splitlines()] for block in blocks]


def listing(document: str) -> tuple[str, str]:
    """Return the name and the text of the file that the reader is to save."""
    [found] = re.findall(r"<!-- write: (\S+) -->\n```python\n(.*?)```", document, re.S)
    name, text = found
    return name, text


def test_it_is_short() -> None:
    assert len(ENGLISH.splitlines()) < 80


def test_its_own_protocol_takes_ten_lines() -> None:
    _, text = listing(ENGLISH)
    assert len([line for line in text.splitlines() if line]) <= 10


def test_both_languages_show_the_same_commands_and_the_same_file() -> None:
    english, chinese = commands(ENGLISH), commands(CHINESE)
    # Chinese readers come from the exercises, which have a block of their own.
    assert [block for block in chinese if block in english] == english
    assert len(chinese) == len(english) + 1
    assert listing(ENGLISH) == listing(CHINESE)
    assert "](README.zh.md)" in ENGLISH
    assert "](README.md)" in CHINESE


def test_what_is_installed_with_it_is_named() -> None:
    section = ENGLISH.partition("Dependencies: ")[2]
    for line in requirements():
        name = re.split(r"[ \[>]", line)[0]
        assert name in section, name


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the README's first command has been run."""
    directory = tmp_path_factory.mktemp("readme")
    copy_checkout(directory)
    ran = subprocess.run(
        ["bash", "-c", commands(ENGLISH)[0][0]],
        cwd=directory,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=INSTALLING,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return directory


def at_one_terminal(checkout: Path, words: list[str]) -> str:
    """Run commands one after the other on a machine of their own, and return what they print."""
    script = "\n".join(["set -e", ". .venv/bin/activate", *words])
    inside = [*MACHINE, "sh", "-c", PREPARE, "sh", "bash", "-c", script]
    ran = subprocess.run(
        inside, cwd=checkout, env=clean_environment(), capture_output=True, text=True, timeout=3 * PATIENCE
    )
    if "unshare:" in ran.stderr or "mount:" in ran.stderr:
        pytest.skip(f"there can be no namespaces here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("unshare", "ip"))), reason="needs unshare and ip")
class TestFromTheFirstCommandToTheLast:
    def test_on_a_fresh_machine(self, checkout: Path) -> None:
        [[_, start], clients, [*writing, serve], [test]] = commands(ENGLISH)
        assert serve.startswith("netsvc run ")
        name, text = listing(ENGLISH)
        (checkout / name).write_text(text, "utf-8")
        # The last one serves until it is stopped. A script's background processes ignore Ctrl-C.
        serving = f"{serve} > log & until grep -q ready$ log; do sleep 0.1; done"
        asking = [f"printf 'hello\\n' | netsvc talk {address}" for address in ("9001", "9004", "udp:9004")]
        said = at_one_terminal(checkout, [start, *clients, *writing, serving, *asking, "kill $!", "wait $!"])
        assert said.startswith("hello\nIt works. 能用。\n")
        assert re.search(r"open \d+ +accepted \d+", said)
        assert said.endswith("hello\nHELLO\nHELLO\n")
        assert test.endswith("/pytest")

    def test_of_the_exercises(self, checkout: Path) -> None:
        [block] = [block for block in commands(CHINESE) if block not in commands(ENGLISH)]
        said = at_one_terminal(checkout, block)
        assert said.startswith("你好hello, tcp client!It works. 能用。\n"), said


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nc") is None, reason="needs nc, which .ci/run installs")
def test_nc_is_client_enough() -> None:
    with Server.twistd("--tcp", "0", "--chat", "0") as server:
        echo = run("nc", "-N", "localhost", str(server.port("echo tcp")), stdin="hello\n你好\n")
        assert echo.stdout == "hello\n你好\n"
        chat = run("nc", "-N", "localhost", str(server.port("chat line")), stdin="/nick 小明\n/who\n")
        assert states(chat.stdout.splitlines()[-1], "* ", "lobby", "小明")
