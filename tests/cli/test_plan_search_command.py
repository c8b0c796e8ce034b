"""`cupola plan --search`: what it prints and refuses."""

import json

import pytest

from cupola.cli import main
from cupola.cli.plan_search import named, parsed
from cupola.plan.layout import Layout

SEARCH = ["llama3-8b", "--on", "h100:64", "--batch-tokens", "1048576", "--sequence-length", "8192"]


def answered(capsys, *arguments: str) -> dict:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_best_layouts(capsys):
    found = answered(capsys, *SEARCH, "--search", "--top", "4", "--why", "tp16")
    assert len(found["best"]) == 4
    rates = [one["tokens_per_second_per_device"] for one in found["best"]]
    assert rates == sorted(rates, reverse=True)
    first = found["best"][0]
    assert sum(value for name, value in first["memory"].items() if name != "total") == pytest.approx(
        first["memory"]["total"]
    )
    layout = Layout(**first["layout"] | {"layers": ()})
    assert layout.devices == 64
    assert found["scale"] == {
        "data": layout.data,
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "context": layout.context,
        "microbatch_tokens": layout.rows * 8192,
    }
    assert found["looked"] == 4 + sum(one["count"] for one in found["rejected"])
    (why,) = found["why"]
    assert why["layout"] == "tp16"
    assert why["words"].startswith("crosses the fast domain of 8; ")


def test_what_the_best_needs_is_what_a_plan_of_it_needs(capsys):
    first = answered(capsys, *SEARCH, "--search", "--top", "1")["best"][0]
    names = ("tensor", "pipeline", "context", "rows", "shard", "schedule", "chunks", "checkpointing")
    words = [word for name in names for word in (f"--{name}", str(first["layout"][name]))]
    (stage,) = answered(capsys, *SEARCH, *words)["stages"]
    assert stage["fits"]
    assert stage["memory"]["total"] == pytest.approx(first["memory"]["total"])


def test_the_first_can_be_planned_by_the_options_that_are_printed(capsys):
    assert main(["plan", *SEARCH, "--search", "--top", "1"]) == 0
    text = capsys.readouterr().out
    words = text.partition("the first, for `cupola plan`: ")[2].splitlines()[0].split()
    first = answered(capsys, *SEARCH, "--search", "--top", "1")["best"][0]
    (stage,) = answered(capsys, *SEARCH, *words)["stages"]
    assert stage["step"]["seconds"] == pytest.approx(first["seconds"])
    assert stage["memory"]["total"] == pytest.approx(first["memory"]["total"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*SEARCH, "--search", "--html", "x.html"], "--html x.html: a search has no page"),
        ([*SEARCH, "--search", "--rent", "2"], "--rent: a search looks at a step"),
        ([*SEARCH, "--top", "3"], "--top: is of a search; state --search too"),
        ([*SEARCH, "--stall", "3"], "--stall: is of a run whose length isn't known; state --tokens"),
        ([*SEARCH, "--schedule", "zb-v"], "--schedule zb-v: is of a pipeline; state --pipeline too"),
        ([*SEARCH, "--why", "zb-h1"], "a schedule is of a pipeline"),
        ([*SEARCH, "--why", "tp8 tp4"], "names tensor twice"),
        (["llama3-8b", "--on", "a100:8", "--precision", "fp8"], "--precision fp8: a100 has fp32, tf32, bf16"),
        (["nothere"], "nothere: no recipe or shipped model of that name; recipes are "),
        (["llama3-8b", "--on", "h100:8,"], "--on h100:8,: names no device beside a comma"),
    ],
)
def test_what_would_do_nothing_is_refused(capsys, arguments, words):
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_every_reason_is_shown_when_asked_for(capsys):
    assert main(["plan", *SEARCH, "--explain"]) == 0
    text = capsys.readouterr().out
    for words in (
        "why not",
        "tp16",
        "crosses the fast domain of 8",
        "more sharding than it takes",
        "nearest ",
    ):
        assert words in text
    assert len(text.splitlines()) < 70


def test_time_against_cost(capsys):
    devices = ["llama3-8b", "--on", "h100:64-256,a100:64", "--batch-tokens", "4194304", "--tokens", "1T"]
    found = answered(capsys, *devices, "--deadline", "90d")
    assert [one["devices"] for one in found["points"]] == ["h100:64", "h100:128", "h100:256", "a100:64"]
    able = {one["devices"]: one["dollars"]["value"] for one in found["points"] if one["days"]["value"] <= 90}
    assert able[found["cheapest"]] == pytest.approx(min(able.values()))
    assert main(["plan", *devices, "--deadline", "1h"]) == 0
    assert "none is done within 0.0416667 days; the fastest is h100:256" in capsys.readouterr().out


def test_names_of_layouts_go_both_ways():
    layout = Layout(
        data=4,
        tensor=8,
        pipeline=2,
        shard=1,
        schedule="interleaved",
        chunks=4,
        rows=2,
        checkpointing="full",
    )
    assert named(layout) == "dp4 tp8 pp2 shard1 interleavedx4 2rows full"
    assert Layout(**parsed(named(layout))) == layout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*SEARCH, "--why", "tp8 quick"], "--why tp8 quick: 'quick' is nothing of a layout"),
        ([*SEARCH, "--why", "tp0"], "--why tp0: tensor 0 can't be"),
        ([*SEARCH, "--why", "shard7"], "--why shard7: shard 7 can't be; 0 to 3"),
        ([*SEARCH, "--why", " "], "--why: names no layout"),
        ([*SEARCH, "--deadline", "soon", "--tokens", "1T"], "--deadline soon: a time above 0"),
        ([*SEARCH, "--deadline", "30d"], "--tokens: days and dollars are of how many?"),
        ([*SEARCH, "--deadline", "30d", "--tokens", "many"], "--tokens many:"),
        (["llama3-8b", "--on", "h100:64-8", "--search"], "the range ends before it begins"),
        (["quickstart", "--search"], "has several stages; state --stage, one of pretrain"),
        (["llama3-8b", "--search", "--stage", "pretrain"], "is a shipped model"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, arguments, words):
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_settings_that_leave_nothing_are_no_error(capsys):
    assert main(["plan", *SEARCH, "--search", "--tensor", "16"]) == 0
    assert "no layout fits: tensor 16: " in capsys.readouterr().out
