"""`netsvc passwd`: writes the line of a user with a password, for `--files-users`."""

from __future__ import annotations

import os
import sys
import unicodedata
from contextlib import suppress
from getpass import getpass

import click

from netsvc.base.files import read_file, write_atomic
from netsvc.base.passwords import MAX_PASSWORD, PasswordError, hash_password
from netsvc.base.text import escape
from netsvc.cli.errors import ClientError, exits

__all__ = ["command", "with_user"]

_LONGEST_FILE = 4 * 1024 * 1024
_LONGEST_NAME = 255


@click.command(name="passwd")
@click.argument("user")
@click.argument("file", required=False)
def command(user: str, file: str | None) -> None:
    """Write a line with the name of a user and the hash of a password.

    Asks for the password twice on a terminal, or else reads it from the first line of standard input. The line goes
    into FILE, in place of an earlier one of the same user, or to standard output. The hash is scrypt's (RFC 7914).

    \b
    Examples:
      netsvc passwd alice users
      netsvc run --files-http tls:8443:cert=cert.pem:key=key.pem --files-root public --files-users users
    """
    with exits():
        name = unicodedata.normalize("NFC", user)
        if not name or len(name) > _LONGEST_NAME or ":" in name or name.startswith("#") or not name.isprintable():
            raise ClientError(
                f"{escape(user)}: a user name has 1 to {_LONGEST_NAME} printable characters, no colon, and no # at "
                "its beginning"
            )
        before = _read(file) if file is not None else ""
        try:
            line = f"{name}:{hash_password(_password())}"
        except PasswordError as error:
            raise ClientError(f"{error}; choose one of 1 to {MAX_PASSWORD} bytes") from None
        if file is None:
            click.echo(line)
            return
        try:
            write_atomic(file, with_user(before, line), _mode(file))
        except OSError as error:
            raise ClientError(f"{escape(file, 4096)}: {error.strerror}; name a file that can be written") from None


def with_user(text: str, line: str) -> str:
    """Return the text of a file of users with this line, in place of the one of the same user if there is one."""
    name = line.partition(":")[0]
    lines = text.splitlines()
    for number, each in enumerate(lines):
        if unicodedata.normalize("NFC", each.partition(":")[0].strip()) == name:
            lines[number] = line
            break
    else:
        lines.append(line)
    return "".join(f"{each}\n" for each in lines)


def _read(file: str) -> str:
    try:
        return read_file(file, _LONGEST_FILE).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ClientError(f"{escape(file, 4096)}: {error.strerror}; name another file") from None


def _mode(file: str) -> int:
    with suppress(OSError):
        return os.stat(file).st_mode & 0o777
    return 0o600


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline(MAX_PASSWORD + 2).rstrip("\r\n")
    try:
        password = getpass("Password: ")
        if getpass("Once more: ") != password:
            raise ClientError("the passwords are different; try again")
    except EOFError:
        raise ClientError("no password was entered") from None
    return password
