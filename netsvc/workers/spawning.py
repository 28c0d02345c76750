"""Starts the process of a worker, and gives it its sockets."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.python.reflect import namedModule

from netsvc.workers.briefing import FIRST_SOCKET, ORDERS, REPORTS, Briefing
from netsvc.workers.child import Child
from netsvc.workers.succession import Serving

__all__ = ["reactor_module", "spawn"]

_FAST = "netsvc.reactor"


def reactor_module(reactor: Any, chosen: bool) -> str:
    """Name the module of the workers' reactor: the fast one, or that of `reactor` if the user has chosen it."""
    if not chosen:
        try:
            namedModule(_FAST)
        except ImportError:
            # There is no epoll.
            pass
        else:
            return _FAST
    return type(reactor).__module__


def spawn(reactor: Any, command: tuple[str, str], serving: Serving, place: int, child: Child) -> None:
    """Start the process of a worker at a place. `command` is an interpreter, and the module of the worker's reactor.

    Raises `OSError`.
    """
    python, module = command
    numbers: list[tuple[int, ...]] = []
    sockets: dict[int, int] = {}
    for held in serving.held_ports:
        given = dict(enumerate(held.descriptors(place), FIRST_SOCKET + len(sockets)))
        numbers.append(tuple(given))
        sockets |= given
    child.briefing = Briefing(
        serving.plan,
        module,
        tuple(map(str, sys.path)),
        os.environ.get("PYTHONPATH"),
        tuple(numbers),
        tuple(serving.key_files),
        serving.held,
        place + 1,
    )
    # The worker finds netsvc where we did.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(str, sys.path)))}
    with open(os.devnull, "rb") as nothing:
        reactor.spawnProcess(
            child,
            python,
            [python, "-P", "-m", "netsvc.worker"],
            env=environment,
            childFDs={0: nothing.fileno(), 1: "r", 2: "r", ORDERS: "w", REPORTS: "r", **sockets},
        )
