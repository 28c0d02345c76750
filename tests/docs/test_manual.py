"""The manual page is that of the commands, and so are the examples of their help."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from netsvc.cli.command import SUBCOMMANDS, main
from netsvc.config.arguments import survey_arguments
from netsvc.config.discovery import discover
from tests.builders.certificates import write_certificate
from tests.docs.manual import MANUAL, manual

#: A command of an example, and what stands apart beside it.
EXAMPLE = re.compile(r"(?:^|.*[|&] )(netsvc .*?)(?: {2,}.*| [|&>].*)?")


def test_it_is_current() -> None:
    assert MANUAL.read_text("utf-8") == manual(), "run python -m tests.docs.manual"


def test_man_has_no_complaint() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-Kutf8", MANUAL], capture_output=True)
    assert done.stderr == b""
    assert b"netsvc get" in done.stdout


def examples(command: str) -> list[list[str]]:
    """Return the words of each example in the help of a command, without `netsvc COMMAND`."""
    text = CliRunner().invoke(main, [command, "--help"]).output
    block = re.split(r"^ *Examples?:\n", text, flags=re.M)[1].partition("\n\n")[0]
    found = [EXAMPLE.fullmatch(line.strip()) for line in block.splitlines()]
    assert all(found), block
    words = [shlex.split(match[1]) for match in found if match]
    assert all(each[:1] == ["netsvc"] for each in words)
    return [each[2:] for each in words if each[1] == command]


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_each_command_has_an_example_that_it_accepts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ca.pem").touch()
    found = examples(command)
    assert found
    for words in found:
        if command in ("run", "check"):
            for name, file in zip(("key.pem", "cert.pem"), write_certificate(tmp_path, "localhost"), strict=True):
                file.rename(name)
            Path("public").mkdir(exist_ok=True)
            Path("my.py").write_text("from twisted.internet.protocol import Protocol as MyProtocol\n")
            Path("netsvc.toml").write_text("[services.echo]\ntcp = 0\n")
            assert survey_arguments(words, discover())[1] == []
        else:
            target = main.get_command(click.Context(main, **main.context_settings), command)
            assert target is not None
            with click.Context(main, **main.context_settings) as above:
                target.make_context(command, words, above)
