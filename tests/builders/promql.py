"""Reads the part of Prometheus's query language that the dashboard and the alerts are written in.

https://prometheus.io/docs/prometheus/latest/querying/basics/ has the whole. Whatever is not in this part is an error:
so a slip does not pass for something that is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TARGET", "Query", "known_metrics", "parse"]

#: What Prometheus itself says of where a series comes from.
TARGET = {"job", "instance"}

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<range>\[(?:\d+[smhd]|\$__rate_interval)\])|(?P<number>\d+(?:\.\d+)?)
    |(?P<word>[a-zA-Z_]\w*)|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/<>=(){},]))""",
    re.X,
)
_AGGREGATIONS = {"sum", "min", "max", "count", "avg"}
_OVER_RANGES = {"rate", "increase", "changes"}
_FUNCTIONS = _OVER_RANGES | {"histogram_quantile", "vector", "time"}
_OPERATORS = {"+", "-", "*", "/", "==", "!=", "<", ">", "<=", ">=", "and", "or", "unless"}
#: For what counts up alone.
_OF_COUNTERS = {"rate", "increase"}


@dataclass
class Query:
    """What a query asks for: metrics with the labels that it looks at, and the labels that its answer has.

    `labels` is None for what has none, a number.
    """

    metrics: dict[str, set[str]] = field(default_factory=dict)
    labels: set[str] | None = None


def known_metrics(families: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, tuple[str, set[str]]]:
    """Return each series that there may be, with its kind and labels, of families with theirs."""
    known = {}
    for name, (kind, labels) in families.items():
        if kind == "histogram":
            known[f"{name}_bucket"] = "counter", {*labels, "le"} | TARGET
            known |= {f"{name}_{part}": ("counter", {*labels} | TARGET) for part in ("sum", "count")}
        else:
            known[name] = kind, {*labels} | TARGET
    return known


def parse(text: str, known: Mapping[str, tuple[str, set[str]]]) -> Query:
    """Read a query. Raises `ValueError` for what it does not understand, and a metric or label that there is not."""
    parser = _Parser(text, known)
    query = parser.expression()
    if parser.tokens:
        raise ValueError(f"{text}: not understood from {parser.tokens[0]} on")
    return query


class _Parser:
    def __init__(self, text: str, known: Mapping[str, tuple[str, set[str]]]) -> None:
        self.text = text
        self.known = known
        self.tokens: list[str] = []
        place = 0
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise ValueError(f"{text}: not understood at {text[place:]}")
            self.tokens.append(match[0].strip())
            place = match.end()

    def wrong(self, reason: str) -> ValueError:
        return ValueError(f"{self.text}: {reason}")

    def peek(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def take(self, *expected: str) -> str:
        token = self.peek()
        if not token or (expected and token not in expected):
            raise self.wrong(f"{' or '.join(expected) or 'more'} expected, not {token or 'the end'}")
        return self.tokens.pop(0)

    def expression(self) -> Query:
        query = self.operand()
        while self.peek() in _OPERATORS:
            self.take()
            other = self.operand()
            query.metrics |= {name: labels | query.metrics.get(name, set()) for name, labels in other.metrics.items()}
            if query.labels is None:
                query.labels = other.labels
            elif other.labels and query.labels != other.labels:
                raise self.wrong(f"{query.labels} and {other.labels} do not match")
        return query

    def operand(self) -> Query:
        token = self.take()
        if token == "(":
            query = self.expression()
            self.take(")")
            return query
        if token[0].isdigit():
            return Query()
        if token in _AGGREGATIONS:
            return self.aggregation()
        if token in _FUNCTIONS:
            return self.function(token)
        return self.selector(token)

    def names(self) -> set[str]:
        self.take("(")
        names = {self.take()}
        while self.take(",", ")") == ",":
            names.add(self.take())
        return names

    def aggregation(self) -> Query:
        by: set[str] = set()
        if self.peek() == "by":
            self.take()
            by = self.names()
        self.take("(")
        query = self.expression()
        self.take(")")
        if not by <= (query.labels or set()):
            raise self.wrong(f"there is no label {by - (query.labels or set())}")
        query.labels = by
        return query

    def function(self, name: str) -> Query:
        self.take("(")
        if name == "time":
            self.take(")")
            return Query()
        if name in _OVER_RANGES:
            metric = self.take()
            query = self.selector(metric)
            if not re.fullmatch(r"\[.*\]", self.take()):
                raise self.wrong(f"{name} needs a range")
            if name in _OF_COUNTERS and self.known[metric][0] != "counter":
                raise self.wrong(f"{name} of {metric}, which is no counter")
        elif name == "vector":
            query = self.expression()
            query.labels = set()
        else:
            self.take()
            self.take(",")
            query = self.expression()
            if "le" not in (query.labels or set()):
                raise self.wrong(f"{name} needs the label le")
            query.labels = (query.labels or set()) - {"le"}
        self.take(")")
        return query

    def selector(self, name: str) -> Query:
        if name not in self.known:
            raise self.wrong(f"there is no metric {name}")
        labels = self.known[name][1]
        looked_at = set()
        if self.peek() == "{":
            self.take()
            while self.peek() != "}":
                looked_at.add(self.take())
                self.take("=", "=~", "!=", "!~")
                if not self.take().startswith('"'):
                    raise self.wrong("a value is in quotation marks")
                if self.peek() != "}":
                    self.take(",")
            self.take()
        if not looked_at <= labels:
            raise self.wrong(f"{name} has no label {looked_at - labels}")
        return Query({name: looked_at}, set(labels))
