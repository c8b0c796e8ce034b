"""Ctrl-C and SIGTERM: the first asks the loop to finish its step and save, the second stops at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from cupola.display import Display


class StopRequest:
    """While it is entered, the first signal sets `asked`; the second raises KeyboardInterrupt.

    Signals belong to the main thread: elsewhere it does nothing, and `asked` stays False.
    """

    def __init__(self, display: Display) -> None:
        self.asked = False
        self._display = display
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # In a thread, since the signal may have come in the middle of a write to the same terminal.
        text = "stopping after what is under way; once more to stop at once"
        threading.Thread(target=self._display.say, args=(text,), daemon=True).start()
