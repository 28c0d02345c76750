"""Errors that users can mend are printable lines."""

from __future__ import annotations

import subprocess
import sys

import pytest

from netsvc.base.errors import PluginError, StartError, UserError
from tests.builders.processes import PATIENCE


def test_a_mistake_error_is_a_line_for_each_mistake() -> None:
    error = UserError(["one", "two"])
    assert error.errors == ("one", "two")
    assert str(error) == "one\ntwo"
    assert isinstance(error, ValueError)


def test_a_plugin_error_is_caught_wherever_a_mistake_is() -> None:
    with pytest.raises(UserError) as raised:
        raise PluginError(["service x does not load"])
    assert raised.value.errors == ("service x does not load",)


def test_a_mistake_stays_one_printable_line_whatever_it_quotes() -> None:
    error = UserError(["a\nb\x1b[2J", "c\u202e\u2028\udcff", r"a \ is 'kept' \" as it was"])
    assert error.errors == (r"a\nb\x1b[2J", r"c\u202e\u2028\udcff", r"a \ is 'kept' \" as it was")
    assert len(str(error).splitlines()) == 3


def test_a_start_error_ends_the_process_with_its_lines_on_stderr_and_status_1() -> None:
    code = r"from netsvc.base.errors import StartError; raise StartError('port 1 is in use\nno such root')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "netsvc: port 1 is in use\nnetsvc: no such root\n"
    assert ended.stdout == ""


def test_a_start_error_is_what_python_ends_with_and_what_twistd_cleans_up_for() -> None:
    error = StartError("no")
    assert isinstance(error, SystemExit)
    assert isinstance(error, Exception)
    assert error.reason == "no"
