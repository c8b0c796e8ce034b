"""What a person sees while Cupola works: one line for each fact, one bar for each long piece of work.

Everything goes to standard error, so that standard output stays free for results and `--json`. On a
terminal the bars are live; elsewhere (a log, CI) each piece of work prints a line when it begins, now and
then, and when it ends. Code below the command line takes a `Display` and never prints.
"""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

SECONDS_BETWEEN_LINES = 15.0


def duration(seconds: float) -> str:
    """`75` -> `1m15s`: how long something takes, for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def count(number: float) -> str:
    """`12_345_678` -> `12.3M`: a large number, for people."""
    scaled, suffix = _scaled(number, "kMBT")
    return f"{scaled:.3g}{suffix}" if suffix else f"{number:g}"


def size(number_of_bytes: float) -> str:
    """`1_090_000_000` -> `1.09 GB`: an amount of memory or text, for people."""
    scaled, suffix = _scaled(number_of_bytes, "kMGT")
    return f"{scaled:.3g} {suffix}B" if suffix else f"{number_of_bytes:.0f} bytes"


def _scaled(number: float, suffixes: str) -> tuple[float, str]:
    """The number in the largest unit in which its first three digits are at least 1, and that unit."""
    for power in range(len(suffixes), 0, -1):
        if abs(number) >= 0.9995 * 1000**power:
            return number / 1000**power, suffixes[power - 1]
    return number, ""


class Task:
    """A piece of work under way: move it on, and say what is going on."""

    def advance(self, amount: float = 1) -> None:
        """Add to what is done."""

    def at(self, done: float) -> None:
        """Set what is done, for work that knows its position (a training run that resumes)."""

    def total(self, total: float) -> None:
        """State the whole amount, once it is known."""

    def note(self, text: str) -> None:
        """The few words to the right of the bar: the loss, the file being read."""


class Display:
    """The silent display: the base class, used by libraries and tests."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def warn(self, text: str) -> None:
        """One line that stays and stands out: something was dropped, skipped, replaced or ignored."""

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """A piece of work with a bar; `total` in `unit` (tokens, bytes, documents)."""
        yield Task()


class _BarTask(Task):
    def __init__(self, bars: Progress, key: TaskID) -> None:
        self.bars, self.key = bars, key

    def advance(self, amount: float = 1) -> None:
        self.bars.advance(self.key, amount)

    def at(self, done: float) -> None:
        self.bars.update(self.key, completed=done)

    def total(self, total: float) -> None:
        self.bars.update(self.key, total=total)

    def note(self, text: str) -> None:
        self.bars.update(self.key, note=text)


class _NoteColumn(ProgressColumn):
    """The note; on a narrow terminal it is the only column that gives way, so the time left stays."""

    def render(self, task: RichTask) -> Text:
        return Text(str(task.fields["note"]), no_wrap=True, overflow="ellipsis")


class _LineTask(Task):
    """Prints how far the work is every `SECONDS_BETWEEN_LINES`."""

    def __init__(self, console: Console, title: str, total: float | None, unit: str) -> None:
        self.console, self.title, self.unit, self.whole = console, title, unit, total
        self.done, self.text = 0.0, ""
        self.first: float | None = None
        self.begun = self.printed = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        self.at(self.done + amount)

    def at(self, done: float) -> None:
        if self.first is None:
            self.first = done if done > self.done else 0.0
        self.done = done
        now = time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_LINES:
            self.printed = now
            self.console.print(Text(f"  {self.title}: {self.progress(now)}"))

    def progress(self, now: float) -> str:
        text = f"{count(self.done)} {self.unit}".strip()
        gained = self.done - (self.first or 0.0)
        if self.whole:
            done = min(self.done, self.whole)  # a batch may reach beyond a share of the stage
            text = f"{done / self.whole:.0%} of {count(self.whole)} {self.unit}".strip()
            if gained > 0:
                left = (now - self.begun) * (self.whole - done) / gained
                text += f", {duration(left)} left"
        return f"{text}  {self.text}".rstrip()

    def total(self, total: float) -> None:
        self.whole = total

    def note(self, text: str) -> None:
        self.text = text


class ConsoleDisplay(Display):
    """The display of the command line, on standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        self._bars: Progress | None = None

    def say(self, text: str) -> None:
        self.console.print(Text(text))

    def warn(self, text: str) -> None:
        self.console.print(Text(f"warning: {text}", style="yellow"))

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        begun = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(Text(f"{title} ..."))
            yield _LineTask(self.console, title, total, unit)
        else:
            with self._live() as bars:
                key = bars.add_task(title, total=total, note="")
                try:
                    yield _BarTask(bars, key)
                finally:
                    bars.remove_task(key)
        self.console.print(Text(f"{title}: {duration(time.monotonic() - begun)}", style="dim"))

    @contextlib.contextmanager
    def _live(self) -> Iterator[Progress]:
        """The one live region of the terminal; work inside work adds its bar to the same region."""
        if self._bars is not None:
            yield self._bars
            return
        columns = (
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
            TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("left", table_column=Column(no_wrap=True)),
            _NoteColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:
            self._bars = bars
            try:
                yield bars
            finally:
                self._bars = None
