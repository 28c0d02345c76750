"""Finds for each listener of a plan, and for each plugin, the sockets that another process has opened for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from netsvc.address import Address, parse_address
from netsvc.embedded.passed import Passed, PassedSocket
from netsvc.host.difference import compare, may_clash, same_socket
from netsvc.host.room import Room, bind_beside
from netsvc.listeners.handed import Found, HandedPort
from netsvc.listeners.sockets import bound_socket
from netsvc.plan import Listener, Plan
from netsvc.upgrade.briefing import PassedPort

__all__ = ["Inheritance"]


class Inheritance:
    """The ports of the process whose place is taken."""

    def __init__(self, ports: Sequence[PassedPort]) -> None:
        self._ports = ports
        self._inodes = {
            os.fstat(number).st_ino: place
            for place, port in enumerate(ports)
            for sockets in port.sockets
            for number in sockets
        }

    def addresses(self) -> list[Address]:
        """List the addresses of its listeners."""
        return [address for _, address in self._listeners()]

    def _listeners(self) -> list[tuple[int, Address]]:
        listeners: list[tuple[int, Address]] = []
        for place, port in enumerate(self._ports):
            # Another version may have known addresses of which this one knows nothing.
            with suppress(ValueError):
                if port.role == "listener":
                    listeners.append((place, parse_address(port.address, port.kind)))
        return listeners

    def find(self, plan: Plan) -> list[Found]:
        """Return what there is for each listener of a plan."""
        listeners = self._listeners()
        before = Plan(
            {}, tuple(_bare(*self._ports[place].name.partition(" ")[::2], address) for place, address in listeners)
        )
        after = Plan({}, tuple(_bare(each.use, each.protocol, each.address) for each in plan.listeners))
        difference = compare(before, after)
        matches = {new: listeners[old] for old, new in difference.kept}
        free = [listeners[old] for old in difference.closed]
        for new in difference.opened:
            same = [each for each in free if same_socket(each[1], after.listeners[new].address)]
            if same:
                matches[new] = same[0]
                free.remove(same[0])
        found: list[Found] = []
        for new, listener in enumerate(after.listeners):
            if new in matches:
                port = self._ports[matches[new][0]]
                first = Room([os.dup(sockets[0]) for sockets in port.sockets])
                beside = [[os.dup(number) for number in sockets[1:]] for sockets in port.sockets]
                found.append(Found(first, beside, dict(port.key_files)))
            else:
                found.append(Found(self._make_room(listener.address, free)))
        return found

    def _make_room(self, address: Address, free: Iterable[tuple[int, Address]]) -> Room | None:
        """Bind a socket beside those that are in its way, if any are, and that nobody takes."""
        others = [
            socket.socket(fileno=os.dup(sockets[0]))
            for place, before in free
            for sockets in self._ports[place].sockets
            if may_clash(before, _number(sockets[0]), address)
        ]
        try:
            if not address.port or not others:
                return None
            if all(each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for each in others):
                # Those of workers, who may need more of them.
                return Room([bound_socket(address, beside=True).detach()])
            return bind_beside(address, others)
        except OSError:
            # It happens again when the port is opened as any other, and is explained there.
            return None
        finally:
            for each in others:
                each.close()

    def plugin(self, label: str) -> Passed | None:
        """Return the sockets of a plugin."""
        sockets = [
            PassedSocket(port.kind, port.address, number)
            for port in self._ports
            if (port.role, port.name) == ("plugin", label)
            for [number] in port.sockets
        ]
        return Passed(sockets) if sockets else None

    def admin(self, address: str) -> Room | None:
        """Return the sockets of the admin page, if it has been asked for in the same words."""
        for port in self._ports:
            if (port.role, port.address) == ("admin", address):
                return Room([os.dup(number) for sockets in port.sockets for number in sockets])
        return None

    def taken(self, ports: Iterable[HandedPort]) -> dict[int, HandedPort]:
        """Return which of `ports`, those that are open now, have the sockets of which port of the other process."""
        taken: dict[int, HandedPort] = {}
        for port in ports:
            for sockets in port.sockets:
                place = self._inodes.get(os.fstat(sockets[0].fileno()).st_ino)
                if place is not None:
                    taken[place] = port
        return taken

    def files(self, place: int) -> list[str]:
        """List the files of a port of the other process."""
        return list(self._ports[place].files)

    def close(self) -> None:
        """Close what was passed. What has been taken are copies."""
        for port in self._ports:
            for sockets in port.sockets:
                for number in sockets:
                    os.close(number)


def _bare(use: str, protocol: str, address: Address) -> Listener:
    # A PROXY header is read by this process, whatever the other one did.
    return Listener(use, protocol, replace(address, proxy=None, limits={}))


def _number(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as bound:
        name = bound.getsockname()
        return name[1] if isinstance(name, tuple) else 0
