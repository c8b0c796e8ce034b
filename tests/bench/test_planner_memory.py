"""Memory of published rows: formulas to the digit, measured peaks within the aims."""

import statistics

import pytest

from bench.planner.memory import MEMORY, layout_of, run_of
from bench.planner.predictors import Case, Unpredicted, cases
from bench.planner.rows import read

ROWS = read()
CASES = [case for row in ROWS for case in cases(row, ROWS) if case.metric in MEMORY]


def errors(group: str, metric: str) -> list[float]:
    found = [case for case in CASES if case.row.group.startswith(group) and case.metric.startswith(metric)]
    return [MEMORY[case.metric](case).value / case.published - 1 for case in found]


def of(**changes) -> Case:
    """A row of torchtitan with changes."""
    (case,) = (c for c in CASES if c.row.name == "titan Llama3.1-8B FSDP8 eager bf16")
    row = case.row
    extra = row.extra | {key: value for key, value in changes.items() if key not in row.facts}
    facts = row.facts | {key: value for key, value in changes.items() if key in row.facts}
    changed = type(row)(row.name, row.group, facts, row.metrics, extra, row.odd)
    return Case(changed, case.metric, case.published, case.slack, ROWS)


def test_every_row_is_predicted_inside_its_interval():
    assert len(CASES) == 82
    for case in CASES:
        found = MEMORY[case.metric](case)
        assert found.low <= case.published <= found.high, (case.row.name, case.metric)


def test_korthikanti_2022():
    assert max(map(abs, errors("korthikanti", "mem_act_GiB"))) < 1e-9
    assert max(map(abs, errors("korthikanti", "mem_params_opt_GiB"))) < 0.001
    assert max(map(abs, errors("korthikanti", "act_mem_pct"))) < 0.012  # read off a figure


def test_zero():
    found = errors("zero_table1", "model_state_GB")
    assert len(found) == 36
    assert statistics.median(map(abs, found)) < 0.001


@pytest.mark.parametrize(
    ("group", "metric", "number"), [("torchtitan", "peak_mem_GiB", 13), ("nanotron", "peak_alloc_MiB", 9)]
)
def test_measured_peaks(group, metric, number):
    found = [abs(error) for error in errors(group, metric)]
    assert len(found) == number
    assert statistics.median(found) < 0.10
    assert max(found) < 0.15


def test_the_loss_is_compiled_with_the_model_only_in_later_releases():
    assert run_of(of()).execution.loss == "eager"
    assert run_of(of(compile=True)).execution.loss == "eager"
    assert run_of(of(compile=True, source="llama3_h100_202506")).execution.loss == "compiled"
    assert run_of(of(tp=8, dp=1)).execution.loss == "vocabulary_parallel"


def test_nanotron_gives_the_last_ranks_fewer_layers():
    (case,) = (c for c in CASES if c.row.name == "nanotron llama-1B dp2 tp1 pp4 mbz2")
    assert run_of(case).layout.layers == (5, 5, 5, 1)


def test_a_row_that_does_not_say_how_it_was_spread_is_not_predicted():
    with pytest.raises(Unpredicted, match="no micro_batch"):
        layout_of(of(micro_batch=None))
    with pytest.raises(Unpredicted, match="states no dp"):
        layout_of(of(dp=None))
