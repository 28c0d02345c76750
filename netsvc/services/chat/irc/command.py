"""What a command of IRC is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from twisted.internet.defer import Deferred

from netsvc.services.chat.irc.message import IrcMessage
from netsvc.services.chat.irc.session import IrcSession

__all__ = ["IrcCommand"]


class IrcCommand(NamedTuple):
    """A command: what runs it, with how many parameters at least, and whether before registration, too.

    `run` may return a Deferred, which fires when it has answered; failures are reported to the client.
    """

    run: Callable[[IrcSession, IrcMessage], Deferred[None] | None]
    least: int = 0
    is_early: bool = False
