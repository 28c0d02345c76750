"""Writes what netsvc prints: the help page, the list of services, the table of a plan."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from twisted.python import usage

from netsvc.arguments import EXAMPLES, SHORTHANDS, load_use
from netsvc.discovery import Catalogue
from netsvc.errors import PluginError
from netsvc.interfaces import INetworkService
from netsvc.plan import Plan
from netsvc.settings import Setting, declared_settings, parse_settings
from netsvc.text import escape, plain

__all__ = ["help_page", "list_page", "plan_page"]

_ADDRESS = """\
ADDRESS is a port number (0 takes a free one; IPv4 and IPv6), HOST:PORT, [IPv6]:PORT, or a Twisted endpoint:
tcp:, tcp6:, unix:, ssl:, systemd:, haproxy: for streams; udp:PORT[:interface=ADDR], udp6:, unixgram:PATH,
systemd: for datagrams. Addresses repeat. TLS is ssl:PORT:privateKey=KEY.pem:certKey=CERT.pem."""


def _columns(rows: Iterable[Sequence[str]], indent: str = "") -> list[str]:
    """Align rows in columns, two spaces apart."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def _entries(entries: Iterable[tuple[str, str]]) -> list[str]:
    """Lay out options and their descriptions as a help page has them."""
    lines: list[str] = []
    width = max(60, min(100, shutil.get_terminal_size((90, 24)).columns))
    for left, right in entries:
        wrapped = textwrap.wrap(right, width - 34) or [""]
        if len(left) > 29:
            lines += [f"  {left}", f"{'':34}{wrapped[0]}".rstrip()]
        else:
            lines.append(f"  {left:<30}  {wrapped[0]}".rstrip())
        lines += [f"{'':34}{line}" for line in wrapped[1:]]
    return lines


def _setting_entry(prefix: str, setting: Setting) -> tuple[str, str]:
    description = plain(" ".join(setting.description.split()))
    if setting.flag:
        return f"--{prefix}{setting.name}", description
    shown = "" if setting.default is None else f" (default: {setting.default})"
    return f"--{prefix}{setting.name} {setting.placeholder}", f"{description}{shown}"


def _service_entries(service: INetworkService, prefix: str) -> list[tuple[str, str]]:
    default = next(iter(service.protocols))
    entries = [
        (
            f"--{prefix}{protocol} ADDRESS",
            f"{kind}s{', the default protocol' if protocol == default and len(service.protocols) > 1 else ''}",
        )
        for protocol, kind in service.protocols.items()
    ]
    return entries + [_setting_entry(prefix, setting) for setting in declared_settings(service.options)]


def help_page(catalogue: Catalogue, alone: str | None = None) -> str:
    """Write the help of `twistd netsvc`, or of `twistd netsvc-<alone>`. Services that do not load say so in it."""
    command = f"netsvc-{alone}" if alone else "netsvc"
    lines = [f"Usage: twistd [options] {command} {'ADDRESS… ' if alone else ''}[{command} options]", ""]
    if not alone:
        lines += ["Runs TCP and UDP services together in one process.", "", "Examples:"]
        lines += [f"  twistd -n netsvc {example}" for example in EXAMPLES]
        lines += ["", "Options:"]
        lines += _entries(
            [
                *((f"--{short} ADDRESS", f"Short for --{whole}") for short, whole in SHORTHANDS.items()),
                ("--serve TARGET=ADDRESS", "Run a class straight from a file or module: ./my.py:MyProtocol=9001"),
            ]
        )
    else:
        lines.append("Options:")
    lines += _entries(
        [
            ("--drain SECONDS", "How long conversations have to end when the process stops (default: 4)"),
            ("--workers NUMBER", "How many processes serve, on the same ports; auto: one for each core (default: 1)"),
            ("--list", "Show the services, their protocols and options, and where each comes from, and exit"),
            ("--version", "Show the version and exit"),
            ("--help", "Show this page and exit"),
        ]
    )
    for name in [alone] if alone else catalogue.names():
        try:
            service = catalogue.load(name)
        except PluginError as error:
            lines += ["", f"{name}: not usable", *(f"  {line}" for line in error.mistakes)]
            continue
        lines += ["", f"{name}: {plain(service.description)}"]
        if not alone:
            lines += _entries([(f"--{name} ADDRESS", f"Short for --{name}-{next(iter(service.protocols))}")])
        lines += _entries(_service_entries(service, "" if alone else f"{name}-"))
    return "\n".join([*lines, "", _ADDRESS, ""])


def list_page(catalogue: Catalogue) -> str:
    """List the services with their protocols, options and origins; broken plugins with what is wrong."""
    lines: list[str] = []
    for name in catalogue.names():
        found = catalogue.services[name]
        try:
            service = catalogue.load(name)
        except PluginError as error:
            lines += [f"{name}  not usable", *(f"  {line}" for line in error.mistakes)]
            continue
        protocols = ", ".join(f"{protocol} ({kind})" for protocol, kind in service.protocols.items())
        options = ", ".join(f"--{name}-{setting.name}" for setting in declared_settings(service.options))
        lines += [f"{name}  {plain(service.description)}", f"  protocols  {protocols}"]
        # An option broken at a hyphen would be no option.
        lines += textwrap.wrap(
            options, 90, initial_indent="  options    ", subsequent_indent=" " * 13, break_on_hyphens=False
        )
        lines.append(f"  from       {found.origin}")
    return "\n".join([*lines, *catalogue.problems])


def plan_page(plan: Plan, catalogue: Catalogue) -> str:
    """Write a plan as a table: what listens where, then each service's options and limits as they will be."""
    rows = [("SERVICE", "PROTOCOL", "KIND", "ADDRESS")]
    rows += [(each.use, each.protocol, each.address.kind, each.address.text) for each in plan.listeners]
    lines = _columns(rows)
    for key, use in plan.uses.items():
        service = load_use(use, catalogue)
        options = parse_settings(service.options, use.settings)
        limits = getattr(options, "limits", ())
        declared = declared_settings(service.options)
        for title, limited in (("options", False), ("limits", True)):
            settings = [setting for setting in declared if (setting.name in limits) == limited]
            if settings:
                lines += ["", f"{key} {title}{', in each worker' if limited and plan.workers > 1 else ''}"]
                lines += _columns((_setting_row(setting, options, use.settings) for setting in settings), "  ")
    host = [("drain", f"{plan.drain:g} s"), ("workers", f"{plan.workers}")]
    return "\n".join([*lines, "", "host limits", *_columns(host, "  ")])


def _setting_row(setting: Setting, options: usage.Options, given: Mapping[str, object]) -> tuple[str, str, str]:
    value = options[setting.name]
    shown = ("yes" if value else "no") if setting.flag else "-" if value is None else escape(str(value))
    return setting.name, shown, "" if setting.name in given else "default"
