"""The processes that read: in order, ending with the one that started them, their death one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cupola.corpus import pool
from cupola.corpus.reading import Entry, Portion, Rules
from cupola.errors import CupolaError

RULES = Rules(min_document_bytes=0, text_field="text")
ENDLESS = """
import itertools
from pathlib import Path
from cupola.corpus import pool
from cupola.corpus.reading import Entry, Portion, Rules

if __name__ == "__main__":
    entry = Entry(Path(), "x", "text", "x", "x", 0)
    portions = (Portion([entry], 1, ready=[("x", "words " * 1000)]) for _ in itertools.count())
    for reading in pool.read_in_order(portions, Rules(0, "text"), 2):
        print("reading", flush=True)
"""


def ready(number: int) -> Portion:
    return Portion([Entry(Path(), "x", "text", "x", "x", 0)], 1, ready=[(str(number), f"Text {number}")])


@pytest.mark.multiprocess
def test_results_come_in_order_and_reading_stops_when_nobody_asks() -> None:
    asked = []

    def portions() -> object:
        for number in range(500):
            asked.append(number)
            yield ready(number)

    readings = pool.read_in_order(portions(), RULES, 2)  # type: ignore[arg-type]
    got = [next(readings).documents[0].id for _ in range(20)]
    readings.close()  # type: ignore[attr-defined]
    assert got == [str(number) for number in range(20)]
    assert len(asked) <= 20 + pool.UNDER_WAY * 2


@pytest.mark.multiprocess
def test_killed_the_processes_end_too(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


@pytest.mark.multiprocess
def test_an_interrupt_does_not_reach_the_processes_from_their_first_instruction_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    interrupted = set()

    def portions() -> object:
        for number in range(50):
            for child in psutil.Process(os.getpid()).children():  # as Ctrl-C does, while they still import
                interrupted.add(child.pid)
                child.send_signal(signal.SIGINT)
            yield ready(number)

    readings = list(pool.read_in_order(portions(), RULES, 2))  # type: ignore[arg-type]
    assert [reading.documents[0].id for reading in readings] == [str(number) for number in range(50)]
    assert len(interrupted) >= 2
    assert "Traceback" not in capfd.readouterr().err
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


@pytest.mark.multiprocess
def test_a_killed_reader_is_one_line() -> None:
    def portions() -> object:
        for number in range(100_000):
            if number == 10:
                for child in psutil.Process(os.getpid()).children():
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
                time.sleep(0.2)
            yield ready(number)

    with pytest.raises(CupolaError, match="was killed; was there enough memory"):
        list(pool.read_in_order(portions(), RULES, 2))  # type: ignore[arg-type]
