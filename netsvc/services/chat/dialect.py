"""The encoding and the line end that a client turns out to use."""

from __future__ import annotations

from netsvc.services.chat.wording import form

__all__ = ["UTF8", "Dialect"]

UTF8 = "utf-8"


class Dialect:
    """Reads one client's lines, and knows the `form` in which to answer.

    It starts with UTF-8 and LF. From the first line on that is not in the present encoding but is in the other,
    that other is the client's; from the first CR LF on, CR LF is its line end.
    """

    def __init__(self, legacy: str) -> None:
        self._other = legacy
        self._end = "\n"
        self.encoding = UTF8
        self.form = form(UTF8, self._end)

    def read(self, line: bytes) -> str:
        """Return the text of a line. What is in neither encoding is replaced (U+FFFD)."""
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError:
            pass
        try:
            text = line.decode(self._other)
        except UnicodeDecodeError:
            return line.decode(self.encoding, "replace")
        self.encoding, self._other = self._other, self.encoding
        self.form = form(self.encoding, self._end)
        return text

    def end_with_return(self) -> None:
        """Take note that the client ends its lines with CR LF."""
        if self._end == "\n":
            self._end = "\r\n"
            self.form = form(self.encoding, self._end)
