"""What clients of IRCv3 get besides: tags, labels, echoes, batches, history, read markers."""

from __future__ import annotations

import pytest

from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.irc.message import IrcMessage, parse_message
from netsvc.services.chat.store.interface import StoreLimits
from tests.builders.chat import account, build_core
from tests.builders.irc import IrcClient, command, irc_client

LABELS = ("labeled-response", "batch", "echo-message", "message-tags")


@pytest.fixture
def core() -> ChatCore:
    return build_core(rate=1_000_000, burst=1_000_000, plain_passwords=True)


def messages(lines: list[str]) -> list[IrcMessage]:
    return [parse_message(line.encode()) for line in lines]


def test_each_client_gets_what_it_asked_for(core: ChatCore) -> None:
    plain, rich = irc_client(core, "plain"), irc_client(core, "rich", "message-tags", "server-time", "account-tag")
    for client in (plain, rich):
        client.sends("JOIN #den")
    core.accounts.restore([account("ann")])
    ann = irc_client(core, "ann2", "message-tags", "sasl", "echo-message")
    ann.authenticate("ann", "correct horse")
    ann.sends("JOIN #den")
    plain.sees(), rich.sees()
    core.context.reactor.advance(1.5)
    (echo,) = messages(ann.sends("@+typing=done;private=x PRIVMSG #den :hi"))
    assert plain.sees() == [f":{ann.protocol.session.mask(core.find('ann'))} PRIVMSG #den :hi"]
    (got,) = messages(rich.sees())
    assert got.tags == {
        "time": "1970-01-01T00:00:01.500Z",
        "account": "ann",
        "msgid": echo.tags["msgid"],
        "+typing": "done",
    }
    ann.sends("@+typing=active TAGMSG #den", "TAGMSG #den", "MODE ann +B", "NOTICE #den :note")
    assert [command(line) for line in plain.sees()] == ["NOTICE"]
    tagged, noticed = messages(rich.sees())
    assert (tagged.command, tagged.tags["+typing"]) == ("TAGMSG", "active") and "bot" in noticed.tags
    assert tagged.tags["msgid"] != noticed.tags["msgid"]


def test_who_comes_and_how_members_are(core: ChatCore) -> None:
    names = ("extended-join", "away-notify", "account-notify", "setname", "multi-prefix", "userhost-in-names")
    rich, plain = irc_client(core, "rich", *names), irc_client(core, "plain")
    rich.sends("JOIN #den", "MODE #den +v rich"), plain.sends("JOIN #den")
    rich.sees()
    ann = irc_client(core, "ann", "setname")
    ann.sends("AWAY :tea")
    ann.sends("JOIN #den")
    joined, away = messages(rich.sees())
    assert joined.params == ("#den", "*", "ann the person") and (away.command, away.params) == ("AWAY", ("tea",))
    ann.sends("AWAY", "SETNAME :Ann of Cleves", "REGISTER * * longenough")
    assert [(each.command, each.params) for each in messages(rich.sees())] == [
        ("AWAY", ()),
        ("SETNAME", ("Ann of Cleves",)),
        ("ACCOUNT", ("ann",)),
    ]
    assert [command(line) for line in plain.sees()] == ["JOIN"]
    (names_reply, _) = messages(rich.sends("NAMES #den"))
    assert names_reply.params[3].startswith("@+rich!~rich@ip-")
    assert messages(plain.sends("NAMES #den"))[0].params[3] == "@rich plain ann"
    assert ann.codes("SETNAME :") == ["FAIL"]


def test_labels(core: ChatCore) -> None:
    ann, bob = irc_client(core, "ann", *LABELS), irc_client(core, "bob", *LABELS)
    bob.sends("JOIN #den")

    def labelled(line: str) -> list[IrcMessage]:
        return messages(ann.sends(f"@label=x {line}"))

    (pong,) = labelled("PING y")
    assert (pong.command, pong.tags) == ("PONG", {"label": "x"})
    assert [each.command for each in labelled("PONG y")] == ["ACK"]
    opening, joined, *_, end = labelled("JOIN #den")
    assert (opening.params[1], opening.tags) == ("labeled-response", {"label": "x"})
    assert joined.tags == {"batch": opening.params[0][1:]} and end.params == (f"-{opening.params[0][1:]}",)
    bob.sees()
    (echo,) = labelled("PRIVMSG #den :hi")
    (got,) = messages(bob.sees())
    assert echo.tags["label"] == "x" and "label" not in got.tags and echo.tags["msgid"] == got.tags["msgid"]
    assert [each.command for each in labelled("PRIVMSG #den,bob :hi")] == ["BATCH", "PRIVMSG", "PRIVMSG", "BATCH"]
    own, echo = messages(ann.sends("PRIVMSG ann :self"))
    assert own.params == echo.params == ("ann", "self")
    (history, *_) = labelled("CHATHISTORY LATEST #den * 5")
    assert history.params[1] == "chathistory" and history.tags["label"] == "x"
    assert [each.command for each in labelled("FOO_BAR")] == ["421"]


def said(lines: list[str]) -> list[str]:
    return [each.params[1] for each in messages(lines) if each.command == "PRIVMSG"]


PLAYBACK = ("draft/event-playback", "draft/chathistory", "batch", "message-tags", "server-time", "extended-join")


def test_history_with_what_else_happened(core: ChatCore) -> None:
    clock = core.context.reactor
    clock.advance(1)
    ann = irc_client(core, "ann", *PLAYBACK)
    bob, carl = irc_client(core, "bob"), irc_client(core, "carl", "draft/chathistory", "batch")
    for client, line in (
        (ann, "JOIN #den"),
        (bob, "JOIN #den"),
        (ann, "PRIVMSG #den :1"),
        (ann, "TOPIC #den :tea"),
        (bob, "NICK rob"),
        (bob, "PRIVMSG #den :2"),
        (ann, "MODE #den +v rob"),
        (ann, "KICK #den rob :out"),
        (bob, "JOIN #den"),
        (bob, "PART #den :bye"),
        (bob, "JOIN #den"),
        (bob, "QUIT"),
        (carl, "JOIN #den"),
    ):
        clock.advance(1)
        client.sends(line)
    everything = ["JOIN", "JOIN", "1", "TOPIC", "NICK", "2", "MODE", "KICK", "JOIN", "PART", "JOIN", "QUIT", "JOIN"]

    def asks(what: str) -> list[IrcMessage]:
        ann.sees()
        first, *items, last = messages(ann.sends(f"CHATHISTORY {what}"))
        assert first.command == last.command == "BATCH"
        assert {each.tags["batch"] for each in items} <= {first.params[0][1:]}
        return items

    def shown(items: list[IrcMessage]) -> list[str]:
        return [each.params[1] if each.command == "PRIVMSG" else each.command for each in items]

    items = asks("LATEST #den * 100")
    assert shown(items) == everything
    assert items[0].source.startswith("ann!") and items[0].params == ("#den", "*", "ann the person")
    assert [each.tags["time"] for each in items] == sorted(each.tags["time"] for each in items)
    ids = [each.tags["msgid"] for each in items]
    assert len(set(ids)) == len(ids)
    for kind in ("msgid", "time"):
        for place in range(len(items)):
            point = f"{'timestamp' if kind == 'time' else kind}={items[place].tags[kind]}"
            assert shown(asks(f"AFTER #den {point} 3")) == everything[place + 1 : place + 4]
            assert shown(asks(f"BEFORE #den {point} 3")) == everything[max(0, place - 3) : place]
            assert shown(asks(f"LATEST #den {point} 3")) == everything[place + 1 :][-3:]
            assert shown(asks(f"AROUND #den {point} 3")) == everything[max(0, place - 1) : place + 2]
            far = f"{'timestamp' if kind == 'time' else kind}={items[-1].tags[kind]}"
            assert shown(asks(f"BETWEEN #den {point} {far} 3")) == everything[place + 1 : -1][:3]
            assert shown(asks(f"BETWEEN #den {far} {point} 3")) == everything[place + 1 : -1][-3:]
    # Who has not asked for it gets messages only.
    carl.sees()
    assert carl.codes("CHATHISTORY LATEST #den * 100") == ["BATCH", "PRIVMSG", "PRIVMSG", "BATCH"]


def test_history(core: ChatCore) -> None:
    ann = irc_client(core, "ann", "draft/chathistory", "batch", "message-tags", "server-time", "echo-message")
    ann.sends("JOIN #den")
    ids, times = [], []
    for number in range(6):
        core.context.reactor.advance(1)
        (echo,) = messages(ann.sends(f"PRIVMSG #den :{number}"))
        ids.append(f"msgid={echo.tags['msgid']}")
        times.append(f"timestamp={echo.tags['time']}")

    def asks(what: str) -> list[str]:
        return said(ann.sends(f"CHATHISTORY {what}"))

    assert asks("LATEST #den * 2") == ["4", "5"]
    assert asks(f"LATEST #den {ids[3]} 10") == ["4", "5"]
    for points in (ids, times):
        assert asks(f"BEFORE #den {points[2]} 10") == ["0", "1"]
        assert asks(f"BEFORE #den {points[3]} 1") == ["2"]
        assert asks(f"AFTER #den {points[3]} 10") == ["4", "5"]
        assert asks(f"AFTER #den {points[0]} 2") == ["1", "2"]
        assert asks(f"AROUND #den {points[2]} 3") == ["1", "2", "3"]
        assert asks(f"BETWEEN #den {points[1]} {points[4]} 10") == ["2", "3"]
        assert asks(f"BETWEEN #den {points[4]} {points[1]} 1") == ["3"]
    assert asks("BEFORE #den timestamp=2030-01-01T00:00:00.000Z 1") == ["5"]
    span = "timestamp=1970-01-01T00:00:00.000Z timestamp=1971-01-01T00:00:00.000Z"
    targets = messages(ann.sends(f"CHATHISTORY TARGETS {span} 5"))
    assert [each.params[:2] for each in targets if each.command == "CHATHISTORY"] == [("TARGETS", "#den")]


def test_who_knows_no_history_is_shown_the_last_messages(core: ChatCore) -> None:
    ann = irc_client(core, "ann")
    ann.sends("JOIN #den", "PRIVMSG #den :before", "PRIVMSG #den :\x01ACTION waves\x01")
    old, new = irc_client(core, "old"), irc_client(core, "new", "server-time")
    assert said(old.sends("JOIN #den")) == []
    assert said(new.sends("JOIN #den")) == ["before", "\x01ACTION waves\x01"]


def test_the_clients_of_an_account_share_read_markers(core: ChatCore) -> None:
    core.accounts.restore([account("ann")])
    core.archive.store.put(account("ann"))
    phone, desk, guest = (IrcClient(core) for _ in range(3))
    for number, client in enumerate((phone, desk)):
        client.authenticate("ann", "correct horse")
        client.sends("CAP REQ draft/read-marker", f"NICK ann{number}", "USER a 0 * :a", "CAP END")
    guest.register("guest-like", "draft/read-marker")
    first, later = "timestamp=2026-01-01T00:00:00.000Z", "timestamp=2026-01-02T00:00:00.250Z"
    assert [each.params for each in messages(phone.sends(f"MARKREAD #den {later}"))] == [("#den", later)]
    assert [each.params for each in messages(desk.sees())][-1] == ("#den", later)
    assert [each.params for each in messages(desk.sends(f"MARKREAD #den {first}"))] == [("#den", later)]
    assert messages(guest.sends("MARKREAD #den"))[-1].params == ("#den", "*")
    assert [each.command for each in messages(desk.sends("JOIN #den"))] == ["JOIN", "MARKREAD", "353", "366"]
    desk.lose()
    phone.lose()
    core.markers._markers.clear()
    core.markers._loaded.clear()
    again = IrcClient(core)
    again.sends("CAP REQ draft/read-marker")
    again.authenticate("ann", "correct horse")
    again.sends("NICK ann3", "USER a 0 * :a", "CAP END")
    assert messages(again.sends("MARKREAD #den"))[-1].params == ("#den", later)


def test_an_account_has_so_many_markers(core: ChatCore) -> None:
    most = StoreLimits().markers
    for number in range(most + 5):
        core.markers.advance("ann", f"#r{number}", 1)
    assert [core.markers.get("ann", f"#r{number}") for number in (4, 5, most)] == [0, 1, 1]


def test_a_close_watcher_hears_how_a_member_is(core: ChatCore) -> None:
    close = irc_client(core, "close", "extended-monitor", "away-notify")
    other = irc_client(core, "other", "away-notify")
    for client in (close, other):
        client.sends("MONITOR + ann")
    ann = irc_client(core, "ann")
    close.sees(), other.sees()
    ann.sends("AWAY :tea", "NICK Ann")
    assert close.codes() == ["AWAY"] and other.codes() == []


def test_capabilities_of_a_connection() -> None:
    core = build_core(irc_sts_port=6697, plain_passwords=True)
    client = IrcClient(core)
    offer = client.sends("CAP LS 302")[0]
    assert " sts=port=6697" in offer and " sasl=PLAIN" in offer
    assert client.codes("CAP REQ sts", "CAP REQ -cap-notify", "CAP LIST") == ["CAP"] * 3
    old = IrcClient(core)
    assert "=" not in old.sends("CAP LS")[0]
    assert " ACK " in old.sends("CAP REQ :batch cap-notify")[0] and " ACK " in old.sends("CAP REQ :-batch")[0]
    assert old.sends("CAP LIST")[0].endswith(" LIST cap-notify")


def test_a_room_that_had_to_be_closed_is_left(core: ChatCore) -> None:
    ann = irc_client(core, "ann")
    ann.sends("JOIN #den")
    core._close(core.rooms.open("den", ""))
    assert ann.sees()[0].split()[1:4] == ["KICK", "#den", "ann"]
