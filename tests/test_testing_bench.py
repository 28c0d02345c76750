"""A service is built and connected in memory as the host does it with sockets."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface.verify import verifyObject

from netsvc.errors import MistakeError, PluginError
from netsvc.interfaces import Context, IServiceInstance, Options
from netsvc.service import Service, ServicePlugin
from netsvc.testing import MemoryReactor, bind, build, connect, load
from tests.test_testing_wire import Datagrams, Recorder


class Core:
    def __init__(self, options: Options, context: Context) -> None:
        self.events: list[str] = []

    def check(self) -> None:
        self.events.append("check")

    def start(self) -> None:
        self.events.append("start")

    def drain(self) -> None:
        self.events.append("drain")

    def stop(self) -> None:
        self.events.append("stop")


class Volume(Options):
    optParameters = [["volume", None, 3, "How loud", int]]


class Picky(Factory):
    def buildProtocol(self, addr: object) -> None:
        return None


service = Service(
    "demo", "For tests", options=Volume, core=Core, streams={"tcp": Recorder, "no": Picky}, datagrams={"udp": Datagrams}
)


class TestBench:
    def test_provides_what_it_holds(self) -> None:
        bench = build(service, {"volume": 5})
        verifyObject(IServiceInstance, bench)
        assert bench.options["volume"] == 5
        bench.check()
        bench.start()
        assert bench.drain() is None
        bench.stop()
        assert bench.core.events == ["check", "start", "drain", "stop"]

    def test_wrong_settings_are_a_mistake(self) -> None:
        with pytest.raises(MistakeError, match="--volume loud"):
            build(service, {"volume": "loud"})

    def test_the_clock_is_the_reactor_of_the_context(self) -> None:
        clock = MemoryReactor()
        assert build(service, clock=clock).context.reactor is clock

    def test_a_whole_context_is_taken_as_it_is(self) -> None:
        context = Context(MemoryReactor(), Logger("mine"))
        assert build(service, context=context).context is context

    def test_connections_to_one_protocol_share_a_factory(self) -> None:
        bench = build(service)
        (one, _), (two, transport) = connect(bench, "tcp"), connect(bench, "tcp")
        assert one.factory is two.factory
        assert one.factory.core is bench.core
        transport.feed(b"x")
        assert (one.events, two.events) == (["made"], ["made", b"x"])

    def test_a_refused_connection_is_an_error(self) -> None:
        with pytest.raises(ConnectionRefusedError, match="no takes no connection from"):
            connect(build(service), "no")

    def test_datagram_protocols_are_bound(self) -> None:
        bench = build(service)
        protocol, transport = bind(bench, "udp", host=UNIXAddress("/run/x"))
        assert protocol.core is bench.core
        assert transport.getHost() == UNIXAddress("/run/x")
        transport.feed(b"x", None)
        assert protocol.events == [(b"x", None)]

    @pytest.mark.parametrize(
        "named",
        [
            "echo",
            "netsvc.services.echo.service:service",
            ServicePlugin("echo", "netsvc.services.echo.service:service", "Send back what comes"),
        ],
    )
    def test_a_service_is_found_by_any_of_its_names(self, named: Any) -> None:
        assert load(named).description == "Send back what comes (RFC 862)"

    def test_a_declaration_is_itself(self) -> None:
        assert load(service) is service

    def test_an_unknown_name_is_a_plugin_error(self) -> None:
        with pytest.raises(PluginError, match="did you mean echo"):
            load("ecko")
