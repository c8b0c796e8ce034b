"""The examples of docs/plan.md: every statement's command is there, works, and says what was published."""

from pathlib import Path

import pytest

from bench.planner.examples import BEGIN, END, EXAMPLES, HEAD, planned, row

PLAN = Path(__file__).parents[2] / "docs/plan.md"


def test_the_document_has_every_command():
    text = PLAN.read_text(encoding="utf-8")
    part = text[text.index(BEGIN) : text.index(END)]
    for example in EXAMPLES:
        assert f"      {example.command}\n" in part, (
            "run python -m bench.planner.examples --into docs/plan.md"
        )
        assert f"| {example.statement} |" in part


@pytest.mark.parametrize(
    ("statement", "flops", "hours"),
    [
        ("GPT-3, 300 billion tokens", 3.14e23, None),
        ("LLaMA 2 70B, 2 trillion", 8.28e23, 1_720_320),
        ("LLaMA 3.1 405B, over 15 trillion", 3.8e25, 30_840_000),
        ("10^25 FLOPs, rented", 1e25, None),
    ],
)
def test_what_was_published_is_found(statement, flops, hours):
    (example,) = [one for one in EXAMPLES if one.statement == statement]
    plan = planned(example.command)
    assert plan["stages"][0]["fits"]
    assert plan["run"]["flops"]["6nd"] == pytest.approx(flops, rel=0.005)
    if hours:  # the programme's, so a bound; wide, since what is known of the step is
        assert 0.3 * hours < plan["run"]["device_hours"]["value"] < 1.35 * hours


def test_10_to_the_25_is_thousands_of_devices_for_months_and_tens_of_millions():
    run = planned(EXAMPLES[-2].command)["run"]
    assert 50 < run["days"]["value"] < 150
    assert 1e7 < run["dollars"]["value"] < 1e8


def test_a_line_has_a_cell_for_each_heading():
    assert len(row(EXAMPLES[0])) == len(HEAD)


def test_a_command_that_fails_says_so():
    with pytest.raises(SystemExit, match="exit status 2"):
        planned("cupola plan llama3-8b --on nothing")
