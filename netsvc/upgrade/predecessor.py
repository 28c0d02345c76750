"""The process that this one replaces: the ports that it has handed over, and the channel to it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from netsvc.base.signals import process_signals
from netsvc.listen.handoff import Handoff, OfferedPort, PassedPort, Sockets
from netsvc.listen.sockets import bind, bind_beside
from netsvc.listen.systemd import activate
from netsvc.plan.address import Address, parse_address
from netsvc.plan.plan import Listener, Plan
from netsvc.server.difference import compare, may_clash, same_socket
from netsvc.upgrade.program import VARIABLE
from netsvc.workers.channel import REPORTS, STDERR, STDOUT, Orders, Reporter, report

#: Bytes of a handoff: thousands of ports, and the certificates of as many.
_LONGEST_HANDOFF = 1 << 26


class Inheritance:
    """The ports handed over by the predecessor."""

    def __init__(self, ports: Sequence[PassedPort]) -> None:
        self._ports = ports
        self._inodes = {os.fstat(number).st_ino: index for index, port in enumerate(ports) for number in port.sockets}
        #: Duplicated sockets that were returned; some may not have been used.
        self._given: list[Sockets] = []

    def addresses(self) -> list[Address]:
        """Return the addresses of its listeners."""
        return [address for _, address in self._listeners()]

    def _listeners(self) -> list[tuple[int, Address]]:
        listeners: list[tuple[int, Address]] = []
        for index, port in enumerate(self._ports):
            # The predecessor may be of another version, with addresses unknown to this one.
            with suppress(ValueError):
                if port.role == "listener":
                    listeners.append((index, parse_address(port.address, port.kind)))
        return listeners

    def find(self, plan: Plan) -> list[Sockets | None]:
        """Return the sockets for each listener of a plan; None where a new one must be bound."""
        listeners = self._listeners()
        before = Plan(
            {}, tuple(_bare(*self._ports[index].name.partition(" ")[::2], address) for index, address in listeners)
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
        found: list[Sockets | None] = []
        for new, listener in enumerate(after.listeners):
            if new in matches:
                port = self._ports[matches[new][0]]
                first, *beside = map(os.dup, port.sockets)
                found.append(self._give(Sockets([first], beside=beside, key_files=port.key_files)))
            else:
                found.append(self._bind_beside(listener.address, free))
        return found

    def _give(self, sockets: Sockets) -> Sockets:
        self._given.append(sockets)
        return sockets

    def _bind_beside(self, address: Address, free: Iterable[tuple[int, Address]]) -> Sockets | None:
        """Bind a socket beside unused old sockets at the address; return None if there are none."""
        others = [
            socket.socket(fileno=os.dup(self._ports[index].sockets[0]))
            for index, before in free
            if may_clash(before, _number(self._ports[index].sockets[0]), address)
        ]
        try:
            if not address.port or not others:
                return None
            if all(each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for each in others):
                # The old sockets belong to workers, and further ones may be bound for workers.
                return self._give(Sockets([bind(address, beside=True).detach()]))
            return self._give(Sockets([bind_beside(address, others).detach()]))
        except OSError:
            # Opening the port without a socket fails in the same way, and explains the error.
            return None
        finally:
            for each in others:
                each.close()

    def plugin(self, label: str) -> Sockets | None:
        """Return the sockets of the plugin with this label; None if there are none."""
        return self._of(lambda port: (port.role, port.name) == ("plugin", label), asked=True)

    def admin(self, address: str) -> Sockets | None:
        """Return the sockets of the admin address, if it is written in the same way; else None."""
        return self._of(lambda port: (port.role, port.address) == ("admin", address))

    def _of(self, is_meant: Callable[[PassedPort], bool], *, asked: bool = False) -> Sockets | None:
        ports = [port for port in self._ports if is_meant(port)]
        if not ports:
            return None
        descriptors = [os.dup(port.sockets[0]) for port in ports]
        return self._give(Sockets(descriptors, asked=[(port.kind, port.address) for port in ports] if asked else None))

    def taken(self, ports: Iterable[OfferedPort]) -> dict[int, OfferedPort]:
        """Return those open `ports` that use sockets of the predecessor, by the index of its port."""
        taken: dict[int, OfferedPort] = {}
        for port in ports:
            index = self._inodes.get(os.fstat(port.sockets[0].fileno()).st_ino)
            if index is not None:
                taken[index] = port
        return taken

    def files(self, index: int) -> list[str]:
        """Return the files of a port of the predecessor, by its index."""
        return list(self._ports[index].files)

    def close(self) -> None:
        """Close the passed sockets, and the duplicates that were not used."""
        for port in self._ports:
            for number in port.sockets:
                os.close(number)
        for sockets in self._given:
            sockets.close()


def _bare(use: str, protocol: str, address: Address) -> Listener:
    # Whether PROXY headers are expected is not a property of the socket.
    return Listener(use, protocol, replace(address, proxy=None, limits={}))


def _number(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as bound:
        name = bound.getsockname()
        return name[1] if isinstance(name, tuple) else 0


class Predecessor:
    """The process that this one replaces. `handoff` is what it has passed."""

    def __init__(self, handoff: Handoff, orders: int) -> None:
        self.handoff = handoff
        self.inheritance = Inheritance(handoff.ports)
        self._orders = orders
        #: Whether it has ordered this process to end: the upgrade has failed.
        self.has_given_up = False
        self._send = Reporter(REPORTS)

    @classmethod
    def met(cls, environ: MutableMapping[str, str]) -> Predecessor | None:
        """Read the handoff from the descriptor in the environment variable, and remove the variable; None without it.

        From then on this process prints to the stdout and stderr of the predecessor. Raises `ValueError` if the
        variable or the handoff is invalid.
        """
        number = environ.pop(VARIABLE, None)
        if number is None:
            return None
        if not number.isdigit():
            raise ValueError(f"{VARIABLE} is set, but not by an upgrade; unset it")
        try:
            with open(int(number), "rb", buffering=0, closefd=False) as orders:
                line = _read_line(orders)
            handoff = Handoff.from_line(line)
        except OSError as error:
            raise ValueError(f"{VARIABLE} is set, but not by an upgrade; unset it") from error
        for descriptor in (int(number), REPORTS, *handoff.descriptors()):
            os.set_inheritable(descriptor, False)
        for stream, real, target in ((sys.stdout, STDOUT, 1), (sys.stderr, STDERR, 2)):
            stream.flush()
            os.dup2(real, target)
            os.close(real)
            stream.reconfigure(line_buffering=target == 2 or os.isatty(1))  # type: ignore[union-attr]
        for ignored in handoff.ignored:
            process_signals.ignore(ignored)
        if handoff.systemd:
            activate(handoff.systemd)
        return cls(handoff, int(number))

    def failed(self, *lines: str) -> None:
        """Report why this process cannot take over."""
        self._send(report("failed", *lines))

    def ready(self, numbers: list[int], processes: int) -> None:
        """Report the indices of the ports that this process uses, and the number of processes that will serve."""
        self._send(report("ready", ",".join(map(str, numbers)), str(processes)))

    def serving(self, step: int) -> None:
        """Report that an ordered step is done."""
        self._send(report("serving", str(step)))

    def listen(self, reactor: Any, serve: Callable[[int, int], None], gone: Callable[[], None]) -> None:
        """Call `serve` with each ordered step and the number of steps, and `gone` when the predecessor has ended."""

        def read(arguments: bytes) -> None:
            step, steps = arguments.split()[:2]
            serve(int(step), int(steps))

        def give_up(_: bytes) -> None:
            self.has_given_up = True

        orders: Mapping[bytes, Callable[[bytes], None]] = {b"serve": read, b"end": give_up}
        Orders(reactor, self._orders, orders, gone).startReading()


def _read_line(file: Any) -> bytes:
    """Read a line. The predecessor sends nothing after it before it gets a report."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_HANDOFF and (more := file.read(1 << 16)):
        line += more
    return line
