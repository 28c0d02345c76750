"""Writes the help of the commands that serve: one page that fits a screen or two, and a page for each topic."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from netsvc.base.errors import PluginError, UserError
from netsvc.base.text import escape, plain
from netsvc.config.arguments import OF_MANY, OPTIONS, SHORTHANDS
from netsvc.config.discovery import Catalogue, nearest
from netsvc.config.settings import SETTINGS
from netsvc.interfaces import INetworkService
from netsvc.options import Setting, declared_settings
from netsvc.plan.limits import LIMITS, show_limit

_Entry = tuple[str, str]

#: What the page of a topic is about, beside the services.
_TOPICS: Mapping[str, str] = {
    "addresses": "What ADDRESS can be: ports, TLS, UNIX sockets, systemd, PROXY protocol",
    "limits": "Limits of connections, rates, times and bandwidth, and who may connect",
    "logging": "Log format, access log, and what made a protocol fail",
    "admin": "Admin page, metrics and API",
}
_SETTINGS: Mapping[str, Sequence[str]] = {
    "logging": ("log", "access", "debug"),
    "admin": ("admin", "admin-token", "admin-ca"),
}
_EXAMPLES = (
    ("--tcp 9001 --udp 9001", "echo"),
    ("--chat 9002 --files 9003 --files-root ./public", ""),
    ("--chat tls:9002:cert=cert.pem:key=key.pem", "TLS"),
    ("--serve ./my.py:MyProtocol=9001", "your class"),
    ("--config netsvc.toml --admin 9000", ""),
)
#: The forms of an address, and what each is.
ADDRESSES: Mapping[str, Sequence[_Entry]] = {
    "For streams and datagrams:": (
        ("9001", "this port on every interface, IPv4 and IPv6; 0 picks a free port"),
        ("127.0.0.1:9001", "this port on one interface; IPv6 as [::1]:9001"),
        ("HOST:9001", "this port at each address of the name, looked up at the start and at a reload"),
        ("systemd:NAME", "the socket of a .socket unit with FileDescriptorName=NAME"),
    ),
    "For streams:": (
        ("tls:PORT:cert=FILE:key=FILE", "TLS with this certificate and key (PEM)"),
        ("tls:PORT:directory=DIR", "TLS with a certificate for each name"),
        ("unix:PATH[:mode=660]", "a UNIX socket; unix:@NAME has no file (abstract), and is open to every user"),
        ("tcp:, tcp6:, ssl:, haproxy:", "and every other Twisted server endpoint"),
    ),
    "For datagrams:": (
        ("udp:PORT[:interface=ADDR]", "IPv4; udp6: for IPv6"),
        ("239.1.2.3[%eth0]:9001", "a multicast group, which is joined at this interface; or [ff02::7%eth0]:9001"),
        ("unixgram:PATH[:mode=660]", "a UNIX datagram socket; or unixgram:@NAME"),
    ),
    "Before an address:": (
        ("guard:LIMIT=VALUE:…:", "limits of this listener; see --help limits"),
        ("proxy:trust=CIDR,…:", "clients are named by PROXY headers from these addresses; unix trusts a UNIX socket"),
    ),
}


def topics(catalogue: Catalogue, alone: str | None = None) -> list[str]:
    """List the topics that have a page."""
    return [*([] if alone else catalogue.names()), *_TOPICS, "all"]


def help_topic(arguments: Sequence[str]) -> str | None:
    """Return the topic of `--help TOPIC` among arguments, "" for the main page, None if help is not requested."""
    for position, argument in enumerate(arguments):
        if argument in ("--help", "-h"):
            following = "".join(arguments[position + 1 : position + 2])
            return "" if following.startswith("-") else following
    return None


def help_page(
    catalogue: Catalogue, topic: str = "", alone: str | None = None, command: str = "", more: Sequence[_Entry] = ()
) -> str:
    """Write the help of `twistd netsvc`, of `twistd netsvc-<alone>`, or of `command`; the main page, or a topic's.

    `more` are options that only this command has. A service that does not load is reported. Raises `UserError` for
    an unknown topic.
    """
    command = command or (f"twistd -n netsvc-{alone}" if alone else "twistd -n netsvc")
    names = topics(catalogue, alone)
    if topic and topic not in names:
        hint = nearest(topic, names) or f"; the topics are {', '.join(names)}"
        raise UserError([f"--help {escape(topic)}: no such topic{hint}"])
    lines: list[str] = []
    for name in ["", *names[:-1]] if topic == "all" else [topic]:
        if lines:
            lines.append("")
        if not name:
            lines += _main_page(catalogue, alone, command, more)
        elif name in _TOPICS:
            lines += _topic_page(name)
        else:
            lines += _service_page(catalogue, name)
    return "\n".join([*lines, ""])


def _width() -> int:
    return max(60, min(100, shutil.get_terminal_size((80, 24)).columns))


def _entries(entries: Iterable[_Entry]) -> list[str]:
    """Lay out entries in two columns."""
    entries = list(entries)
    column = min(max((len(left) for left, _ in entries), default=0), 29) + 4
    lines: list[str] = []
    for left, right in entries:
        wrapped = textwrap.wrap(right, _width() - column) or [""]
        fits = len(left) + 4 <= column
        lines += [] if fits else [f"  {left}"]
        lines.append(f"  {left if fits else '':<{column - 2}}{wrapped[0]}".rstrip())
        lines += [f"{'':{column}}{line}" for line in wrapped[1:]]
    return lines


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), break_on_hyphens=False)


def _setting_entry(setting: Setting, prefix: str = "") -> _Entry:
    description = plain(setting.description)
    if setting.flag:
        return f"--{prefix}{setting.name}", description
    default = setting.default
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    suffix = "" if default is None else f" (default: {shown})"
    return f"--{prefix}{setting.name} {setting.placeholder}", f"{description}{suffix}"


def _main_page(catalogue: Catalogue, alone: str | None, command: str, more: Sequence[_Entry]) -> list[str]:
    lines: list[str] = []
    if alone:
        lines += [f"Usage: {command} ADDRESS… [options]", "", *_service_page(catalogue, alone, alone=True)]
    else:
        lines += [f"Usage: {command} --SERVICE ADDRESS… [options]", "", "Run TCP and UDP services in one process.", ""]
        column = max(len(example) for example, _ in _EXAMPLES)
        lines += ["Examples:"]
        lines += [f"  {command} {example:<{column}}  {note}".rstrip() for example, note in _EXAMPLES]
        lines += ["", "Services (serve one with --NAME ADDRESS; see --help NAME for its options):"]
        lines += _entries((name, plain(catalogue.services[name].description)) for name in catalogue.names())
    elsewhere = {name for names in _SETTINGS.values() for name in names}
    others = [setting for name, setting in SETTINGS.items() if name not in elsewhere]
    # `--list` and those after it show something.
    first = list(OPTIONS).index("limit")
    shown = [*list(OPTIONS.values())[:first], *others, *list(OPTIONS.values())[first:]]
    entries = [_setting_entry(setting) for setting in shown if not (alone and setting.name in OF_MANY)]
    lines += ["", "Options:", *_entries([*entries, *more])]
    lines += ["", "Topics (see --help TOPIC):"]
    return [*lines, *_entries([*_TOPICS.items(), ("all", "Everything on one page")])]


def _topic_page(topic: str) -> list[str]:
    lines = [f"{_TOPICS[topic]}.", ""]
    if topic == "addresses":
        for title, entries in ADDRESSES.items():
            lines += [title, *_entries(entries), ""]
        return [
            *lines,
            *_paragraph(
                r"Options with an ADDRESS may be repeated. Inside an address \: is a colon, as in "
                r"tcp6:9001:interface=\:\:1."
            ),
        ]
    if topic == "limits":
        lines += _entries(
            (
                name,
                f"{limit.description}"
                + ("" if limit.default is None else f" (default: {show_limit(limit.default)})")
                + ("" if len(limit.kinds) > 1 else f" [{limit.kinds[0]}s]"),
            )
            for name, limit in LIMITS.items()
        )
        return [
            *lines,
            "",
            *_paragraph(
                "Set a limit for the process with --limit NAME=VALUE, for a service with --SERVICE-limit NAME=VALUE, "
                "for a listener with guard:NAME=VALUE:ADDRESS. NAME=none removes a limit. Times are in seconds, or "
                "90s, 10m, 2h, 1d; sizes in bytes, or 64K, 1M. Lists have commas."
            ),
        ]
    lines += _entries(_setting_entry(SETTINGS[name]) for name in _SETTINGS[topic])
    if topic == "admin":
        text = "An address that other machines can reach needs a token or, with tls:, a CA."
        lines += ["", *_paragraph(text)]
    return lines


def _service_page(catalogue: Catalogue, name: str, alone: bool = False) -> list[str]:
    try:
        service = catalogue.load(name)
    except PluginError as error:
        return [f"{name}: not usable", *(f"  {line}" for line in error.errors)]
    prefix = "" if alone else f"{name}-"
    default = next(iter(service.protocols))
    entries: list[_Entry] = []
    if not alone:
        entries.append((f"--{name} ADDRESS", f"Short for --{name}-{default}"))
        entries += [
            (f"--{short} ADDRESS", f"Short for --{option}")
            for short, option in SHORTHANDS.items()
            if option.startswith(prefix)
        ]
    entries += [
        (f"--{prefix}{protocol} ADDRESS", f"Serve its protocol {protocol} ({kind}s)")
        for protocol, kind in service.protocols.items()
    ]
    entries += [_setting_entry(setting, prefix) for setting in declared_settings(service.options)]
    if not alone:
        entries.append((f"--{name}-limit NAME=VALUE", "Set a limit for this service; see --help limits"))
        entries.append((f"--{name}-drain SECONDS", "Grace period of its own conversations, if not --drain"))
    return [f"{name}: {plain(service.description)}", "", *_entries(entries), *_own_limits(service)]


def _own_limits(service: INetworkService) -> list[str]:
    limits: Mapping[str, object] = getattr(service, "limits", None) or {}
    shown = ", ".join(f"{limit}={show_limit(value)}" for limit, value in limits.items())
    return ["", *_paragraph(f"Its default limits: {shown}.")] if shown else []
