"""Any plan, reloaded into any other, is as if that had been started fresh; and nobody unaffected was touched."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.base.errors import UserError
from netsvc.plan.plan import Listener, Plan
from tests.builders.processes import free_port
from tests.builders.reloaded import RunningServer, plan, world

#: Ports of this run, where a plan names one.
PORTS = tuple(free_port() for _ in range(3))
_STREAMS = [form for port in PORTS for form in (f"127.0.0.1:{port}", f"{port}", f"tcp:{port}:interface=127.0.0.1")]
_DATAGRAMS = [form for port in PORTS for form in (f"127.0.0.1:{port}", f"{port}")]

texts = st.sampled_from(["red", "green", "blue"])
uses = st.dictionaries(
    st.sampled_from(["one", "two", "three"]),
    st.fixed_dictionaries(
        {"service": st.sampled_from(["says", "adapts"]), "text": texts},
        optional={"limits": st.fixed_dictionaries({"connections": st.sampled_from([50, 60])})},
    ),
    min_size=1,
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Make a plan in which no port is asked for twice. Every use listens somewhere."""
    made = draw(uses)
    listeners = []
    taken = set()
    for key in made:
        for _ in range(draw(st.integers(1, 2))):
            protocol = draw(st.sampled_from(["tcp", "loud", "udp"]))
            address = draw(st.sampled_from(_DATAGRAMS if protocol == "udp" else _STREAMS))
            number = re.search(r"\d{4,}", address)
            assert number is not None
            if (protocol == "udp", number[0]) not in taken:
                taken.add((protocol == "udp", number[0]))
                own = draw(st.sampled_from(["", " connections=40"])) if protocol != "udp" else ""
                listeners.append(f"{key} {protocol} {address}{own}")
    used = {text.split()[0] for text in listeners}
    limits = draw(st.fixed_dictionaries({}, optional={"perip": st.sampled_from([30, 31])}))
    return plan(
        {key: use for key, use in made.items() if key in used},
        *listeners,
        drain=draw(st.sampled_from([1.0, 2.0])),
        **limits,
    )


@dataclass
class Visit:
    """A connection, where it came in and who serves it."""

    client: socket.socket
    listener: Listener
    text: str
    #: Whether a reload has taken its listener, or its service, away.
    affected: bool = False


def visit(made: RunningServer) -> list[Visit]:
    """Connect to every stream listener."""
    visits = []
    for listener in made.host.plan.listeners:
        if listener.address.kind == "stream":
            client, text = made.greeting(listener.address.port)
            visits.append(Visit(client, listener, text.decode()))
            assert text.decode() == expected(made.host.plan, listener)
    return visits


def expected(running: Plan, listener: Listener) -> str:
    text = str(running.uses[listener.use].settings["text"])
    return text.upper() if listener.protocol == "loud" else text


def same_port(one: Listener, other: Listener) -> bool:
    return (one.address.kind, one.address.text) == (other.address.kind, other.address.text)


def affect(visits: Iterable[Visit], then: Plan) -> None:
    """Note whom a reload takes something away."""
    for each in visits:
        if each.listener.use not in then.uses or not any(same_port(each.listener, other) for other in then.listeners):
            each.affected = True


def state(made: RunningServer) -> dict[str, Any]:
    """Tell what can be seen of a host that has no connections from before."""
    running = made.host.running_plan
    answers: dict[tuple[int, str], bytes | None] = {}
    for port in PORTS:
        answers[port, "stream"] = None
        try:
            client, text = made.greeting(port)
        except ConnectionRefusedError:
            pass
        else:
            answers[port, "stream"] = text
            client.close()
            made.turn()
        answers[port, "datagram"] = made.ask(port)
    return {
        "answers": answers,
        "listeners": [
            (listener.listener, listener.service.key, listener.listening and listener.listening.place())
            for listener in running.listeners
        ],
        "services": {
            key: (service.use, dict(service.level.limits), service.level.ledger("stream").live)
            for key, service in running.services.items()
        },
        "limits": dict(running.guard.process.limits),
        "live": len(running.guard.live),
        "counted": running.guard.process.ledger("stream").live,
        "own ports": running.own_ports,
        "leaving": list(running.drains.retiring),
        "drain": running.plan.drain,
        "readers": len(made.reactor.getReaders()),
        "started": sorted(
            core.options["text"]
            for cores in made.cores.values()
            for core in cores
            if "start" in core.calls and "stop" not in core.calls and core.options["fail"] != "start"
        ),
    }


def leave(made: RunningServer, visits: Iterable[Visit]) -> None:
    for each in visits:
        each.client.close()
    made.turn()
    for _ in range(3):
        made.advance(3)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(plans(), min_size=2, max_size=4), st.data())
def test_it_ends_as_if_the_last_plan_had_been_started_fresh(sequence: list[Plan], data: st.DataObject) -> None:
    with world(sequence[-1]) as made:
        fresh = state(made)
    with world(sequence[0]) as made:
        visits = visit(made)
        for then in sequence[1:]:
            ends = data.draw(st.lists(st.sampled_from(range(len(visits))), unique=True) if visits else st.just([]))
            for place in sorted(ends, reverse=True):
                visits.pop(place).client.close()
            made.reload(then)
            affect(visits, then)
            assert all(made.echoes(each.client) for each in visits if not each.affected)
            if data.draw(st.booleans()):
                made.advance(2.5)
                for each in visits:
                    if each.affected:
                        assert made.receive(each.client) == b""
                        each.client.close()
                made.turn()
                visits = [each for each in visits if not each.affected]
                assert all(made.echoes(each.client) for each in visits)
            visits += visit(made)
        leave(made, visits)
        assert state(made) == fresh


@pytest.mark.slow
@settings(max_examples=60)
@given(plans(), plans(), st.sampled_from(["check", "start", "port"]))
def test_a_reload_that_fails_leaves_everything_as_it_was(first: Plan, then: Plan, step: str) -> None:
    with world(first) as made:
        leave(made, [])
        before = state(made)
        leave(made, [])
        visits = visit(made)
        with socket.socket() as taken:
            if step == "port":
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                key, address = next(iter(then.uses)), f"127.0.0.1:{taken.getsockname()[1]}"
                then = replace(then, listeners=(*then.listeners, *plan({key: {}}, f"{key} tcp {address}").listeners))
            else:
                fails = plan({"fails": {"text": "fails", "fail": step}}, "fails tcp 127.0.0.1:0")
                then = replace(then, uses={**then.uses, **fails.uses}, listeners=(*then.listeners, *fails.listeners))
            with pytest.raises(UserError):
                made.reload(then)
        assert all(made.echoes(each.client) for each in visits)
        leave(made, visits)
        assert state(made) == before
        assert made.host.plan is first
