"""A declaration builds what its author declared, and a pointer to it is a twistd command as well."""

from __future__ import annotations

import re
from typing import Any

import pytest
from twisted.application.service import IServiceMaker
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.protocol import DatagramProtocol, Factory, ProcessProtocol, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger
from twisted.plugin import IPlugin
from zope.interface import implementer
from zope.interface.verify import verifyObject

from netsvc.interfaces import Context, INetworkService, IServiceInstance, Options
from netsvc.service import PlainCore, Service, ServicePlugin, datagram_protocol, stream_factory


class Line(Protocol):
    pass


class LineFactory(Factory):
    protocol = Line


class Letter(DatagramProtocol):
    core: Any


@implementer(IProtocol)
class Bare:
    """A protocol by interface alone."""

    factory: Any
    transport: Any = None

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport

    def connectionMade(self) -> None: ...

    def dataReceived(self, data: bytes) -> None: ...

    def connectionLost(self, reason: object = None) -> None: ...


class Core:
    def __init__(self, options: object, context: Context) -> None:
        self.options = options
        self.context = context
        self.calls: list[str] = []
        self.drained: Deferred[None] = succeed(None)

    def check(self) -> None:
        self.calls.append("check")

    def start(self) -> None:
        self.calls.append("start")

    def drain(self) -> Deferred[None]:
        self.calls.append("drain")
        return self.drained

    def stop(self) -> None:
        self.calls.append("stop")


DECLARED = Service("declared", "For the tests below", streams={"line": Line}, datagrams={"letter": Letter})


class Inside:
    declared = DECLARED


def context() -> Context:
    return Context(Clock(), Logger("test"))


def built(source: Any, core: object = "core") -> Any:
    protocol: Any = stream_factory(source, core).buildProtocol(None)  # type: ignore[arg-type]
    protocol.makeConnection(StringTransport())
    return protocol


@pytest.mark.parametrize("source", [Line, LineFactory, lambda core: Line, lambda core: LineFactory])
def test_a_stream_is_a_protocol_class_or_a_factory_class_or_a_callable_that_returns_one(source: Any) -> None:
    protocol = built(source)
    assert isinstance(protocol, Line)
    assert protocol.factory.core == "core"


def test_a_protocol_by_interface_alone_will_do() -> None:
    assert built(Bare).factory.core == "core"


def test_a_factory_object_is_taken_as_it_is() -> None:
    factory = LineFactory()
    assert stream_factory(factory, "core") is factory
    assert not hasattr(factory, "core")


def test_a_callable_is_called_with_the_core() -> None:
    def make(core: str) -> LineFactory:
        factory = LineFactory()
        factory.greeting = f"hello from {core}"  # type: ignore[attr-defined]
        return factory

    assert built(make).factory.greeting == "hello from core"


def test_each_listener_gets_a_factory_of_its_own() -> None:
    assert stream_factory(Line, "core") is not stream_factory(Line, "core")


@pytest.mark.parametrize("source", [None, 5, "Line", object, int, Line(), Letter, ProcessProtocol, lambda core: None])
def test_what_makes_no_stream_is_a_type_error(source: Any) -> None:
    with pytest.raises(TypeError):
        stream_factory(source, "core")


@pytest.mark.parametrize("source", [Letter, lambda core: Letter])
def test_a_datagram_protocol_is_a_class_or_a_callable_that_returns_one(source: Any) -> None:
    protocol: Any = datagram_protocol(source, "core")
    assert isinstance(protocol, Letter)
    assert protocol.core == "core"


def test_a_datagram_protocol_object_is_taken_as_it_is() -> None:
    letter = Letter()
    assert datagram_protocol(letter, "core") is letter
    assert datagram_protocol(lambda core: letter, "core") is letter
    assert not hasattr(letter, "core")


@pytest.mark.parametrize("source", [None, 5, "Letter", object, Line, LineFactory(), lambda core: None])
def test_what_makes_no_datagram_protocol_is_a_type_error(source: Any) -> None:
    with pytest.raises(TypeError):
        datagram_protocol(source, "core")


@pytest.mark.parametrize("make", [stream_factory, datagram_protocol])
def test_what_a_function_returns_instead_is_named_by_its_class(make: Any) -> None:
    class Core:
        def __repr__(self) -> str:
            return "long" * 1000

    with pytest.raises(TypeError, match="Core") as caught:
        make(lambda *core: core[0], Core())
    assert "long" not in str(caught.value)


def test_a_service_lists_its_protocols_streams_first() -> None:
    verifyObject(INetworkService, DECLARED)
    assert list(DECLARED.protocols.items()) == [("line", "stream"), ("letter", "datagram")]
    assert Service("x", "", datagrams={"letter": Letter}).protocols == {"letter": "datagram"}


def test_a_service_without_a_core_has_its_options_and_context_for_one() -> None:
    options, given = Options(), context()
    instance = DECLARED.build(options, given)
    verifyObject(IServiceInstance, instance)
    assert IProtocolFactory.providedBy(instance.protocol("line"))
    factory: Any = instance.protocol("line")
    assert isinstance(factory.core, PlainCore)
    assert (factory.core.options, factory.core.context) == (options, given)
    assert instance.protocol("letter").core is factory.core


def test_every_protocol_of_one_build_shares_one_core_and_another_build_has_a_fresh_one() -> None:
    service = Service("x", "", core=Core, streams={"line": Line}, datagrams={"letter": Letter})
    one, other = (service.build(Options(), context()) for _ in range(2))
    assert one.protocol("line").core is one.protocol("line").core
    assert one.protocol("line").core is one.protocol("letter").core
    assert one.protocol("line").core is not other.protocol("line").core
    assert one.protocol("line") is not one.protocol("line")


def test_an_unknown_protocol_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        DECLARED.build(Options(), context()).protocol("telepathy")


def test_a_core_is_checked_started_drained_and_stopped_if_it_can_be() -> None:
    instance = Service("x", "", core=Core, streams={"line": Line}).build(Options(), context())
    core = instance.protocol("line").core
    instance.check()
    instance.start()
    assert instance.drain() is core.drained
    instance.stop()
    assert core.calls == ["check", "start", "drain", "stop"]


def test_a_core_need_not_be_able_to_do_anything() -> None:
    instance = DECLARED.build(Options(), context())
    instance.check()
    instance.start()
    assert instance.drain() is None
    instance.stop()


@pytest.mark.parametrize("name", ["a", "echo", "chat-bot", "v2", "a1-b2-c3"])
def test_a_name_is_letters_digits_and_single_hyphens(name: str) -> None:
    assert Service(name, "", streams={name: Line}).name == name


@pytest.mark.parametrize("name", ["", "A", "1a", "-a", "a-", "a--b", "a_b", "a b", "a\n", "é", "a.b"])
def test_a_name_that_could_be_no_option_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        Service(name, "", streams={"line": Line})
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        Service("x", "", streams={name: Line})
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        Service("x", "", datagrams={name: Letter})


def test_a_service_that_speaks_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\bservice x\b.*\bprotocol\b"):
        Service("x", "")


def test_one_name_for_a_stream_and_a_datagram_protocol_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\bservice x\b.*\bsame name\b"):
        Service("x", "", streams={"raw": Line}, datagrams={"raw": Letter})


POINTER = ServicePlugin("declared", f"{__name__}:DECLARED", "For the tests")


def test_a_service_may_run_in_several_processes_only_if_it_says_so() -> None:
    assert not DECLARED.parallel
    assert not POINTER.parallel
    assert Service("x", "A test", streams={"tcp": Protocol}, parallel=True).parallel


def test_a_pointer_is_the_service_it_points_to() -> None:
    verifyObject(INetworkService, POINTER)
    assert IPlugin.providedBy(POINTER)
    assert POINTER.load() is DECLARED
    assert POINTER.options is Options
    assert POINTER.protocols is DECLARED.protocols
    instance = POINTER.build(Options(), context())
    assert isinstance(instance.protocol("letter"), Letter)


def test_a_pointer_may_go_to_an_attribute_of_an_attribute_as_an_entry_point_may() -> None:
    assert ServicePlugin("declared", f"{__name__}:Inside.declared", "").load() is DECLARED


def test_a_pointer_imports_nothing_until_it_is_used() -> None:
    pointer = ServicePlugin("x", "no.such.module:service", "Points nowhere")
    assert (pointer.name, pointer.description) == ("x", "Points nowhere")
    with pytest.raises(ModuleNotFoundError):
        pointer.load()
    with pytest.raises(ModuleNotFoundError):
        _ = pointer.options


@pytest.mark.parametrize("target", [f"{__name__}:nothing", __name__, f"{__name__}:"])
def test_a_pointer_to_a_missing_attribute_is_an_attribute_error(target: str) -> None:
    with pytest.raises(AttributeError):
        ServicePlugin("x", target, "").load()


@pytest.mark.parametrize("service", [POINTER, DECLARED])
def test_every_service_is_a_twistd_command_of_its_own(service: Any) -> None:
    maker: Any = IServiceMaker(service)
    verifyObject(IServiceMaker, maker)
    assert maker.tapname == "netsvc-declared"
    assert maker.description == f"{service.description} (alone)"
    assert maker.options.alone == "declared"
    assert callable(maker.makeService)
