"""Writes what netsvc prints: the help page, the list of services, the table of a plan."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from twisted.python import usage

from netsvc.arguments import EXAMPLES, OF_MANY, OPTIONS, SHORTHANDS, load_use
from netsvc.discovery import Catalogue
from netsvc.errors import PluginError
from netsvc.interfaces import INetworkService
from netsvc.limits import DEFAULTS, LIMITS, Limit, Limits, show_limit
from netsvc.plan import Plan
from netsvc.settings import Setting, declared_settings, parse_settings
from netsvc.text import escape, plain

__all__ = ["help_page", "list_page", "plan_page"]

_ADDRESS = """\
ADDRESS is a port number (0 takes a free one; IPv4 and IPv6), HOST:PORT, [IPv6]:PORT, or a Twisted endpoint:
tcp:, tcp6:, unix:, ssl:, systemd:, haproxy: for streams; udp:PORT[:interface=ADDR], udp6:, unixgram:PATH,
systemd: for datagrams. Addresses repeat. TLS is tls:PORT:cert=CERT.pem:key=KEY.pem, or tls:PORT:directory=DIR with
a certificate for each name. Before an address, guard:NAME=VALUE:… sets limits of that listener, and proxy:trust=CIDR,…:
believes those proxies (PROXY protocol) who the client is."""

_LIMITS = "Limits, as --limit and --<service>-limit take them (NAME=none lifts one):"
_LIMITS_ALONE = "Limits, as --limit takes them (NAME=none lifts one):"


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


def _limit_entry(limit: Limit) -> tuple[str, str]:
    default = "" if limit.default is None else f" (default: {show_limit(limit.default)})"
    return limit.name, f"{limit.description}{default}"


def help_page(catalogue: Catalogue, alone: str | None = None) -> str:
    """Write the help of `twistd netsvc`, or of `twistd netsvc-<alone>`. Services that do not load say so in it."""
    command = f"netsvc-{alone}" if alone else "netsvc"
    lines = [f"Usage: twistd [options] {command} {'ADDRESS… ' if alone else ''}[{command} options]", ""]
    if not alone:
        lines += ["Runs TCP and UDP services together in one process.", "", "Examples:"]
        lines += [f"  twistd -n netsvc {example}" for example in EXAMPLES]
        lines.append("")
    lines.append("Options:")
    of_many = {*SHORTHANDS, *OF_MANY} if alone else set()
    lines += _entries(
        (form, f"{description} (default: {default})" if default else description)
        for form, default, description in OPTIONS
        if form.partition(" ")[0].removeprefix("--") not in of_many
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
        if not alone:
            lines += _entries([(f"--{name}-limit NAME=VALUE", "Set a limit for this service")])
            lines += _entries([(f"--{name}-drain SECONDS", "How long its own conversations have to end")])
    lines += ["", _LIMITS_ALONE if alone else _LIMITS, *_entries(map(_limit_entry, LIMITS.values()))]
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


def plan_page(plan: Plan, catalogue: Catalogue, notes: Sequence[str] = ()) -> str:
    """Write a plan as a table: what listens where, then options and limits as they will be, and where from.

    `notes` say what of the other twistd plugins is not limited, or will not work.
    """
    lines: list[str] = []
    if plan.listeners:
        rows = [("SERVICE", "PROTOCOL", "KIND", "ADDRESS")]
        rows += [(each.use, each.protocol, each.address.kind, each.address.text) for each in plan.listeners]
        lines += [*_columns(rows), ""]
    each_worker = ", in each worker" if plan.workers > 1 else ""
    for key, use in plan.uses.items():
        service = load_use(use, catalogue)
        options = parse_settings(service.options, use.settings)
        limits = getattr(options, "limits", ())
        declared = declared_settings(service.options)
        kind = "" if use.adhoc or key == use.service else f" ({use.service})"
        for title, limited in (("options", False), ("limits of its own", True)):
            settings = [setting for setting in declared if (setting.name in limits) == limited]
            if settings:
                lines += [f"{key}{kind} {title}{each_worker if limited else ''}"]
                lines += [*_columns((_setting_row(setting, options, use.settings) for setting in settings), "  "), ""]
        own = getattr(service, "limits", None) or {}
        lines += _level(f"{key} limits{each_worker}", use.limits, own, f"default of {use.service}")
    for listener in plan.listeners:
        where = f"{listener.use} {listener.protocol} {listener.address.text}"
        lines += _level(f"{where} limits{each_worker}", listener.limits)
    for embedded in plan.twistd:
        lines += [f"with {escape(shlex.join(embedded.words), 1000)}", ""]
        lines += _level(f"with {escape(embedded.words[0])} limits", embedded.limits)
    if notes:
        lines += ["notes", *(f"  {note}" for note in notes), ""]
    lines += _level(f"process limits{each_worker}", plan.limits, DEFAULTS, "default")
    process = [("drain", f"{plan.drain:g} s")]
    process += [(f"drain of {key}", f"{use.drain:g} s") for key, use in plan.uses.items() if use.drain is not None]
    process += [("workers", f"{plan.workers}"), ("log", plan.log), ("access", escape(plan.access, 1000))]
    if plan.admin:
        asked = [
            f"{what} {escape(file, 1000)}"
            for what, file in (("token", plan.admin.token_file), ("ca", plan.admin.client_ca))
            if file
        ]
        process.append(("admin", ", ".join([plan.admin.address.text, *asked])))
    process += [("state", escape(plan.state, 1000))] if plan.state else []
    process += [("config", plan.config)] if plan.config else []
    return "\n".join([*lines, "process", *_columns(process, "  ")])


def _level(title: str, limits: Limits, defaults: Limits = {}, origin: str = "") -> list[str]:  # noqa: B006
    """Write the limits of a level, in the order of the table; nothing if it has none."""
    values = {**defaults, **limits}
    reported = values.get("dryrun") or ()
    rows = []
    for name in LIMITS:
        if name in values:
            notes = [] if name in limits else [origin]
            if name != "dryrun" and (name in reported or "all" in reported):
                notes.append("reports only")
            rows.append((name, escape(show_limit(values[name])), ", ".join(notes)))
    # A long list of networks has nothing beside it that would have to stand in a column.
    width = max((len(value) for _, value, note in rows if note), default=0)
    names = max(map(len, values), default=0)
    lines = [f"  {name:<{names}}  {value:<{width}}  {note}".rstrip() for name, value, note in rows]
    return [title, *lines, ""] if rows else []


def _setting_row(setting: Setting, options: usage.Options, given: Mapping[str, object]) -> tuple[str, str, str]:
    value = options[setting.name]
    shown = ("yes" if value else "no") if setting.flag else "-" if value is None else escape(str(value))
    return setting.name, shown, "" if setting.name in given else "default"
