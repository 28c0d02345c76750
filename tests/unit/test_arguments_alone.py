"""The command of one service alone, and whatever words may come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netsvc.base.errors import UserError
from netsvc.config.arguments import read_arguments
from netsvc.plan.plan import ServiceUse
from tests.builders.arguments import THIS, catalogue, errors, listens, mistake, plan
from tests.builders.facts import lacks

CATALOGUE = catalogue()


def test_a_service_alone_has_options_without_its_name_and_bare_addresses() -> None:
    made = plan("9001", "--v2", "9002", "--letter=9003", "--size", "7", "unix:/run/x", "--drain", "1", alone="gate")
    assert listens(made) == [
        ("gate", "line", "stream", "9001"),
        ("gate", "v2", "stream", "9002"),
        ("gate", "letter", "datagram", "9003"),
        ("gate", "line", "stream", "unix:/run/x"),
    ]
    assert made.uses == {"gate": ServiceUse("gate", {"size": "7"})}
    assert made.drain == 1


def test_a_service_alone_has_its_mistakes_without_its_name() -> None:
    lines = errors("x", "--siz", "1", "--text", "--letter", "--size", "11", alone="gate")
    facts = (
        ("x: ", "HOST:PORT"),
        ("--siz: gate ", "--size?"),
        ("--text ", "needs a value"),
        ("--letter ", "--letter 9001"),
        ("--size 11: ", "0 to 10"),
    )
    assert [lacks(line, *each) for line, each in zip(lines, facts, strict=True)] == [[]] * len(facts)
    assert lacks(mistake("--size", "1", alone="gate"), "--size ", " gate ", "an ADDRESS") == []
    assert mistake("0", "--drian", "1", alone="gate").endswith("; did you mean --drain?")
    assert mistake("0", "--serve", f"{THIS}:Line=1", alone="gate").startswith("--serve: gate ")
    assert mistake("0", "--", alone="gate").startswith("--: gate ")


def test_an_unknown_service_alone_is_a_mistake() -> None:
    assert lacks(mistake("0", alone="gat"), "gat", " gate?") == []


WORDS = st.sampled_from(
    [
        "--tcp", "--udp", "--echo", "--echo-tcp", "--reply", "--reply-text", "--reply-encoding", "--reply-amplify",
        "--gate", "--gate-size", "--gate-loud", "--gate-letter", "--broken", "--twice", "--drain", "--help", "--",
        "--serve", f"{THIS}:Line=0", f"{THIS}:EXAMPLES=0", "./no/such.py:X=1", "9001", "0", "127.0.0.1:9001", "udp:1",
        "unix:/run/x", "ssl:1:privateKey=no.pem", "systemd:domain=INET:index=0", "haproxy:tcp:0", "tcp:", "gbk",
        "--size", "--text", "--loud", "--line", "-h", "", "\x1b[2J", "\udcff", "\n", "--gate=\n", "--gate-size=\u202e",
    ]
)  # fmt: skip


@given(
    words=st.lists(WORDS | st.text(max_size=8) | st.text(max_size=8).map("--".__add__), max_size=12),
    alone=st.sampled_from([None, None, "gate", "reply", "broken", "nobody"]),
)
def test_any_words_give_a_plan_or_printable_lines(words: list[str], alone: str | None) -> None:
    lines: tuple[str, ...] = ("a plan",)
    try:
        assert read_arguments(words, CATALOGUE, alone).listeners
    except UserError as error:
        lines = error.errors
    assert lines
    for line in lines:
        assert line.encode()
        assert line.splitlines() == [line]
        assert not set(line) & set("\x1b\u202e\x00")
