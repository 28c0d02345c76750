"""Describes the configuration file as a JSON Schema (draft 2020-12), for editors.

It is made of what the file's reader goes by: the table of limits, and the protocols and options that services
declare. What the reader accepts fits it; it cannot tell all that the reader would not accept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from twisted.python.reflect import accumulateClassList

from netsvc.config.process import LONGEST_DRAIN
from netsvc.discovery import Catalogue
from netsvc.errors import PluginError
from netsvc.interfaces import INetworkService
from netsvc.limits import LIMITS, Limit
from netsvc.plan import DEFAULT_DRAIN, LOG_FORMS, MOST_WORKERS
from netsvc.settings import Setting, declared_settings, seconds, whole_number

__all__ = ["accepted_form", "configuration_schema", "write_schema"]

_Schema = dict[str, Any]

#: Some text in the place of a number: from the environment, or with a unit.
_SUBSTITUTED = r"\$\{"
_NAME = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
#: Others may say what they like.
_COERCERS = whole_number.__module__
_FORM = re.compile(r"(?P<what>.+) from (?P<low>[\d.]+) to (?P<high>[\d.]+)(,.*)?")


def accepted_form(coerce: Callable[[Any], Any]) -> str:
    """Return what a coercer says that it accepts; nothing if it accepts any text."""
    try:
        # No number, no encoding, no network; but a path, for whoever takes any.
        coerce("?")
    except ValueError as error:
        return str(error)
    return ""


def _value(coerce: Callable[[Any], Any] | None) -> _Schema:
    """Describe a value by what its coercer says of itself, if it is one of `netsvc.settings`."""
    found = None
    if coerce and coerce.__module__ == _COERCERS:
        found = _FORM.fullmatch(accepted_form(coerce))
    if not found:
        return {"type": ["string", "number"]}
    bounds = {"minimum": _number(found["low"]), "maximum": _number(found["high"])}
    whole = found["what"] in ("a whole number", "bytes")
    unit = r"|^[\d._+\-eE\s]*\d[\d._+\-eE\s]*$"
    if found["what"] == "bytes":
        unit = r"|^\s*\d+\s*([kKmMgG]?[iI]?[bB]?)\s*$"
    elif found["what"] == "seconds":
        unit = rf"{unit}|^\s*\d+(\.\d+)?\s*[sSmMhHdD]\s*$"
    return {
        "anyOf": [
            {"type": "integer" if whole else "number", **bounds},
            {"type": "string", "pattern": f"{_SUBSTITUTED}{unit}"},
        ]
    }


def _number(text: str) -> float:
    return float(text) if "." in text else int(text)


def _limit(limit: Limit) -> _Schema:
    schema: _Schema = {"description": _sentence(limit.description)}
    if limit.default is not None:
        schema["default"] = limit.default
    value = _value(limit.coerce)
    if "anyOf" in value:
        return schema | {"anyOf": [*value["anyOf"], {"const": "none"}]}
    return schema | {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _limits(names: Sequence[str] = tuple(LIMITS)) -> _Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _limit(LIMITS[name]) for name in names},
    }


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/$defs/{name}"}


def _addresses(kind: str) -> _Schema:
    return {"anyOf": [_ref(f"{kind}-address"), {"type": "array", "items": _ref(f"{kind}-address")}]}


def _address(kind: str) -> _Schema:
    plain: _Schema = {
        "anyOf": [{"type": "integer", "minimum": 0, "maximum": 65535}, {"type": "string", "minLength": 1}]
    }
    listener = {
        "type": "object",
        "additionalProperties": False,
        "required": ["address"],
        "properties": {"address": plain, "limits": _ref(f"{kind}-limits")},
    }
    return {"anyOf": [*plain["anyOf"], listener]}


def _option(setting: Setting, coerce: Callable[[Any], Any] | None) -> _Schema:
    schema: _Schema = {"description": " ".join(setting.description.split())}
    if setting.flag:
        return schema | {
            "anyOf": [{"type": "boolean"}, {"type": "string", "pattern": rf"{_SUBSTITUTED}|^(true|false)$"}]
        }
    if isinstance(setting.default, str | int | float):
        schema["default"] = setting.default
    return schema | _value(coerce)


def _coercers(service: INetworkService) -> dict[str, Callable[[Any], Any]]:
    entries: list[Sequence[Any]] = []
    accumulateClassList(type(service.options()), "optParameters", entries)
    return {entry[0]: entry[4] for entry in entries if len(entry) > 4}


def _service(service: INetworkService) -> _Schema:
    coercers = _coercers(service)
    default, *_ = service.protocols.values()
    properties: _Schema = {
        "service": {"anyOf": [{"const": service.name}, {"type": "string", "pattern": _SUBSTITUTED}]},
        "listen": {"description": "Where the default protocol listens.", **_addresses(default)},
        "limits": _ref("limits"),
        "drain": _drain("Seconds that its conversations have to end, if not those of all."),
    }
    for name, kind in service.protocols.items():
        properties[name] = {"description": f"Where the protocol {name} listens ({kind}s).", **_addresses(kind)}
    for setting in declared_settings(service.options):
        properties[setting.name] = _option(setting, coercers.get(setting.name))
    return {
        "type": "object",
        "description": f"{service.description}.",
        "additionalProperties": False,
        "properties": properties,
    }


def _served() -> _Schema:
    """Describe a service that is a class straight from a file or module."""
    streams_or_datagrams = {"anyOf": [_addresses("stream"), _addresses("datagram")]}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["serve"],
        "properties": {
            "serve": {
                "description": "PATH_OR_MODULE:NAME of a Protocol, DatagramProtocol or Factory class.",
                "type": "string",
                "pattern": rf".:.|{_SUBSTITUTED}",
            },
            **dict.fromkeys(("listen", "stream", "datagram"), streams_or_datagrams),
            "limits": _ref("limits"),
            "drain": _drain("Seconds that its conversations have to end, if not those of all."),
        },
    }


def _drain(description: str) -> _Schema:
    return {"description": description, **_value(seconds(0, LONGEST_DRAIN))}


def _file(description: str) -> _Schema:
    return {"description": description, "type": "string", "minLength": 1}


def _admin() -> _Schema:
    """Describe where the admin page is."""
    address: _Schema = {
        "anyOf": [{"type": "integer", "minimum": 0, "maximum": 65535}, {"type": "string", "minLength": 1}]
    }
    table = {
        "type": "object",
        "additionalProperties": False,
        "required": ["address"],
        "properties": {
            "address": {"description": "Where it listens. A bare port is on this machine only.", **address},
            "token": _file("A file with the word that whoever asks must know."),
            "ca": _file("A file of certificates (PEM), by one of which that of whoever asks must be signed."),
        },
    }
    return {"description": "The admin page, the metrics and the API.", "anyOf": [*address["anyOf"], table]}


def configuration_schema(catalogue: Catalogue, names: Sequence[str] | None = None) -> _Schema:
    """Make the schema, with the services of these names; without names, with all that load."""
    services: dict[str, INetworkService] = {}
    for name in catalogue.names() if names is None else names:
        try:
            services[name] = catalogue.load(name)
        except PluginError:
            # `netsvc list` says why.
            continue
    by_kind: _Schema = {"if": {"required": ["serve"]}, "then": _ref("serve")}
    by_service = [
        {"if": {"required": ["service"], "properties": {"service": {"const": name}}}, "then": _ref(f"service-{name}")}
        for name in services
    ]
    others = {
        "type": "object",
        "oneOf": [{"required": ["service"]}, {"required": ["serve"]}],
        "properties": {
            "service": {
                "description": "Which service this is.",
                "anyOf": [{"enum": list(services)}, {"type": "string", "pattern": _SUBSTITUTED}],
            }
        },
        "allOf": [by_kind, *by_service],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "netsvc.toml",
        "description": "The configuration file of netsvc.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "drain": {
                "default": DEFAULT_DRAIN,
                **_drain("Seconds that conversations have to end when the process stops."),
            },
            "workers": {
                "description": "How many processes serve, on the same ports; auto: one for each core.",
                "default": 1,
                "anyOf": [{"const": "auto"}, *_value(whole_number(1, MOST_WORKERS))["anyOf"]],
            },
            "log": {
                "description": "How the log is written: text, or json, one object a line.",
                "default": "text",
                "anyOf": [{"enum": list(LOG_FORMS)}, {"type": "string", "pattern": _SUBSTITUTED}],
            },
            "access": {
                "default": "log",
                **_file("Where a record of each connection that ends goes: log, off, or a file of its own."),
            },
            "state": _file("A directory, made if it is missing, for what is to be kept."),
            "admin": _admin(),
            "limits": {"description": "Limits of the whole process.", **_ref("limits")},
            "services": {
                "description": "What is served: each service under its name, or one of your own choice.",
                "type": "object",
                "propertyNames": {"pattern": _NAME},
                "properties": {name: _ref(f"service-{name}") for name in services},
                "additionalProperties": others,
            },
            "twistd": {
                "description": "Other twistd plugins that run in the process.",
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["run"],
                    "properties": {
                        "run": {
                            "description": "The plugin's name and its options: web --listen tcp:8080 --path public",
                            "type": "string",
                            "minLength": 1,
                        },
                        "limits": _ref("limits"),
                    },
                },
            },
        },
        "$defs": {
            "limits": _limits(),
            "stream-limits": _limits([name for name, limit in LIMITS.items() if "stream" in limit.kinds]),
            "datagram-limits": _limits([name for name, limit in LIMITS.items() if "datagram" in limit.kinds]),
            "stream-address": _address("stream"),
            "datagram-address": _address("datagram"),
            "serve": _served(),
            **{f"service-{name}": _service(service) for name, service in services.items()},
        },
    }


def write_schema(catalogue: Catalogue, names: Sequence[str] | None = None) -> str:
    """Write the schema as a file has it."""
    return json.dumps(configuration_schema(catalogue, names), indent=2, ensure_ascii=False) + "\n"
