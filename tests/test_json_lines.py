"""JSON lines, and the ledger that is written in them: append-only, durable, tolerant of a torn line."""

import json
import math

import pytest

from cupola import json_lines
from cupola.errors import CupolaError
from cupola.ledger import Ledger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "ledger.jsonl"


def test_events_come_back_in_order(path):
    ledger = Ledger(path)
    assert ledger.events() == []
    ledger.append("started", stage="pretrain")
    ledger.append("done", tokens=5)
    assert [(e["event"], e.get("stage"), e.get("tokens")) for e in ledger.events()] == [
        ("started", "pretrain", None),
        ("done", None, 5),
    ]


def test_a_torn_line_loses_only_itself_and_is_told(path):
    json_lines.append(path, {"step": 1})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    json_lines.append(path, {"step": 3})
    assert list(json_lines.read(path)) == [{"step": 1}, None, {"step": 3}]
    assert json_lines.read_whole(path) == [{"step": 1}, {"step": 3}]


def test_a_line_that_is_no_object_is_no_record(path):
    json_lines.append(path, {"step": 1})
    with path.open("ab") as file:
        file.write(b"[1, 2]\n\xff\n")
    assert list(json_lines.read(path)) == [{"step": 1}, None, None]


def test_old_lines_are_never_rewritten(path):
    json_lines.append(path, {"step": 1})
    before = path.read_bytes()
    json_lines.append(path, {"step": 2})
    assert path.read_bytes().startswith(before)


def test_lines_are_strict_json():
    record = {"loss": math.nan, "by": {1: math.inf}, "pair": (1.5, -math.inf), "text": "ü\n"}
    line = json_lines.as_line(record)
    assert json.loads(line, parse_constant=pytest.fail) == {
        "loss": None,
        "by": {"1": None},
        "pair": [1.5, None],
        "text": "ü\n",
    }
    assert "\n" not in line


def test_what_cannot_be_written_or_read_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CupolaError, match="cannot be written"):
        json_lines.append(tmp_path / "file" / "ledger.jsonl", {"step": 1})
    with pytest.raises(CupolaError, match="cannot be read"):
        json_lines.read_whole(tmp_path)
