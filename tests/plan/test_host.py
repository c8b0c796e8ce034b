"""This machine measured on the spot: kept, used from then on, and said where it is missing."""

import json
import subprocess

import pytest

from cupola.cli import main
from cupola.errors import CupolaError
from cupola.plan import host
from cupola.plan.hardware import catalogue, parse

FOUND = {"fp32": 1.5e11, "bf16": 2.5e11, "bandwidth": 1.1e10, "threads": 2, "torch": "2.0"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path))


def measuring(monkeypatch, said, status=0):
    def run(command, **options):
        assert command[1:] == ["-m", "cupola.train.peak"]
        if status:
            raise subprocess.CalledProcessError(status, command, stderr="Traceback\nOSError: no")
        return subprocess.CompletedProcess(command, 0, stdout=said)

    monkeypatch.setattr(subprocess, "run", run)


def test_what_was_measured_is_kept_and_takes_the_place_of_the_guess(monkeypatch):
    assert host.measured() is None
    assert parse("cpu")[0].peak != {"fp32": 1.5e11, "bf16": 2.5e11}
    measuring(monkeypatch, json.dumps(FOUND))
    made = host.measure()
    assert host.measured() == made
    record, _ = parse("cpu")
    assert record.peak == {"fp32": 1.5e11, "bf16": 2.5e11}
    assert record.bandwidth == 1.1e10
    assert record.sources["sheet"] == made.source
    assert parse("h100")[0] == catalogue()["h100"]


def test_an_unmeasured_machine_says_so(monkeypatch, capsys):
    assert main(["plan", "quickstart"]) == 0
    assert "is an assumption; --measure" in capsys.readouterr().out
    measuring(monkeypatch, json.dumps(FOUND))
    assert main(["plan", "quickstart", "--measure"]) == 0
    assert "is an assumption" not in capsys.readouterr().out
    assert main(["plan", "llama3-8b", "--on", "h100:8"]) == 0
    assert "is an assumption" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "status", "words"), [("no json", 0, "Expecting value"), ("", 1, "OSError: no")]
)
def test_a_measurement_that_fails_is_one_line(monkeypatch, said, status, words):
    measuring(monkeypatch, said, status)
    with pytest.raises(CupolaError, match=f"--measure: fails .*{words}"):
        host.measure()
    assert host.measured() is None


def test_a_damaged_measurement_is_none(monkeypatch):
    measuring(monkeypatch, json.dumps(FOUND))
    host.measure()
    host.path().write_text('{"fp32": 1}')
    assert host.measured() is None
