"""A host name stands for an address: the same one after a restart, if the chat has a place for its secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger

from netsvc.base.errors import UserError
from netsvc.interfaces import Context
from netsvc.options import parse_settings
from netsvc.services.chat.cloak import load_secret
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.options import ChatOptions


def host(state: Path | None) -> str:
    """The host name of an address in a chat that has just been started."""
    clock = Clock()
    options = parse_settings(ChatOptions, {"store": "memory"})
    assert isinstance(options, ChatOptions)
    core = ChatCore(options, Context(clock, Logger(), state_directory=state), clock.seconds)
    core.start()
    return core.cloak.host("192.0.2.1")


def test_it_is_the_same_after_a_restart_if_there_is_a_state_directory(tmp_path: Path) -> None:
    assert host(tmp_path / "state") == host(tmp_path / "state")
    assert (tmp_path / "state" / "cloak.key").stat().st_mode & 0o777 == 0o600
    assert host(tmp_path / "state") != host(tmp_path / "other")
    assert host(None) != host(None)


def test_a_file_that_is_no_secret_or_cannot_be_read_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "cloak.key"
    for content in (b"", b"short", b"x" * 33):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cloak"):
            load_secret(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cloak"):
        load_secret(path)
