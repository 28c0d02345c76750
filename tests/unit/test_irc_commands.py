"""What clients of IRC send, and what they are answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.errors import UserError
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.irc.commands import IRC_COMMANDS
from netsvc.services.chat.store.interface import StoreError
from tests.builders.chat import PASSWORD, Client, account, build_core
from tests.builders.irc import IrcClient, command, irc_client
from tests.builders.web import WebClient

#: What `ann`, who operates #den where `bob` is, too, is answered.
ANSWERS = [
    ("USER a b c d", ["462"]),
    ("PASS a", ["462"]),
    ("FOO", ["421"]),
    (":x", ["421"]),
    ("NICK bob", ["433"]),
    ("NICK ann", []),
    ("NICK Ann", ["NICK"]),
    ("NICK a,b", ["432"]),
    ("JOIN lobby", ["403"]),
    ("JOIN #a:b", ["403"]),
    ("JOIN #den", []),
    ("JOIN #a,#b", ["JOIN", "353", "366", "JOIN", "353", "366"]),
    ("JOIN 0", ["PART"]),
    ("PART #nowhere", ["403"]),
    ("PART #den :bye", ["PART"]),
    ("PART #lobby", ["442"]),
    ("TOPIC #den", ["331"]),
    ("TOPIC #den :tea", ["TOPIC"]),
    ("TOPIC #lobby :tea", ["442"]),
    ("TOPIC #nowhere", ["403"]),
    ("NAMES #den", ["353", "366"]),
    ("NAMES #nowhere", ["366"]),
    ("NAMES", ["366"]),
    ("LIST", ["321", "322", "323"]),
    ("LIST #d*", ["321", "322", "323"]),
    ("LIST !#d*", ["321", "323"]),
    ("LIST >1", ["321", "322", "323"]),
    ("LIST <2", ["321", "323"]),
    ("LIST C>5,T<5", ["321", "323"]),
    ("KICK #den bob", ["KICK"]),
    ("KICK #den,#den bob,ann", ["KICK", "400"]),
    ("KICK #den nobody", ["401"]),
    ("KICK #lobby bob", ["442"]),
    ("INVITE bob #den", ["443"]),
    ("INVITE nobody #den", ["401"]),
    ("INVITE bob #nowhere", ["403"]),
    ("INVITE bob", ["461"]),
    ("INVITE", ["337"]),
    ("PRIVMSG", ["411"]),
    ("PRIVMSG bob", ["412"]),
    ("PRIVMSG bob :", ["412"]),
    ("PRIVMSG bob :\x02\x0f", ["412"]),
    ("PRIVMSG bob :hi", []),
    ("PRIVMSG nobody :hi", ["401"]),
    ("PRIVMSG #nowhere :hi", ["403"]),
    ("PRIVMSG #lobby :hi", ["404"]),
    ("PRIVMSG a,b,c,d,e :hi", ["407"]),
    ("PRIVMSG bob :\x01VERSION\x01", ["404"]),
    ("PRIVMSG #den :hi", []),
    ("NOTICE nobody :hi", []),
    ("NOTICE #lobby :hi", []),
    ("NOTICE bob", []),
    ("TAGMSG bob", []),
    ("TAGMSG", ["461"]),
    ("AWAY :out", ["306"]),
    ("AWAY", ["305"]),
    ("SETNAME x", ["421"]),
    ("MODE ann", ["221"]),
    ("MODE ann +iB", ["MODE"]),
    ("MODE ann +x", ["501"]),
    ("MODE ann +o", []),
    ("MODE bob +i", ["502"]),
    ("MODE nobody", ["401"]),
    ("MODE #nowhere", ["403"]),
    ("MODE #den", ["324", "329"]),
    ("MODE #den +mt-n", ["MODE"]),
    ("MODE #den +k sesame", ["MODE"]),
    ("MODE #den +k :a b", ["696"]),
    ("MODE #den +l 5", ["MODE"]),
    ("MODE #den +l x", ["696"]),
    ("MODE #den -l", []),
    ("MODE #den +y", ["472"]),
    ("MODE #den +o", []),
    ("MODE #den +o bob", ["MODE"]),
    ("MODE #den +v bob", ["MODE"]),
    ("MODE #den -v bob", []),
    ("MODE #den +o nobody", ["401"]),
    ("MODE #den b", ["368"]),
    ("MODE #den e", ["349"]),
    ("MODE #den I", ["347"]),
    ("MODE #den +b dora!*@*", ["MODE"]),
    ("MODE #den -b dora!*@*", []),
    ("MODE #den +b *!*@*", ["696"]),
    ("WHO", ["352", "352", "315"]),
    ("WHO #den", ["352", "352", "315"]),
    ("WHO bob", ["352", "315"]),
    ("WHO b*", ["352", "315"]),
    ("WHO nobody", ["315"]),
    ("WHO #nowhere", ["315"]),
    ("WHO * o", ["315"]),
    ("WHO bob %tcuihsnfdlaor,12", ["354", "315"]),
    ("WHOIS", ["431"]),
    ("WHOIS bob", ["311", "319", "312", "317", "318"]),
    ("WHOIS ann", ["311", "319", "312", "378", "379", "317", "318"]),
    ("WHOIS nobody", ["401", "318"]),
    ("WHOIS x bob", ["402"]),
    ("WHOWAS", ["431"]),
    ("WHOWAS nobody", ["406", "369"]),
    ("USERHOST bob nobody", ["302"]),
    ("ISON :bob nobody", ["303"]),
    ("MONITOR + bob,nobody,*", ["730", "731"]),
    ("MONITOR L", ["733"]),
    ("MONITOR S", []),
    ("MONITOR C", []),
    ("MOTD", ["422"]),
    ("MOTD elsewhere", ["402"]),
    ("LUSERS", ["251", "254", "255", "265", "266"]),
    ("VERSION", ["351", "005", "005", "005"]),
    ("TIME", ["391"]),
    ("INFO", ["371", "374"]),
    ("ADMIN bob", ["423"]),
    ("LINKS", ["365"]),
    ("HELP", ["704", "705", "706"]),
    ("HELP join", ["704", "705", "706"]),
    ("HELP nothing", ["524"]),
    ("OPER root wrong", ["464"]),
    ("KILL bob", ["481"]),
    ("WALLOPS :hi", ["481"]),
    ("CHATHISTORY LATEST #den * 10", []),
    ("CHATHISTORY LATEST #den", ["FAIL"]),
    ("CHATHISTORY FOO", ["FAIL"]),
    ("CHATHISTORY BEFORE #den msgid=x 10", ["FAIL"]),
    ("CHATHISTORY BEFORE #lobby msgid=1 10", ["FAIL"]),
    ("CHATHISTORY BEFORE #den what=1 10", ["FAIL"]),
    ("CHATHISTORY TARGETS x", ["FAIL"]),
    ("MARKREAD", ["FAIL"]),
    ("MARKREAD #den", ["MARKREAD"]),
    ("MARKREAD #den x=1", ["FAIL"]),
    ("MARKREAD #den timestamp=2026-01-01T00:00:00.000Z", ["MARKREAD"]),
    ("CAP LIST", ["CAP"]),
    ("CAP END", []),
    ("QUIT :bye", ["ERROR"]),
]


@pytest.fixture
def core() -> ChatCore:
    return build_core(rate=1_000_000, burst=1_000_000, backlog=10_000, operators="root", plain_passwords=True)


@pytest.fixture
def ann(core: ChatCore) -> IrcClient:
    client = irc_client(core, "ann")
    client.sends("JOIN #den")
    return client


@pytest.fixture
def bob(core: ChatCore, ann: IrcClient) -> IrcClient:
    client = irc_client(core, "bob", peer="198.51.100.7")
    client.sends("JOIN #den")
    ann.sees()
    return client


def ends(lines: list[str], *endings: str) -> bool:
    return len(lines) == len(endings) and all(line.endswith(end) for line, end in zip(lines, endings, strict=True))


def test_registration_ends_with_what_the_server_supports_and_the_modes(core: ChatCore) -> None:
    client = IrcClient(core)
    assert client.codes("NICK ann") == []
    codes = client.codes("USER a b c :Ann of Cleves")
    assert codes[:5] == ["001", "002", "003", "004", "005"] and codes[-2:] == ["422", "221"]
    member = core.find("ann")
    assert (member.source.user, member.real_name) == ("~a", "Ann of Cleves")


def test_registration_waits_for_the_end_of_the_negotiation(core: ChatCore) -> None:
    client = IrcClient(core)
    assert client.codes("CAP LS 302", "NICK ann", "USER a 0 * :a") == ["CAP"]
    assert client.codes("CAP END")[0] == "001"


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        (["JOIN #a"], ["451"]),
        (["FOO"], ["451"]),
        (["1a2"], ["451"]),
        (["REGISTER * * xxxxxxxx"], ["FAIL"]),
        (["NICK"], ["431"]),
        (["NICK :"], ["431"]),
        (["NICK :a b"], ["432"]),
        (["NICK admin"], ["432"]),
        (["USER a"], ["461"]),
        (["USER a b c :"], ["461"]),
        (["PING"], ["461"]),
        (["PING :"], ["409"]),
        (["PING x", "PONG x"], ["PONG"]),
        (["CAP FOO"], ["410"]),
        (["CAP REQ :nothing"], ["CAP"]),
        (["QUIT"], ["ERROR"]),
        (["x" * 600], ["417"]),
        (["AUTHENTICATE PLAIN"], ["904"]),
    ],
)
def test_before_registration(core: ChatCore, lines: list[str], codes: list[str]) -> None:
    assert IrcClient(core).codes(*lines) == codes


@pytest.mark.usefixtures("bob")
@pytest.mark.parametrize(("line", "codes"), ANSWERS)
def test_one_command(ann: IrcClient, line: str, codes: list[str]) -> None:
    assert ann.codes(line) == codes


def test_a_command_of_each_name_has_been_asked_for() -> None:
    asked = {line.split()[0] for line, _ in ANSWERS}
    elsewhere = {"NICK", "PING", "PONG", "AUTHENTICATE", "REGISTER", "HELPOP"}
    assert set(IRC_COMMANDS) <= asked | elsewhere


def test_a_wire_is_the_same_room_as_another(core: ChatCore, ann: IrcClient) -> None:
    typist = Client(core)
    typist.sends("/nick bob\n/join den\n")
    assert [command(line) for line in ann.sees()] == ["JOIN"]
    typist.sends("hi\n/me waves\n/msg ann psst\n")
    assert ends(ann.sees(), "PRIVMSG #den :hi", "PRIVMSG #den :\x01ACTION waves\x01", "PRIVMSG ann :psst")
    ann.sends("PRIVMSG #den :\x02bold\x0f \x0304,05red", "NOTICE #den :careful", "PRIVMSG bob :\x01ACTION nods\x01")
    assert typist.sees().decode().splitlines() == ["[den] ann: bold red", "[den] -ann- careful", "ann -> you: * nods"]


def test_a_long_text_comes_in_lines_of_512_bytes_and_nothing_is_lost(core: ChatCore, ann: IrcClient) -> None:
    typist = Client(core)
    typist.sends("/nick bob\n/join den\n")
    ann.sees()
    text = " ".join(["学习学习"] * 200)
    typist.sends(f"{text}\n")
    lines = ann.sees()
    assert len(lines) > 1 and all(len(line.encode()) <= 510 for line in lines)
    assert "".join(line.partition(" :")[2] for line in lines) == text


def test_what_is_refused_is_refused_by_numerics(core: ChatCore, ann: IrcClient) -> None:
    dora = irc_client(core, "dora", peer="203.0.113.9")
    for change, code in [("+b dora!*@*", "474"), ("+i", "473"), ("+k sesame", "475"), ("+l 1", "471"), ("+R", "477")]:
        ann.sends(f"MODE #den {change}")
        assert dora.codes("JOIN #den") == [code]
        ann.sends(f"MODE #den -{change[1:]}")
    assert dora.codes("JOIN #den") == ["JOIN", "353", "366"]
    assert dora.codes("TOPIC #den :mine", "MODE #den +o dora", "KICK #den ann", "INVITE bob #den") == [
        "TOPIC",
        "482",
        "482",
        "401",
    ]
    ann.sends("MODE #den +tm")
    dora.sees()
    assert dora.codes("TOPIC #den :mine", "PRIVMSG #den :hi") == ["482", "404"]


def test_rooms_are_the_limit(core: ChatCore, ann: IrcClient) -> None:
    most = core.options["member-rooms"]
    assert ann.codes(f"JOIN {','.join(f'#r{number}' for number in range(most))}").count("405") == 1


def test_lists_of_masks(core: ChatCore, ann: IrcClient, bob: IrcClient) -> None:
    masks = ["dora!*@*", "*!*@192.0.2.0/24", "~a:eve", "~m:x!*@*", "*!~y@*"]
    ann.sends("MODE #den -t", *(f"MODE #den +b {mask}" for mask in masks if "192" not in mask))
    ann.sends("MODE #den +b *!*@203.0.113.0/24")
    shown = [line.split()[4] for line in ann.sends("MODE #den b")[:-1]]
    assert shown == ["dora!*@*", "~a:eve", "~m:x!*@*", "*!~y@*", "*!*@203.0.113.0/24"]
    hidden = [line.split()[4] for line in bob.sends("MODE #den b") if " 367 " in line]
    assert hidden[:4] == shown[:4] and "203" not in hidden[4]
    ann.sends(f"MODE #den -b {hidden[4]}", *(f"MODE #den -b {mask}" for mask in masks))
    assert ann.codes("MODE #den b") == ["368"]
    bob.sees()
    assert bob.codes("MODE #den e") == ["482"]


def test_a_ban_of_a_host_is_one_of_the_address(core: ChatCore, ann: IrcClient, bob: IrcClient) -> None:
    host = core.find("bob").source.host
    ann.sends(f"MODE #den +b *!*@{host}")
    assert not any("198.51" in line for line in bob.sees())
    assert "198.51.100.7" in ann.sends("MODE #den b")[0]
    bob.lose()
    other = irc_client(core, "rob", peer="198.51.100.7")
    assert other.codes("JOIN #den") == ["474"]


def test_invitations(core: ChatCore, ann: IrcClient) -> None:
    dora = irc_client(core, "dora", "invite-notify")
    ann.sends("MODE #den +i")
    assert ann.codes("INVITE dora #den") == ["341"]
    assert dora.codes() == ["INVITE"]
    assert ends(dora.sends("INVITE"), "#den", "list")
    assert dora.codes("JOIN #den")[0] == "JOIN"
    ann.sends("MODE #den +o dora")
    irc_client(core, "eve")
    dora.sees()
    ann.sends("INVITE eve #den")
    assert dora.codes() == ["INVITE"]


def test_members_and_operators_in_answers(core: ChatCore, ann: IrcClient, bob: IrcClient) -> None:
    core.accounts.restore([account("root")])
    assert ann.codes(f"OPER root :{PASSWORD}") == ["381", "MODE"]
    bob.sends("AWAY :tea time", "MODE bob +B")
    assert " H*@ " in bob.sends("WHO ann")[0] and " GB " in bob.sends("WHO bob")[0]
    assert [code for code in ann.codes("WHOIS bob") if code in {"301", "335"}] == ["301", "335"]
    assert "198.51.100.7" in " ".join(ann.sends("WHOIS bob"))
    assert "313" in bob.codes("WHOIS ann") and "252" in bob.codes("LUSERS")
    assert ann.codes("PRIVMSG bob :hi") == ["301"]
    bob.sees()
    assert ends(bob.sends("USERHOST ann bob"), f"ann*=+~ann@{core.find('ann').source.host} bob=-{_at(core, 'bob')}")
    assert ann.codes("WALLOPS :all") == ["WALLOPS"]
    bob.sees()
    ann.sends("KILL bob :out")
    assert bob.codes()[-1] == "ERROR" and bob.transport.disconnecting
    assert ann.codes("MODE ann -o", "KILL bob") == ["MODE", "481"]
    assert ann.codes("WHOWAS bob", "WHOWAS bob 1") == ["314", "312", "369"] * 2


def _at(core: ChatCore, name: str) -> str:
    source = core.find(name).source
    return f"{source.user}@{source.host}"


def test_invisible_members_and_secret_rooms_are_for_their_neighbours(core: ChatCore, bob: IrcClient) -> None:
    dora = irc_client(core, "dora")
    bob.sends("MODE bob +i")
    assert dora.codes("WHO *") == ["352", "352", "315"]
    assert len([word for word in dora.sends("NAMES #den")[0].split() if word.strip(":@") == "bob"]) == 0
    ann = core.find("ann")
    core.moderation.set_modes(ann, core.rooms.open("den", ""), ["+secret"])
    assert dora.codes("LIST", "NAMES #den", "TOPIC #den", "WHO #den") == ["321", "323", "366", "442", "315"]
    assert "319" not in dora.codes("WHOIS ann")


def test_monitored_names(core: ChatCore, ann: IrcClient) -> None:
    assert ann.codes("MONITOR + dora") == ["731"]
    dora = irc_client(core, "dora")
    assert ends(ann.sees(), f"dora!{_at(core, 'dora')}") and ann.codes("MONITOR S") == ["730"]
    dora.sends("NICK doris")
    assert ann.codes() == ["731"]
    assert ann.codes("MONITOR L") == ["732", "733"]
    assert ann.codes("MONITOR - dora") == []
    dora.sends("NICK dora")
    assert ann.codes() == []
    names = ",".join(f"n{number}" for number in range(120))
    assert ann.codes(f"MONITOR + {names[:400]}", f"MONITOR + {names[400:]}")[-1] in {"731", "734"}
    ann.lose()
    assert not core.presence._watchers


def test_accounts(core: ChatCore) -> None:
    ann = irc_client(core, "ann", "sasl", "standard-replies", "account-notify", "draft/account-registration")
    assert ann.codes("REGISTER * * short", "REGISTER other * longenough") == ["FAIL", "FAIL"]
    assert ann.codes("REGISTER ann * longenough") == ["ACCOUNT", "REGISTER", "900"]
    assert ann.codes("REGISTER * * longenough", "AUTHENTICATE PLAIN") == ["FAIL", "907"]
    ann.sends("QUIT")
    again = IrcClient(core)
    assert [command(line) for line in again.sends("CAP LS 302", "NICK ann")] == ["CAP"]
    assert [command(line) for line in again.authenticate("ann", "wrong password")][-1] == "904"
    assert [command(line) for line in again.authenticate("ann", "longenough")][-2:] == ["900", "903"]
    assert again.codes("NICK ann", "USER a 0 * :a", "CAP END")[0] == "001"
    assert core.find("ann").account
    assert "330" in irc_client(core, "bob").codes("WHOIS ann")


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["AUTHENTICATE FOO"], "904"),
        (["AUTHENTICATE PLAIN", "AUTHENTICATE *"], "906"),
        (["AUTHENTICATE PLAIN", "AUTHENTICATE !!!"], "904"),
        (["AUTHENTICATE PLAIN", "AUTHENTICATE +"], "904"),
        (["AUTHENTICATE PLAIN", f"AUTHENTICATE {'x' * 401}"], "905"),
        (["AUTHENTICATE PLAIN", *[f"AUTHENTICATE {'x' * 400}"] * 5], "905"),
    ],
)
def test_bad_exchanges(core: ChatCore, lines: list[str], code: str) -> None:
    client = IrcClient(core)
    client.sends("CAP REQ sasl")
    assert client.codes(*lines)[-1] == code


@pytest.mark.parametrize("ghost", [False, True])
def test_a_name_may_be_sent_before_the_log_in_that_it_needs(ghost: bool) -> None:
    core = build_core(plain_passwords=True)
    core.accounts.restore([account("ann")])
    if ghost:
        old = IrcClient(core).register("visitor")
        old.authenticate("ann", PASSWORD)
        old.sends("NICK ann")
    client = IrcClient(core, "198.51.100.7")
    assert "433" not in client.codes("CAP LS 302", "NICK ann", "USER ann 0 * :Ann")
    client.authenticate("ann", PASSWORD)
    assert client.codes("CAP END")[0] == "001"
    assert client.protocol.session.member.name == "ann"


def test_a_name_that_needs_a_log_in_is_refused_at_the_end_without_one() -> None:
    core = build_core(plain_passwords=True)
    core.accounts.restore([account("ann")])
    client = IrcClient(core)
    client.sends("CAP LS 302", "NICK ann", "USER ann 0 * :Ann")
    assert client.codes("CAP END") == ["433"]
    assert client.codes("NICK annie")[0] == "001"
    assert IrcClient(core).codes("NICK ann") == ["433"]
    # There is no account to log in to.
    assert IrcClient(core).codes("CAP LS 302", "NICK annie") == ["CAP", "433"]


def test_passwords_are_taken_over_confidential_connections_only() -> None:
    core = build_core(operators="root")
    client = IrcClient(core)
    assert "sasl" not in client.sends("CAP LS 302")[0]
    client.sends("CAP END")
    ann = irc_client(core, "ann", "standard-replies")
    assert ann.codes("REGISTER * * longenough", "OPER root longenough") == ["FAIL", "400"]


def test_a_server_with_a_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("sesame\n")
    core = build_core(irc_password=str(file))
    wrong, right = IrcClient(core), IrcClient(core)
    assert wrong.codes("NICK ann", "USER a 0 * :a") == ["464", "ERROR"] and wrong.transport.disconnecting
    assert right.codes("PASS sesame", "NICK ann", "USER a 0 * :a")[0] == "001"
    for text in ("", "a\nb", "x" * 300):
        file.write_text(text)
        with pytest.raises(UserError):
            core.check()
    file.unlink()
    with pytest.raises(UserError):
        core.check()


def test_a_full_chat_is_told_in_irc() -> None:
    core = build_core(members=1)
    irc_client(core, "ann")
    client = IrcClient(core)
    assert client.codes("NICK bob", "USER b 0 * :b") == ["ERROR"] and client.transport.disconnecting


def test_a_name_that_is_taken_meanwhile_can_be_chosen_again(core: ChatCore) -> None:
    first, second = IrcClient(core), IrcClient(core)
    first.sends("NICK ann"), second.sends("NICK ann", "USER a 0 * :a")
    assert first.codes("USER a 0 * :a") == ["433"]
    assert first.codes("NICK anna")[0] == "001"


def test_who_does_not_register_is_disconnected(core: ChatCore) -> None:
    client = IrcClient(core)
    client.clock.advance(61)
    assert client.codes() == ["ERROR"] and client.transport.disconnecting


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\0\0"])
def test_other_protocols_are_disconnected(core: ChatCore, data: bytes) -> None:
    client = IrcClient(core)
    client.protocol.dataReceived(data)
    assert client.transport.disconnecting


def test_text_that_is_not_utf8_is_refused(ann: IrcClient) -> None:
    ann.protocol.dataReceived(b"PRIVMSG #den :\xff\r\n")
    assert ann.sees()[0].split()[1:4] == ["FAIL", "*", "INVALID_UTF8"]


def test_the_rate_of_the_chat_is_that_of_irc() -> None:
    core = build_core(rate=1, burst=4, backlog=50)
    client = IrcClient(core)
    client.sends("NICK ann", "USER a 0 * :a")
    assert client.codes(*["PING x"] * 7).count("PONG") < 7
    client.clock.pump([1] * 10)
    assert client.codes().count("PONG") >= 2
    client.sends(*["PING x"] * 60)
    client.clock.advance(1)
    assert client.transport.disconnecting


def test_a_store_that_cannot_keep(core: ChatCore) -> None:
    ann = irc_client(core, "ann", "echo-message", "labeled-response", "batch")
    ann.sends("JOIN #den")
    core.archive.failed(StoreError("the disk is full"))
    assert ann.codes("PRIVMSG #den :hi") == ["NOTICE", "404"]
    core.archive.resumed()
    assert ann.codes() == ["NOTICE"]


def test_the_end_of_the_chat_is_an_error(core: ChatCore, ann: IrcClient) -> None:
    core.drain()
    assert ann.codes() == ["ERROR"] and ann.transport.disconnecting


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.tuples(
                st.sampled_from(sorted(set(IRC_COMMANDS) - {"QUIT", "REGISTER", "OPER", "AUTHENTICATE"})),
                st.lists(
                    st.sampled_from(
                        [
                            "#den",
                            "#lobby",
                            "ann",
                            "bob",
                            "*",
                            "+b",
                            "-k",
                            "+klo",
                            ":",
                            "0",
                            "msgid=1-a",
                            "LATEST",
                            "302",
                        ]
                    )
                    | st.text(max_size=5),
                    max_size=4,
                ),
            ).map(lambda pair: " ".join([pair[0], *pair[1]]).encode("utf-8", "replace")),
        ),
        max_size=12,
    )
)
def test_whatever_a_client_sends_fails_in_no_other_way(lines: list[bytes]) -> None:
    core = build_core(rate=1_000_000, burst=1_000_000)
    ann = irc_client(core, "ann", "labeled-response", "batch", "echo-message", "message-tags", "server-time")
    ann.sends("JOIN #den")
    for line in lines:
        ann.protocol.dataReceived(b"@label=x " + line + b"\n")
    ann.clock.advance(100)
    ann.sees()


@pytest.mark.parametrize("kind", [IrcClient, WebClient])
def test_one_who_does_not_read_is_cut_off_and_the_others_do_not_wait(kind: type[IrcClient]) -> None:
    core = build_core(send_bytes=1024)
    slow, ann, bob = (kind(core).register(name) for name in ("slow", "ann", "bob"))
    for each in (slow, ann, bob):
        each.sends("JOIN #den")
    below = getattr(slow.protocol, "below", slow.transport)
    below.producer.pauseProducing()
    slow.sees()
    count = 0
    while not (getattr(below, "aborted", False) or below.disconnected):
        count += 1
        assert count < 100
        bob.sees()
        ann.sends(f"PRIVMSG #den :{'x' * 100}")
        core.context.reactor.advance(1)
        assert any(" PRIVMSG #den " in line for line in bob.sees())
    assert 5 < count <= 10
    assert slow.sees() == []
