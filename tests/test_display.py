"""Numbers for people, and what the console prints where it is no terminal."""

import io
import re
import time

import pytest
from rich.console import Console

from cupola.display import ConsoleDisplay, count, duration, size


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7.25, "7.25"),
        (999, "999"),
        (1000, "1k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (12_345_678, "12.3M"),
        (-2_000, "-2k"),
        (3e9, "3B"),
        (5.1e13, "51T"),
    ],
)
def test_count(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (999_999, "1 MB"), (1.09e9, "1.09 GB"), (2e12, "2 TB")],
)
def test_size(number, text):
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0s"), (9.94, "9.9s"), (59.4, "59s"), (75, "1m15s"), (7260, "2h01m")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_log_has_a_line_for_what_begins_and_ends_and_for_what_is_said():
    written = io.StringIO()
    display = ConsoleDisplay(Console(file=written, force_terminal=False, width=100))
    with display.task("encode a", 10, "bytes") as task:
        task.advance(5)
        display.warn("one file was dropped")
    first, warning, last = written.getvalue().splitlines()
    assert first == "encode a ..."
    assert warning == "warning: one file was dropped"
    assert last.startswith("encode a: 0.")


def test_the_time_left_stays_on_a_narrow_terminal():
    output = io.StringIO()
    display = ConsoleDisplay(Console(file=output, force_terminal=True, width=70, color_system=None))
    with display.task("pretrain", total=100, unit="tokens") as task:
        task.note("loss 4.123  8.31k tokens/s  52% of peak  lr 0.002  and much more that does not fit")
        for done in range(1, 40):
            task.at(done)
            time.sleep(0.02)
    shown = output.getvalue()
    assert re.search(r"\d:\d\d:\d\d left loss", shown.replace("\x1b[2K", ""))
    assert "…" in shown
