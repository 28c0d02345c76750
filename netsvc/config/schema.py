"""Describes the configuration file as a JSON Schema (draft 2020-12), for editors.

It is made from what the reader of the file uses: the settings, the limits, and the protocols and options that services
declare. Everything that the reader accepts fits it; some of what the reader refuses fits as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netsvc.base.errors import PluginError
from netsvc.base.values import Range
from netsvc.config.discovery import Catalogue
from netsvc.config.settings import SETTINGS, key_of
from netsvc.interfaces import INetworkService
from netsvc.options import Setting, declared_settings
from netsvc.plan.limits import LIMITS, Limit

_Schema = dict[str, Any]

#: The keys of the file that are not settings of the process: what each takes, and what it is.
OTHER_KEYS: Mapping[tuple[str, ...], tuple[str, str]] = {
    ("limits",): ("table", "Limits of the whole process"),
    ("services", "NAME", "service"): ("name", "The service, if it has another name"),
    ("services", "NAME", "serve"): ("text", "Or a class or a Service of a file or module: PATH_OR_MODULE:NAME"),
    ("services", "NAME", "listen"): ("listeners", "Where its default protocol listens"),
    ("services", "NAME", "PROTOCOL"): ("listeners", "Where the protocol of that name listens"),
    ("services", "NAME", "OPTION"): ("text, number, true", "An option that the service declares"),
    ("services", "NAME", "limits"): ("table", "Limits of the service"),
    ("services", "NAME", "drain"): ("seconds", "Grace period for its conversations, if different from the process's"),
    ("services", "NAME", "PROTOCOL", "address"): ("address", "The address of a listener that is a table"),
    ("services", "NAME", "PROTOCOL", "limits"): ("table", "Limits of that listener"),
    ("twistd", "run"): ("text", "Another twistd plugin and its options: web --listen tcp:8080; [[twistd]] repeats"),
    ("twistd", "limits"): ("table", "Limits of the ports of that plugin"),
}

_SERVICE = ("services", "NAME")
_LISTENER = ("services", "NAME", "PROTOCOL")

#: Text instead of a number: from the environment, or with a unit.
_SUBSTITUTED = r"\$\{"
_NAME = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
#: How numbers are written as text, and bytes and seconds with a unit.
_DIGITS = r"^[\d._+\-eE\s]*\d[\d._+\-eE\s]*$"
_TEXTS = {
    "bytes": r"^\s*\d+\s*([kKmMgG]?[iI]?[bB]?)\s*$",
    "seconds": rf"{_DIGITS}|^\s*\d+(\.\d+)?\s*[sSmMhHdD]\s*$",
}
_ADDRESS: _Schema = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 65535}, {"type": "string", "minLength": 1}]}


def _value(coerce: Callable[[Any], Any] | None) -> _Schema:
    """Describe a value by its coercer, if that has bounds."""
    if not isinstance(coerce, Range):
        return {"type": ["string", "number"]}
    whole = coerce.what in ("a whole number", "bytes")
    bounds = {"minimum": coerce.lowest, "maximum": coerce.highest}
    return {
        "anyOf": [
            {"type": "integer" if whole else "number", **bounds},
            {"type": "string", "pattern": f"{_SUBSTITUTED}|{_TEXTS.get(coerce.what, _DIGITS)}"},
        ]
    }


def _limit(limit: Limit) -> _Schema:
    schema: _Schema = {"description": _sentence(limit.description)}
    if limit.default is not None:
        schema["default"] = limit.default
    value = _value(limit.coerce)
    if "anyOf" in value:
        return schema | {"anyOf": [*value["anyOf"], {"const": "none"}]}
    return schema | {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def _about(*key: str) -> _Schema:
    return {"description": _sentence(OTHER_KEYS[key][1])}


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
    listener = {
        "type": "object",
        "additionalProperties": False,
        "required": ["address"],
        "properties": {
            "address": {**_about(*_LISTENER, "address"), **_ADDRESS},
            "limits": {**_about(*_LISTENER, "limits"), **_ref(f"{kind}-limits")},
        },
    }
    return {"anyOf": [*_ADDRESS["anyOf"], listener]}


def _setting(setting: Setting) -> _Schema:
    schema: _Schema = {"description": setting.description}
    if setting.flag:
        return schema | {
            "anyOf": [{"type": "boolean"}, {"type": "string", "pattern": rf"{_SUBSTITUTED}|^(true|false)$"}]
        }
    if isinstance(setting.default, str | int | float):
        schema["default"] = setting.default
    if setting.choices and setting.coerce is None:
        return schema | {"anyOf": [{"enum": list(setting.choices)}, {"type": "string", "pattern": _SUBSTITUTED}]}
    value = _value(setting.coerce)
    if setting.choices and "anyOf" in value:
        return schema | {"anyOf": [{"enum": list(setting.choices)}, *value["anyOf"]]}
    return schema | value


def _of_every_service() -> _Schema:
    """Describe the keys that every service has, whatever it declares."""
    return {
        "limits": {**_about(*_SERVICE, "limits"), **_ref("limits")},
        "drain": {**_about(*_SERVICE, "drain"), **_value(SETTINGS["drain"].coerce)},
    }


def _service(service: INetworkService) -> _Schema:
    default, *_ = service.protocols.values()
    properties: _Schema = {
        "service": {
            **_about(*_SERVICE, "service"),
            "anyOf": [{"const": service.name}, {"type": "string", "pattern": _SUBSTITUTED}],
        },
        "listen": {**_about(*_SERVICE, "listen"), **_addresses(default)},
        **_of_every_service(),
    }
    for name, kind in service.protocols.items():
        properties[name] = {"description": f"Where the protocol {name} listens ({kind}s).", **_addresses(kind)}
    for setting in declared_settings(service.options):
        properties[setting.name] = _setting(setting)
    return {
        "type": "object",
        "description": f"{service.description}.",
        "additionalProperties": False,
        "properties": properties,
    }


def _served() -> _Schema:
    """Describe a service that is a class or a declared service from a file or module."""
    streams_or_datagrams = {"anyOf": [_addresses("stream"), _addresses("datagram")]}
    return {
        "type": "object",
        # A declared service has protocols and options that are not known here.
        "required": ["serve"],
        "properties": {
            "serve": {
                **_about(*_SERVICE, "serve"),
                "type": "string",
                "pattern": rf".:.|{_SUBSTITUTED}",
            },
            **dict.fromkeys(("listen", "stream", "datagram"), streams_or_datagrams),
            **_of_every_service(),
        },
    }


def _process_setting(setting: Setting) -> _Schema:
    """Describe a setting of the process; only addresses and numbers can be numbers."""
    if setting.placeholder == "ADDRESS":
        return {"description": setting.description, **_ADDRESS}
    schema = _setting(setting)
    return {**schema, "type": "string", "minLength": 1} if "type" in schema else schema


def _admin() -> _Schema:
    """Describe `[admin]`, which may be an address alone."""
    properties = {
        "address" if name == "admin" else key_of(name)[1]: _process_setting(setting)
        for name, setting in SETTINGS.items()
        if key_of(name)[0] == "admin"
    }
    table = {"type": "object", "additionalProperties": False, "required": ["address"], "properties": properties}
    return {"description": "The admin page, metrics and API.", "anyOf": [*_ADDRESS["anyOf"], table]}


def configuration_schema(catalogue: Catalogue, names: Sequence[str] | None = None) -> _Schema:
    """Make the schema, with the services of these names, or with all that load."""
    services: dict[str, INetworkService] = {}
    for name in catalogue.names() if names is None else names:
        try:
            services[name] = catalogue.load(name)
        except PluginError:
            # `netsvc list` reports the reason.
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
                **_about(*_SERVICE, "service"),
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
            **{name: _process_setting(each) for name, each in SETTINGS.items() if not name.startswith("admin")},
            "admin": _admin(),
            "limits": {**_about("limits"), **_ref("limits")},
            "services": {
                "description": "The services, each under its name or one of your choice.",
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
                            **_about("twistd", "run"),
                            "type": "string",
                            "minLength": 1,
                        },
                        "limits": {**_about("twistd", "limits"), **_ref("limits")},
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
