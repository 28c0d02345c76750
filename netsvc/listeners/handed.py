"""The open ports of a process, as another one may take them over."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netsvc.interfaces import Kind
from netsvc.listeners.inherited import Inherited

__all__ = ["Found", "HandedPort"]


def _nothing() -> None:
    """Do nothing: it takes nothing itself."""


def _ignore(_files: list[str]) -> None:
    """Remove none."""


@dataclass(frozen=True)
class HandedPort:
    """A port that is open, with what is to be done to it when another process takes it over.

    `role` is `listener`, `plugin` for one of another twistd plugin, or `admin`; `name` says whose it is, and `address`
    how it was asked for. Each of `sockets` is one of the address, followed by those that are bound beside it, for
    further workers. `files` are removed by whoever closes the port in the end.

    `pause` has it take nothing until `resume` is called; what comes waits. `let_go` closes it here, and nothing else.
    `own` is the other way: the files that are given are removed when it is closed here.
    """

    role: str
    name: str
    kind: Kind
    address: str
    sockets: Sequence[Sequence[Any]]
    files: Sequence[str] = ()
    key_files: dict[str, str] = field(default_factory=dict)
    let_go: Callable[[], None] = _nothing
    own: Callable[[list[str]], None] = _ignore
    pause: Callable[[], None] = _nothing
    resume: Callable[[], None] = _nothing

    @property
    def label(self) -> str:
        """Name it in a message."""
        return f"{self.name} on {self.address}"


@dataclass
class Found:
    """What a listener has of another process: first sockets, those beside each of them, and key and certificate files.

    Without `beside`, the sockets are no other process's, and `first` is one that was bound for this listener.
    """

    first: Inherited | None = None
    beside: list[list[int]] | None = None
    key_files: Mapping[str, str] = field(default_factory=dict)

    def close_beside(self) -> None:
        """Close those that one process alone has no use for."""
        for row in self.beside or ():
            while row:
                os.close(row.pop())
