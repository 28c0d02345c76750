"""The guard around the ports that a tree of Twisted services opens, where the services show them."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.application.internet import (
    SSLServer,
    StreamServerEndpointService,
    TCPServer,
    UNIXServer,
)
from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock

from netsvc.embedded.tree import place_of, surround
from netsvc.guard import GuardedFactory
from netsvc.reactor.accept import BACKLOG
from tests.builders.acme import Counting
from tests.builders.census import census
from tests.builders.trees import Broken, connect, is_refused, surrounded


def test_an_endpoint_service_gets_the_guard_and_keeps_its_factory() -> None:
    memory: Any = MemoryReactorClock()
    factory = Counting()
    service = StreamServerEndpointService(TCP4ServerEndpoint(memory, 8080, interface="127.0.0.1"), factory)
    ports = surrounded(service, {"perip": 1}, memory)
    assert service.factory is factory
    service.privilegedStartService()
    [(port, guarded, backlog, interface)] = memory.tcpServers
    assert (port, interface, backlog) == (8080, "127.0.0.1", BACKLOG)
    assert isinstance(guarded, GuardedFactory)
    first = connect(guarded)
    assert not is_refused(first)
    assert is_refused(connect(guarded))
    assert [label for label, _ in ports.open()] == ["acme"]
    assert census(ports.guard) == {"acme": 1}
    first.loseConnection()
    assert not is_refused(connect(guarded))
    ports.guard.close()


def test_the_limits_of_a_guard_prefix_are_those_of_its_listener() -> None:
    memory: Any = MemoryReactorClock()
    endpoint = serverFromString(memory, "guard:connections=1:tcp:8080")
    service = StreamServerEndpointService(endpoint, Counting())
    surrounded(service, {"perip": 5}, memory)
    service.privilegedStartService()
    [(_, guarded, _, _)] = memory.tcpServers
    assert [level.limits.get("connections") for level in guarded.gate.levels] == [20_000, None, 1]
    # Not one guard in another.
    assert isinstance(guarded.factory, Counting)


@pytest.mark.parametrize("keyword", [False, True])
def test_a_tcp_server_is_reached_wherever_it_has_its_factory(keyword: bool) -> None:
    memory: Any = MemoryReactorClock()
    factory = Counting()
    service = TCPServer(8080, factory=factory) if keyword else TCPServer(8080, factory)
    surrounded(service, {"connections": 1}, memory)
    service.privilegedStartService()
    service.startService()
    [(port, guarded, backlog, interface)] = memory.tcpServers
    assert (port, backlog, interface) == (8080, 4096, "")
    assert not is_refused(connect(guarded))
    assert is_refused(connect(guarded))
    guarded.guard.close()


def test_a_server_that_brings_its_own_reactor_and_backlog_keeps_them() -> None:
    memory: Any = MemoryReactorClock()
    service: Any = TCPServer(8080, Counting(), 7, "127.0.0.1", reactor=memory)
    surrounded(service)
    service.startService()
    [(_, guarded, backlog, interface)] = memory.tcpServers
    assert (backlog, interface) == (7, "127.0.0.1")
    assert isinstance(guarded, GuardedFactory)
    # What else a reactor can do, it still can.
    assert service.reactor.callLater(1, lambda: None) in memory.getDelayedCalls()


def test_unix_and_ssl_servers_are_reached() -> None:
    memory, context = MemoryReactorClock(), object()
    tree = MultiService()
    UNIXServer("/run/acme", Counting(), mode=0o600).setServiceParent(tree)
    SSLServer(8443, Counting(), context).setServiceParent(tree)
    surrounded(tree, on=memory)
    tree.privilegedStartService()
    [(path, guarded, _, mode, _)] = memory.unixServers
    assert (path, mode) == ("/run/acme", 0o600)
    assert isinstance(guarded, GuardedFactory)
    [(port, guarded, given, _, _)] = memory.sslServers
    assert (port, given) == (8443, context)
    assert isinstance(guarded, GuardedFactory)


def test_the_whole_tree_is_gone_through_and_what_is_added_later_too() -> None:
    memory: Any = MemoryReactorClock()
    tree, branch = MultiService(), MultiService()
    branch.setServiceParent(tree)
    TCPServer(1, Counting()).setServiceParent(branch)
    surrounded(tree, on=memory)
    tree.privilegedStartService()
    tree.startService()
    late = MultiService()
    TCPServer(2, Counting()).setServiceParent(late)
    late.setServiceParent(branch)
    assert [(each[0], type(each[1])) for each in memory.tcpServers] == [(1, GuardedFactory), (2, GuardedFactory)]


def test_who_has_a_name_can_still_be_found_and_removed() -> None:
    tree = MultiService()
    surrounded(tree)
    service = Service()
    service.setName("one")
    service.setServiceParent(tree)
    assert tree.getServiceNamed("one") is service
    service.disownServiceParent()
    assert list(tree) == []


def test_a_factory_is_stopped_when_its_ports_are_closed_and_its_connections_drained() -> None:
    memory: Any = MemoryReactorClock()
    factory = Counting()
    tree = MultiService()
    for port in (1, 2):
        TCPServer(port, factory).setServiceParent(tree)
    ports = surrounded(tree, on=memory)
    tree.privilegedStartService()
    # A reactor in memory starts no factory, as real ones do.
    for _, guarded, _, _ in memory.tcpServers:
        guarded.doStart()
    for _, guarded, _, _ in memory.tcpServers:
        guarded.doStop()
    assert factory.calls == ["start"]
    ports.release()
    assert factory.calls == ["start", "stop"]


def test_a_factory_that_counts_nothing_is_not_started_twice() -> None:
    class Plain:
        """The least that is a factory."""

        started = 0

        def doStart(self) -> None:
            self.started += 1

        def doStop(self) -> None:
            self.started -= 1

        def buildProtocol(self, addr: Any) -> Any:
            return Protocol()

    memory: Any = MemoryReactorClock()
    plain = Plain()
    service = TCPServer(1, plain)
    ports = surrounded(service, on=memory)
    service.startService()
    memory.tcpServers[0][1].doStart()
    assert plain.started == 1
    ports.release()
    assert plain.started == 1


class Elsewhere:
    """A port that is neither at a host nor at a path."""

    def getHost(self) -> Any:
        return SimpleNamespace()

    def stopListening(self) -> None:
        pass


def test_what_an_endpoint_opens_and_nobody_can_close_is_no_port() -> None:
    pipe = Broken()
    service = StreamServerEndpointService(pipe, Counting())
    ports = surrounded(service)
    service.privilegedStartService()
    pipe.waiting.callback(object())
    assert (ports.pending, ports.open()) == (0, [])


def test_a_port_that_cannot_be_opened_is_told_and_no_service_logs_it() -> None:
    failures: list[Any] = []
    error = CannotListenError("", 8080, OSError(errno.EADDRINUSE, "in use"))
    quiet = StreamServerEndpointService(Broken(error), Counting())
    ports = surrounded(quiet)
    ports.failed = failures.append
    quiet.privilegedStartService()
    assert [failure.value for failure in failures] == [error]
    # One that would raise, as all of twistd's own do, raises what says nothing.
    loud = StreamServerEndpointService(Broken(error), Counting())
    loud._raiseSynchronously = True
    surround(loud, ports)
    with pytest.raises(CancelledError):
        loud.privilegedStartService()
    assert len(failures) == 2
    assert ports.open() == []


def test_an_endpoint_that_takes_its_time_is_pending_until_it_is_open_or_its_service_stops() -> None:
    slow, other = Broken(), Broken()
    services = [StreamServerEndpointService(each, Counting()) for each in (slow, other)]
    tree = MultiService()
    for service in services:
        service.setServiceParent(tree)
    ports = surrounded(tree)
    opened: list[str] = []
    ports.opened = lambda label, listening: opened.append(label)
    ports.failed = lambda failure: opened.append("failed")
    tree.privilegedStartService()
    tree.startService()
    assert (ports.pending, opened) == (2, [])
    slow.waiting.callback(Elsewhere())
    assert [place_of(listening) for _, listening in ports.open()] == ["a SimpleNamespace"]
    assert (ports.pending, opened) == (1, ["acme"])
    services[1].stopService()
    assert (ports.pending, opened) == (0, ["acme"])
