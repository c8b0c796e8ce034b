"""Reading a run's files, whole and broken."""

import json
import math

import numpy as np

from cupola.report.records import read_records
from tests.report.synthetic import write_run


def test_reads_a_run_as_it_was_written(tmp_path):
    records = read_records(write_run(tmp_path / "run"))
    assert records.name == "synthetic"
    assert [stage.name for stage in records.stages] == ["pretrain", "midtrain"]
    first, second = records.stages
    lines = (tmp_path / "run/stages/01-pretrain/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for name in ("loss", "tokens", "memory_bytes"):
        assert first.columns[name].tolist() == [row[name] for row in rows]
    assert first.shares["manuals"].tolist() == [row["shares"]["manuals"] for row in rows]
    assert second.offset == first.tokens == rows[-1]["tokens"]
    assert second.position[0] == first.tokens + second.columns["tokens"][0]
    assert set(second.heldout) == {"speeches", "manuals"}
    assert len(records.ledger) == 5
    assert records.torn == 0


def test_a_missing_folder_is_an_empty_run(tmp_path):
    records = read_records(tmp_path / "nothing")
    assert (records.name, records.stages, records.ledger, records.recipe) == ("nothing", [], [], "")


def test_torn_lines_and_missing_values_become_gaps(tmp_path):
    stage = tmp_path / "stages" / "01-pretrain"
    stage.mkdir(parents=True)
    lines = [
        '{"step": 1, "tokens": 10, "loss": 2.5, "shares": {"a": 1.0}}',
        '{"step": 2, "tokens": 20, "loss": NaN, "mfu": null}',
        "[1, 2]",
        '{"step": 3, "tokens": 30, "loss": "high", "shares": {"a": 0.5, "b": 0.5}}',
        '{"step": 4, "tok',
    ]
    (stage / "metrics.jsonl").write_text("\n".join(lines))
    (stage / "stage.json").write_text("{not json")
    records = read_records(tmp_path)
    columns = records.stages[0].columns
    assert columns["step"].tolist() == [1, 2, 3]
    assert columns["loss"][0] == 2.5
    assert np.isnan(columns["loss"][1:]).all()
    assert np.isnan(columns["mfu"]).all()
    assert records.stages[0].shares["a"].tolist() == [1.0, 0.0, 0.5]
    assert records.stages[0].shares["b"].tolist() == [0.0, 0.0, 0.5]
    assert records.torn == 2


def test_folders_that_are_set_aside_are_not_stages(tmp_path):
    write_run(tmp_path)
    (tmp_path / "stages/01-pretrain").rename(tmp_path / "stages/.01-pretrain-20260101")
    assert [stage.name for stage in read_records(tmp_path).stages] == ["midtrain"]


def test_tokens_fall_back_to_the_facts_of_the_stage(tmp_path):
    stage = tmp_path / "stages" / "01-a"
    stage.mkdir(parents=True)
    (stage / "stage.json").write_text('{"status": "done", "tokens": 77}')
    assert read_records(tmp_path).stages[0].tokens == 77
    assert math.isfinite(read_records(tmp_path).stages[0].offset)


def test_a_row_stands_where_its_step_is(tmp_path):
    stage = read_records(write_run(tmp_path, steps=12)).stages[1]
    assert stage.place({"step": 2, "tokens": 5}) == stage.offset + stage.columns["tokens"][1]
    for unknown in ({"step": 99}, {"step": "x"}, {}):
        assert math.isnan(stage.place(unknown))
