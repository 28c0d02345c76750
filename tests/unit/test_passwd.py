"""`netsvc passwd` writes lines that `--files-users` reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from netsvc.base.passwords import verify_password
from netsvc.cli import passwd
from netsvc.cli.errors import ClientError
from netsvc.services.files.access import parse_users


def run(*words: str, text: str = "secret\n") -> tuple[int, str]:
    ended = CliRunner().invoke(passwd.command, words, input=text)
    return ended.exit_code, ended.output


def test_the_line_goes_to_standard_output() -> None:
    status, line = run("alice")
    assert status == 0
    [(user, hashed)] = parse_users(line.encode(), "-").items()
    assert user == "alice"
    assert verify_password("secret", hashed)
    assert "secret" not in line


def test_a_file_has_one_line_for_each_user(tmp_path: Path) -> None:
    file = tmp_path / "users"
    assert run("alice", str(file)) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("# people\n" + file.read_text())
    file.chmod(0o640)
    assert run("jose\u0301", str(file)) == (0, "")
    before = parse_users(file.read_bytes(), "-")
    assert run("alice", str(file), text="other\n") == (0, "")
    users = parse_users(file.read_bytes(), "-")
    assert list(users) == ["alice", "jos\u00e9"]
    assert verify_password("other", users["alice"])
    assert users["jos\u00e9"] == before["jos\u00e9"]
    assert file.read_text().startswith("# people\n")
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("user", ["", "a:b", "#a", "a\x1bb", "x" * 256])
def test_a_name_that_no_file_can_have_is_refused(user: str, tmp_path: Path) -> None:
    status, output = run("--", user, str(tmp_path / "users"))
    assert (status, output.count("\n")) == (1, 1)
    assert "\x1b" not in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "\n", "x" * 1025 + "\n"])
def test_a_password_that_cannot_be_one_is_refused(text: str, tmp_path: Path) -> None:
    status, output = run("alice", str(tmp_path / "users"), text=text)
    assert (status, output.count("\n")) == (1, 1)
    assert not list(tmp_path.iterdir())


def test_a_directory_is_no_file_of_users(tmp_path: Path) -> None:
    status, output = run("alice", str(tmp_path))
    assert status == 1
    assert str(tmp_path) in output


def test_a_terminal_asks_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    answers = ["one", "one", "one", "two"]
    monkeypatch.setattr(passwd, "getpass", lambda _: answers.pop(0))
    monkeypatch.setattr("sys.stdin", Terminal())
    assert passwd._password() == "one"
    with pytest.raises(ClientError):
        passwd._password()
