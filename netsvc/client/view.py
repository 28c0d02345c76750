"""The live view of `netsvc status` on a terminal: takes the user's keys, and looks again every second."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import FormattedTextControl, Layout, Window
from prompt_toolkit.output import Output

from netsvc.client.asking import Process
from netsvc.client.board import CLOSE, QUIT, Board
from netsvc.client.failure import ClientError, LeaveError
from netsvc.client.watch import Watch
from netsvc.host.commands import query_words

__all__ = ["INTERVAL", "view"]

#: Seconds between two looks.
INTERVAL = 1.0

_NAMES = {
    Keys.Up: "up",
    Keys.Down: "down",
    Keys.PageUp: "pageup",
    Keys.PageDown: "pagedown",
    Keys.Home: "home",
    Keys.End: "end",
    Keys.Enter: "enter",
    Keys.Escape: "escape",
    Keys.Backspace: "backspace",
    Keys.Tab: "tab",
}


async def view(
    process: Process,
    board: Board,
    *,
    keys: Input | None = None,
    screen: Output | None = None,
    interval: float = INTERVAL,
) -> int:
    """Show a process on a board until the user has seen enough. Raises `ClientError` if there is nothing to be seen."""
    watch, now = Watch(process), asyncio.Event()
    board.show(await watch.look(query_words(board.query)))
    closing: set[asyncio.Task[None]] = set()

    async def look_again() -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(now.wait(), interval)
            now.clear()
            try:
                board.show(await watch.look(query_words(board.query)))
            except ClientError as error:
                [board.lost, *_] = str(error).splitlines()
            application.invalidate()

    async def close() -> None:
        board.notice = await watch.close(board.to_close)
        now.set()
        application.invalidate()

    def press(key: str) -> None:
        wish = board.press(key)
        if wish == QUIT:
            application.exit(result=0)
        elif wish == CLOSE:
            closing.add(asyncio.ensure_future(close()))
        elif wish is not None:
            now.set()

    application = _application(board, press, keys, screen)
    looking = asyncio.ensure_future(look_again())
    try:
        return await application.run_async(handle_sigint=False, set_exception_handler=False)
    finally:
        for task in (looking, *closing):
            task.cancel()


def _application(board: Board, press: Any, keys: Input | None, screen: Output | None) -> Application[int]:
    bindings = KeyBindings()

    def bind(key: Keys, name: str) -> None:
        # At once: nothing that begins with Escape has a meaning here.
        @bindings.add(key, eager=True)
        def _(_event: KeyPressEvent) -> None:
            press(name)

    for key, name in _NAMES.items():
        bind(key, name)

    @bindings.add(Keys.Any)
    def _typed(event: KeyPressEvent) -> None:
        press(event.data)

    @bindings.add(Keys.BracketedPaste)
    def _pasted(event: KeyPressEvent) -> None:
        # Text is no command, whatever its letters are.
        if board.typing:
            for character in event.data.partition("\n")[0]:
                press(character)

    @bindings.add(Keys.ControlC)
    def _left(event: KeyPressEvent) -> None:
        event.app.exit(exception=LeaveError())

    def text() -> StyleAndTextTuples:
        size = application.output.get_size()
        lines = board.lines(size.columns, size.rows)
        # No line feed after the last one: it would be a line too many.
        return [(style, line + "\n" * (place < len(lines) - 1)) for place, (style, line) in enumerate(lines)]

    window = Window(FormattedTextControl(text, show_cursor=False), always_hide_cursor=True)
    application: Application[int] = Application(
        Layout(window), key_bindings=bindings, full_screen=True, input=keys, output=screen
    )
    application.ttimeoutlen = 0.05
    return application
