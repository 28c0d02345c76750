"""The tables of the reference, made from what the code declares. `test_docs` writes them into the documents."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping

import click

from netsvc.admin.api import PATHS
from netsvc.cli.command import SUBCOMMANDS, main
from netsvc.cli.run import RUN_OPTIONS
from netsvc.cli.status import STATUS_FIELDS
from netsvc.config.arguments import OPTIONS, SHORTHANDS
from netsvc.config.discovery import discover
from netsvc.config.example import OWN_SERVICES
from netsvc.config.help import ADDRESSES
from netsvc.config.schema import OTHER_KEYS
from netsvc.config.settings import SETTINGS, key_of
from netsvc.log.formats import ACCESS_FIELDS, LOG_FIELDS
from netsvc.options import Setting, declared_settings
from netsvc.plan.catalog import rows as metrics
from netsvc.plan.limits import LIMITS, show_limit
from netsvc.plan.record import REASONS
from netsvc.server.process import SIGNALS
from netsvc.service import Service

#: A table in a document, after the comment with its name.
TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n)(\n(?:\|.*\n)+)?")

#: Defaults that are no constants, and what values are called here.
DEFAULTS = {"state": "`$STATE_DIRECTORY`"}
TYPES = {"DIR": "directory"}

#: Options that every service has.
OF_SERVICES = (
    ("--SERVICE ADDRESS", "", "Serve its default protocol"),
    ("--SERVICE-PROTOCOL ADDRESS", "", "Serve that protocol"),
    ("--SERVICE-OPTION VALUE", "", "Set an option of the service"),
    ("--SERVICE-limit NAME=VALUE", "", "Set a limit for the service"),
    ("--SERVICE-drain SECONDS", "", "Grace period of its own conversations, if not --drain"),
)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table in Markdown."""
    lines = [list(heads)]
    lines += [["---"] * len(lines[0]), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: object) -> str:
    """Write a text as code; nothing for an empty one."""
    return f"`{text}`" if str(text) else ""


def _pairs(heads: tuple[str, str], found: Mapping[str, str]) -> str:
    return table(heads, ((code(name), line) for name, line in found.items()))


def _default(setting: Setting) -> str:
    if setting.default is None or setting.flag:
        return ""
    return f"{setting.default:g}" if isinstance(setting.default, float) else str(setting.default)


def setting_key(name: str) -> tuple[str, ...]:
    """Return the key of a setting in the file, with that of the address among the keys of `[admin]`."""
    return ("admin", "address") if name == "admin" else key_of(name)


def _keys() -> str:
    rows = []
    for name, each in SETTINGS.items():
        takes = [*map(code, ("true", "false") if each.flag else each.choices)]
        if each.coerce is not None:
            takes.append(TYPES.get(each.placeholder, each.placeholder.lower()))
        more = "; or `admin = ADDRESS`" if name == "admin" else ""
        default = DEFAULTS.get(name, code(_default(each)))
        rows.append((code(".".join(setting_key(name))), ", ".join(takes), default, each.description + more))
    rows += [(code(".".join(key)), takes, "", line) for key, (takes, line) in OTHER_KEYS.items()]
    return table(("key", "takes", "default", "what it is"), rows)


def _options() -> str:
    rows = [(f"--{short} ADDRESS", "", f"Short for --{option}") for short, option in SHORTHANDS.items()]
    rows += [
        (f"--{each.name}" + ("" if each.flag else f" {each.placeholder}"), _default(each), each.description)
        for each in (*OPTIONS.values(), *SETTINGS.values())
    ]
    rows += [(name, "", line) for name, line in RUN_OPTIONS]
    return table(
        ("option", "default", "what it does"),
        ((code(name), code(default), line) for name, default, line in (*rows, *OF_SERVICES)),
    )


def _usage(name: str, command: click.Command, context: click.Context) -> str:
    words = [word for word in command.collect_usage_pieces(context) if word != command.options_metavar]
    return " ".join(["netsvc", name, *words])


def _commands() -> str:
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in SUBCOMMANDS}
    return table(
        ("command", "what it does"),
        (
            (code(_usage(name, command, click.Context(command))), SUBCOMMANDS[name][1])
            for name, command in found.items()
            if command is not None
        ),
    )


def _command_options() -> str:
    rows = []
    for name in SUBCOMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        context = click.Context(command)
        for each in command.params:
            if isinstance(each, click.Option):
                default = each.get_default(context)
                shown = "" if each.is_flag or not isinstance(default, str | int | float) else f"{default}"
                option = each.opts[0] if each.is_flag else f"{each.opts[0]} {each.make_metavar(context)}"
                rows.append((f"netsvc {name}", code(option), code(shown), each.help or ""))
    return table(("command", "option", "default", "what it does"), rows)


def _services() -> str:
    rows = []
    for name in OWN_SERVICES:
        for setting in declared_settings(discover().load(name).options):
            value = "true, false" if setting.flag else setting.placeholder
            default = "false" if setting.flag else _default(setting)
            rows.append((name, code(setting.name), value, code(default), setting.description))
    return table(("service", "option", "value", "default", "what it is"), rows)


def _protocols() -> str:
    rows = []
    for name in OWN_SERVICES:
        service = discover().load(name)
        for position, (protocol, kind) in enumerate(service.protocols.items()):
            shorts = [f"--{short}" for short, option in SHORTHANDS.items() if option == f"{name}-{protocol}"]
            options = [*shorts, *([f"--{name}"] if position == 0 else []), f"--{name}-{protocol}"]
            limits = getattr(service, "limits", {}) or {}
            own = ", ".join(f"{limit}={show_limit(value)}" for limit, value in limits.items())
            rows.append((name, protocol, kind, ", ".join(map(code, options)), code(own)))
    return table(("service", "protocol", "kind", "options", "default limits of its own"), rows)


def accepted_form(coerce: Callable[[object], object]) -> str:
    """Return the form that a coercer's error names; an empty string if it accepts any text."""
    try:
        # No number, encoding or network, but a valid path.
        coerce("?")
    except ValueError as error:
        return str(error)
    return ""


def _limits() -> str:
    def row(name: str) -> tuple[str, ...]:
        limit = LIMITS[name]
        kinds = ", ".join(f"{kind}s" for kind in limit.kinds)
        default = "" if limit.default is None else code(show_limit(limit.default))
        form = accepted_form(limit.coerce).partition("; there is no")[0]
        return code(name), limit.description, default, form, kinds, "yes" if limit.shared else ""

    return table(("limit", "what it is", "default", "value", "applies to", "shared"), map(row, LIMITS))


def _service() -> str:
    said = dict(re.findall(r"^- `(\w+)`: (.*(?:\n  .*)*)", inspect.cleandoc(Service.__doc__ or ""), re.M))
    rows = []
    for name, parameter in inspect.signature(Service).parameters.items():
        default = parameter.default
        shown = "" if default in (parameter.empty, None) else getattr(default, "__name__", repr(default))
        rows.append((code(name), code(shown), " ".join(said[name].split()).rstrip(".")))
    return table(("parameter", "default", "what it is"), rows)


def _addresses() -> str:
    rows = [
        (code(form), title.rstrip(":").removeprefix("For ").lower(), line)
        for title, forms in ADDRESSES.items()
        for form, line in forms
    ]
    return table(("address", "for", "what it is"), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "access": lambda: _pairs(("field", "what it is"), ACCESS_FIELDS),
    "addresses": _addresses,
    "command-options": _command_options,
    "commands": _commands,
    "keys": _keys,
    "limits": _limits,
    "log": lambda: _pairs(("field", "what it is"), LOG_FIELDS),
    "metrics": lambda: table(("metric", "kind", "labels", "what it is"), metrics()),
    "options": _options,
    "paths": lambda: _pairs(("request", "what it answers"), PATHS),
    "protocols": _protocols,
    "service": _service,
    "reasons": lambda: _pairs(("reason", "what it says"), REASONS),
    "services": _services,
    "signals": lambda: _pairs(("signal", "what it does"), SIGNALS),
    "status": lambda: _pairs(("name", "what it is"), STATUS_FIELDS),
}


def with_tables(document: str) -> str:
    """Return a document with every table as the code has it."""
    return TABLE.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}", document)
