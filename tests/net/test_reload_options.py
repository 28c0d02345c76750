"""What a reload does to services whose options have changed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.protocol import DatagramProtocol

from netsvc.server.instances import service_notes
from netsvc.service import Service
from tests.builders.facts import counted, states
from tests.builders.logs import Lines, collected
from tests.builders.reloaded import ONE, TWO, AdaptableCore, Core, Options, SaysDatagrams, plan, world
from tests.conftest import LoggedErrors


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def test_changed_options_hold_for_new_connections_and_the_old_core_serves_the_old_ones_to_their_end() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0")) as made:
        tcp, udp = made.port(), made.port(1)
        assert made.ask(udp) == b"one"
        client, _ = made.greeting(tcp)
        assert made.echoes(client)
        then = plan({"one": {"text": "new"}}, "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0")
        summary = made.reload(then).splitlines()[0]
        assert counted(summary) == {"kept": 2}
        assert states(summary, "changed: ", " one")
        assert (made.port(), made.port(1)) == (tcp, udp)
        assert made.ask(udp) == b"new"
        assert made.greeting(tcp)[1] == b"new"
        made.advance(1000)
        assert made.echoes(client)
        assert made.core("one").calls == ["check", "start"]
        client.close()
        made.turn()
        assert made.core("one").calls == ["check", "start", "stop"]
        assert made.core("new").calls == ["check", "start"]


def test_a_peer_of_datagrams_that_is_known_is_answered_by_the_new_core() -> None:
    with world(plan(ONE, "one udp 127.0.0.1:0")) as made:
        peer = socket.socket(type=socket.SOCK_DGRAM)
        made.clients.append(peer)
        port = made.port()
        assert made.ask(port, client=peer) == b"one"
        made.reload(plan({"one": {"text": "new"}}, "one udp 127.0.0.1:0"))
        assert made.ask(port, client=peer) == b"new"
        made.reload(plan({"one": {"text": "new"}, "two": {"text": "two"}}, "two udp 127.0.0.1:0"))
        assert made.ask(port, client=peer) == b"two"


def test_a_core_that_takes_new_options_in_place_is_not_replaced() -> None:
    adapts = {"one": {"service": "adapts", "text": "one"}}
    with world(plan(adapts, "one tcp 127.0.0.1:0")) as made:
        core = made.core("one")
        client, _ = made.greeting(made.port())
        adapts = {"one": {"service": "adapts", "text": "new"}}
        made.reload(plan(adapts, "one tcp 127.0.0.1:0", "one loud 127.0.0.1:0", "one udp 127.0.0.1:0"))
        assert made.greeting(made.port())[1] == b"new"
        # A listener that is opened in the same reload is on the same core.
        assert made.greeting(made.port(1))[1] == b"NEW"
        assert made.ask(made.port(2)) == b"new"
        core.options = {"text": "same", "fail": ""}
        assert made.greeting(made.port())[1] == made.ask(made.port(2)) == b"same"
        assert made.echoes(client)
        assert core.calls == ["check", "start", "reconfigure"]
        assert made.core("new").calls == ["check"]


def test_a_core_that_does_not_take_them_is_replaced() -> None:
    with world(plan({"one": {"service": "adapts", "text": "one"}}, "one tcp 127.0.0.1:0")) as made:
        made.reload(plan({"one": {"service": "adapts", "text": "new", "fail": "adapt"}}, "one tcp 127.0.0.1:0"))
        assert made.greeting(made.port())[1] == b"new"
        assert made.core("one").calls == ["check", "start", "reconfigure", "stop"]


def lost(summary: str) -> list[str]:
    """Return what a reload says of cores that were replaced."""
    return summary.splitlines()[1:]


@pytest.mark.parametrize("service", ["says", "adapts"])
def test_a_reload_that_changes_no_option_of_a_service_keeps_its_core(service: str) -> None:
    one = {"service": service, "text": "one"}
    with world(plan({"one": one}, "one tcp 127.0.0.1:0")) as made:
        core = made.core("one")
        for then in (
            plan({"one": one}, "one tcp 127.0.0.1:0"),
            plan(
                {"one": {**one, "limits": {"perip": 5}}}, "one tcp 127.0.0.1:0 perip=9", "one udp 127.0.0.1:0", rate=99
            ),
        ):
            assert lost(made.reload(then)) == []
            core.options = {"text": "kept", "fail": ""}
            assert made.greeting(made.port())[1] == b"kept"
        assert made.cores["one"] == [core]


def test_the_answer_names_each_service_whose_core_was_replaced_with_the_options_and_the_cure() -> None:
    uses = {"one": {"text": "one"}, "two": {"service": "adapts", "text": "two"}, "same": {"text": "same"}}
    listeners = [f"{key} tcp 127.0.0.1:0" for key in uses]
    with world(plan(uses, *listeners)) as made:
        uses = {**uses, "one": {"text": "new"}, "two": {"service": "adapts", "text": "two", "fail": "adapt"}}
        first, second = lost(made.reload(plan(uses, *listeners)))
        assert states(first, "one ", "text", "Core", "reconfigure(options)") and "fail" not in first
        assert states(second, "two ", "fail", "reconfigure(options)") and "text" not in second
        uses = {**uses, "one": {"service": "adapts", "text": "new"}}
        [line] = lost(made.reload(plan(uses, *listeners)))
        assert states(line, "one ", "adapts") and "reconfigure" not in line
        # Only reconfigured.
        uses = {**uses, "one": {"service": "adapts", "text": "newer"}}
        assert lost(made.reload(plan(uses, *listeners))) == []


@pytest.mark.parametrize("how", [{"parallel": True, "core": Core}, {}], ids=["parallel", "without a core of its own"])
def test_a_service_that_holds_nothing_has_nothing_to_lose(how: dict[str, Any]) -> None:
    service = Service("plain", "A test", options=Options, datagrams={"udp": DatagramProtocol}, **how)
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        results: list[Any] = []
        for text in ("a", "b"):
            then = plan({"plain": {"service": "plain", "text": text}}, "plain udp 127.0.0.1:0")
            made.host.reload(then, lambda use: service).addBoth(results.append)
            made.turn()
        assert states(results[1], "changed: ", " plain") and lost(results[1]) == []


def test_the_check_says_which_services_a_reload_would_empty() -> None:
    uses = {"one": {"text": "one"}, "two": {"service": "adapts", "text": "two"}}
    with world(plan(uses, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        [note] = service_notes(made.host.plan, made.load, made.clock)
        assert states(note, "one", "text", "fail", "Core", "reconfigure(options)") and "two" not in note


def test_a_core_that_has_taken_them_takes_the_old_ones_back_if_the_reload_fails() -> None:
    uses = {"one": {"service": "adapts", "text": "one"}, "two": {"service": "adapts", "text": "two"}}
    with world(plan(uses, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        uses = {
            "one": {"service": "adapts", "text": "new"},
            "two": {"service": "adapts", "text": "half", "fail": "reconfigure"},
        }
        [line] = made.errors(plan(uses, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0"))
        assert states(line, "two", "RuntimeError: no")
        assert made.core("one").calls[-2:] == made.core("two").calls[-2:] == ["reconfigure", "reconfigure"]
        # The one that failed had taken a part of them.
        assert [made.greeting(made.port(place))[1] for place in (0, 1)] == [b"one", b"two"]


def test_where_something_is_wrong_already_no_core_takes_options_or_is_replaced() -> None:
    uses = {"one": {"text": "one"}, "two": {"service": "adapts", "text": "two"}}
    with world(plan(uses, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        uses = {"one": {"text": "bad", "fail": "start"}, "two": {"service": "adapts", "text": "new"}}
        assert made.errors(plan(uses, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) == ("start fails",)
        assert made.core("two").calls == ["check", "start"]
        assert made.core("new").calls == ["check"]


def test_an_instance_from_before_drains_as_well_when_its_service_is_gone() -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        port = made.port()
        client, _ = made.greeting(port)
        made.reload(plan({**TWO, "one": {"text": "new"}}, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0"))
        # Its port goes on with another service.
        made.reload(plan({"two": {"text": "two"}}, "two tcp 127.0.0.1:0", "two tcp 127.0.0.1:0"))
        assert made.greeting(port)[1] == b"two"
        assert made.core("one").calls[-1] == "drain"
        assert made.echoes(client)
        made.advance(4)
        assert made.receive(client) == b""
        client.close()
        made.turn()
        assert made.core("one").calls[-1] == "stop"


#: More than three times a packet of one byte, headers included.
LONG = b"long answer" * 20


@pytest.mark.parametrize("service", ["says", "adapts"])
def test_peers_that_are_verified_no_more_are_sent_no_more_than_they_send(service: str) -> None:
    class Long(DatagramProtocol):
        def datagramReceived(self, data: bytes, peer: Any) -> None:
            assert self.transport is not None
            self.transport.write(LONG, peer)

    class Verifies(AdaptableCore if service == "adapts" else Core):  # type: ignore[misc]
        @property
        def verifies_peers(self) -> bool:
            return bool(self.options["text"] == "verifies")

    declared = Service("long", "A test", options=Options, core=Verifies, datagrams={"udp": Long})
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        peer = socket.socket(type=socket.SOCK_DGRAM)
        made.clients.append(peer)
        for text, answer in (("verifies", LONG), ("not", b""), ("verifies", LONG)):
            then = plan({"long": {"service": "long", "text": text}}, "long udp 127.0.0.1:0")
            made.host.reload(then, lambda use: declared)
            made.turn()
            assert made.ask(made.port(), b"?", client=peer) == answer


def test_a_listener_may_be_given_another_protocol_or_another_service() -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        port, client = made.port(), made.greeting(made.port())[0]
        summary = made.reload(plan(TWO, "one loud 127.0.0.1:0", "two tcp 127.0.0.1:0"))
        assert counted(summary) == {"kept": 2}
        assert states(summary, "changed: ", "127.0.0.1:0")
        assert made.greeting(port)[1] == b"ONE"
        made.reload(plan({"two": {"text": "two"}}, "two tcp 127.0.0.1:0", "two loud 127.0.0.1:0"))
        greetings = {made.greeting(made.port(place))[1] for place in (0, 1)}
        assert greetings == {b"two", b"TWO"}
        # Its service is gone, and so it drains.
        assert made.core("one").calls[-1] == "drain"
        assert made.echoes(client)
        made.advance(4)
        assert made.receive(client) == b""


def test_a_service_that_was_replaced_is_drained_when_the_process_stops() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        client, _ = made.greeting(made.port())
        made.reload(plan({"one": {"text": "new"}}, "one tcp 127.0.0.1:0"))
        assert made.core("one").calls == ["check", "start"]
        made.host.stopService()
        assert made.core("one").calls == ["check", "start", "drain"]
        client.close()
        made.turn(5)
        assert made.core("one").calls[-1] == made.core("new").calls[-1] == "stop"


def test_it_does_not_grow_with_the_number_of_reloads() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0")) as made:
        client, _ = made.greeting(made.port())
        for number in range(20):
            text = f"text{number % 2}"
            made.reload(plan({"one": {"text": text}}, "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0"))
        running = made.host.running_plan
        assert [len(listener.gates) for listener in running.listeners] == [2, 1]
        assert [len(service.gates) for service in running.services.values()] == [2]
        assert len(running.drains.retiring) == 1
        client.close()
        made.turn()
        assert running.drains.retiring == {}


def test_datagrams_go_back_to_the_old_protocol_if_something_later_fails() -> None:
    with world(plan(TWO, "one udp 127.0.0.1:0", "two udp 127.0.0.1:0")) as made:
        uses = {"one": {"text": "new"}, "two": {"text": "bad", "fail": "startProtocol"}}
        [line] = made.errors(plan(uses, "one udp 127.0.0.1:0", "two udp 127.0.0.1:0"))
        assert states(line, "two udp", "RuntimeError: no")
        assert made.ask(made.port()) == b"one"
        assert made.ask(made.port(1)) == b"two"
        assert made.core("new").calls == ["check", "start", "stop"]


def test_one_protocol_object_that_serves_every_listener_goes_on_with_another_core() -> None:
    class Both(DatagramProtocol):
        def datagramReceived(self, data: bytes, peer: Any) -> None:
            assert self.transport is not None
            self.transport.write(b"both", peer)

    both = Both()
    service = Service("both", "A test", options=Options, datagrams={"udp": both})
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        results: list[Any] = []
        for text in ("a", "b"):
            then = plan({"both": {"service": "both", "text": text}}, "both udp 127.0.0.1:0")
            made.host.reload(then, lambda use: service).addBoth(results.append)
            made.turn()
            assert made.ask(made.port()) == b"both"
        assert list(map(counted, results)) == [{"opened": 1, "closed": 1}, {"kept": 1}]
        assert states(results[1], "changed: ", " both")
        assert both.numPorts == 1


@pytest.mark.parametrize("fails", [False, True])
def test_what_authors_raise_when_they_are_replaced_or_put_back_is_logged_and_stops_nothing(
    fails: bool, logged_errors: LoggedErrors
) -> None:
    listeners = ("one udp 127.0.0.1:0", "two udp 127.0.0.1:0")
    with world(plan(TWO, *listeners)) as made:

        def raises() -> None:
            raise ZeroDivisionError("oops")

        def breaking(use: Any) -> Any:
            service: Any = made.load(use)
            if use.settings["text"] == "new":
                service.sources["udp"] = type("Breaking", (SaysDatagrams,), {"stopProtocol": lambda self: raises()})
            return service

        if fails:
            then = plan({"one": {"text": "new"}, "two": {"text": "bad", "fail": "startProtocol"}}, *listeners)
        else:
            made.host.running_plan.listeners[0].port.protocol.stopProtocol = raises
            then = plan({"one": {"text": "fine"}, "two": {"text": "two"}}, *listeners)
        results: list[Any] = []
        made.host.reload(then, breaking).addBoth(results.append)
        made.turn()
        assert isinstance(results[0], str) is not fails
        assert made.ask(made.port()) == (b"one" if fails else b"fine")
        assert made.ask(made.port(1)) == b"two"
        assert [failure.type for failure in logged_errors.flush(ZeroDivisionError)] == [ZeroDivisionError]
