"""Writes the list of services, and the table of a plan."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from twisted.python import usage

from netsvc.base.errors import PluginError
from netsvc.base.text import escape, plain
from netsvc.config.discovery import Catalogue
from netsvc.config.draft import load_use
from netsvc.options import Setting, declared_settings, parse_settings
from netsvc.plan.limits import DEFAULTS, LIMITS, Limits, show_limit
from netsvc.plan.plan import Plan


def _columns(rows: Iterable[Sequence[str]], indent: str = "") -> list[str]:
    """Align rows in columns, two spaces apart."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def list_page(catalogue: Catalogue, only: str = "") -> str:
    """List the services, or one, with their protocols, options and origins, and the errors of broken plugins."""
    lines: list[str] = []
    for name in [only] if only else catalogue.names():
        found = catalogue.services[name]
        try:
            service = catalogue.load(name)
        except PluginError as error:
            lines += [f"{name}  not usable", *(f"  {line}" for line in error.errors)]
            continue
        protocols = ", ".join(f"{protocol} ({kind})" for protocol, kind in service.protocols.items())
        options = ", ".join(f"--{name}-{setting.name}" for setting in declared_settings(service.options))
        lines += [f"{name}  {plain(service.description)}", f"  protocols  {protocols}"]
        # An option must not be broken at a hyphen.
        lines += textwrap.wrap(
            options, 90, initial_indent="  options    ", subsequent_indent=" " * 13, break_on_hyphens=False
        )
        lines.append(f"  from       {found.origin}")
    return "\n".join([*lines, *catalogue.problems])


def plan_page(plan: Plan, catalogue: Catalogue, notes: Sequence[str] = ()) -> str:
    """Write a plan as a table: the listeners, then all options and limits with their origins.

    `notes` are lines about what is not limited, will not work, or is lost by a reload.
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
        kind = "" if key == use.service else f" ({escape(use.service)})"
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
        lines += [f"with {escape(shlex.join(embedded.arguments), 1000)}", ""]
        lines += _level(f"with {escape(embedded.arguments[0])} limits", embedded.limits)
    if notes:
        lines += ["notes", *(f"  {note}" for note in notes), ""]
    lines += _level(f"process limits{each_worker}", plan.limits, DEFAULTS, "default")
    process = [("drain", f"{plan.drain:g} s")]
    process += [(f"drain of {key}", f"{use.drain:g} s") for key, use in plan.uses.items() if use.drain is not None]
    process += [("workers", f"{plan.workers}"), ("log", plan.log), ("access", escape(plan.access, 1000))]
    process += [("debug", "on")] if plan.debug else []
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
