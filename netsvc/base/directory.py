"""The directory in which a process was started: relative paths begin there, also after it was replaced or removed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from netsvc.base.text import escape


def working_directory() -> str:
    """Return the working directory by its name in PWD: a symbolic link may lead to another release later.

    If it was removed, this is the name that it had.
    """
    named = os.environ.get("PWD", "")
    named = named if os.path.isabs(named) else ""
    with suppress(OSError):
        if named and os.path.samefile(named, "."):
            return named
    try:
        return os.getcwd()
    except FileNotFoundError:
        return named or "."


@contextmanager
def entered(directory: str) -> Iterator[bool]:
    """Work in a directory; yield whether it is there. Raises `OSError` if it is, and cannot be entered.

    If it was removed, relative paths lead nowhere meanwhile. They do not lead to other files of the same names.
    """
    before = _present()
    try:
        is_there = _enter(directory)
        if not is_there and before is not None:
            _enter_nowhere()
        yield is_there
    finally:
        if before is not None:
            with suppress(OSError):
                os.chdir(before)


def removed(directory: str) -> str:
    """Return the error for relative paths that begin in a removed directory."""
    where = f"{escape(directory)}, where the process was started, has been removed"
    return f"{where}; give absolute paths, or restart netsvc in another directory"


def _present() -> str | None:
    """Return the working directory; None if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _enter(directory: str) -> bool:
    try:
        os.chdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _enter_nowhere() -> None:
    """Enter a directory that has been removed."""
    nowhere = tempfile.mkdtemp()
    try:
        os.chdir(nowhere)
    finally:
        os.rmdir(nowhere)
