"""The ledger: append-only, durable, tolerant of a torn line."""

from cupola.ledger import Ledger


def test_events_come_back_in_order(tmp_path):
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    assert ledger.events() == []
    ledger.append("started", stage="pretrain")
    ledger.append("done", tokens=5)
    assert [(e["event"], e.get("stage"), e.get("tokens")) for e in ledger.events()] == [
        ("started", "pretrain", None),
        ("done", None, 5),
    ]


def test_a_torn_line_loses_only_itself(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("first")
    with ledger.path.open("ab") as file:
        file.write(b'{"time": 1, "event": "to')
    ledger.append("second")
    assert [e["event"] for e in ledger.events()] == ["first", "second"]


def test_old_lines_are_never_rewritten(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("first")
    before = ledger.path.read_bytes()
    ledger.append("second")
    assert ledger.path.read_bytes().startswith(before)
