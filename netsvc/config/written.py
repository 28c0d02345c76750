"""How a user wrote something: what a line about it begins with, on the command line and in a file."""

from __future__ import annotations

from dataclasses import dataclass, replace

from netsvc.text import escape

__all__ = ["Given", "Written"]


@dataclass(frozen=True)
class Written:
    """How the user wrote something: `--chat-history`, or a key of a file and, as `place`, `netsvc.toml:7: `."""

    text: str
    place: str = ""

    def mistake(self, what: object) -> str:
        """Say what is wrong with it."""
        return f"{self.place}{self.text}: {what}"

    def valued(self, value: object) -> Written:
        """Return the same with its value, as a message shows both."""
        return replace(self, text=f"{self.text} {escape(str(value))}")

    @property
    def prefix(self) -> str:
        """What begins a line about it; of the command line's words the line itself says enough."""
        return f"{self.place}{self.text}: " if self.place else ""


@dataclass(frozen=True)
class Given:
    """A value, not yet judged, and how it was written, without the value."""

    value: object
    written: Written
