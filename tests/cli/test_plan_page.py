"""`cupola plan --html`: the page holds what `--json` prints, needs nothing else, is safe with any name."""

import json
import os
import re
from pathlib import Path

import pytest

from cupola.cli import main
from tests.report.test_page import parse

PIPED = ("llama3-70b", "--on", "h100:1024", "--tensor", "8", "--pipeline", "4", "--tokens", "2T")
PIPED += ("--simulate", "40", "--what-if")


def pages(capsys, tmp_path, *arguments: str) -> tuple[str, dict]:
    """The page and the facts of one call, which are asked for together."""
    file = tmp_path / "plan.html"
    assert main(["plan", *arguments, "--html", str(file), "--json"]) == 0
    return file.read_text(encoding="utf-8"), json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Of a run with a pipeline."""
    file = tmp_path_factory.mktemp("page") / "plan.html"
    assert main(["plan", *PIPED, "--html", str(file)]) == 0
    return file.read_text(encoding="utf-8")


def facts_of(page: str) -> dict:
    found = re.search(r'<pre id="facts">(.*?)</pre>', page, flags=re.DOTALL)
    assert found is not None
    return json.loads(parse(found[1]).text)


def test_its_facts_are_those_of_json(capsys, whole):
    assert main(["plan", *PIPED, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts_of(whole) == found
    (stage,) = found["stages"]
    fullest = stage["memory_by_rank"][stage["rank"]]
    assert fullest == stage["memory"]
    assert max(one["total"] for one in stage["memory_by_rank"]) == fullest["total"]
    assert len(stage["step"]["ranks"]) == 4
    slowest = max(one["forward"] + one["backward"] for one in stage["step"]["ranks"])
    parts = stage["step"]["parts"]
    once = ("pipeline bubble", "gradients summed", "optimizer", "pauses", "waiting for the slowest")
    each = sum(seconds for name, seconds in parts.items() if name not in once)
    assert stage["step"]["microbatches"] * slowest == pytest.approx(each)


def test_other_numbers_of_devices(whole):
    found = facts_of(whole)
    points = {point["devices"]: point for point in found["by_devices"]}
    assert 6 <= len(points) <= 11
    own = points[1024]
    for name in ("days", "dollars", "device_hours", "goodput"):
        assert own[name] == found["run"][name]
    days = [point["days"]["value"] for point in points.values()]
    assert days == sorted(days, reverse=True)
    dollars = [point["dollars"]["value"] for point in points.values()]
    assert dollars[-1] > dollars[0]
    for devices, point in points.items():
        assert point["device_hours"]["value"] == pytest.approx(24 * devices * point["days"]["value"])


def test_played_runs_are_counted_in_bins(whole):
    played = facts_of(whole)["run"]["played"]
    assert sum(played["counts"]) == played["times"] == 40
    assert len(played["edges"]) == len(played["counts"]) + 1
    assert played["edges"] == sorted(played["edges"])
    days = played["days"]
    assert played["edges"][0] <= days["low"] < days["value"] < days["high"] <= played["edges"][-1]


def test_it_is_whole_and_needs_nothing_else(whole):
    parsed = parse(whole)
    assert not [address for address in parsed.addresses if not address.startswith("#")]
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "http" not in re.sub(r'xmlns[^"]*"[^"]*"', "", whole).split('<pre id="facts">')[0]
    assert "<script" not in whole
    assert "nan" not in re.findall(r'<path d="[^"]*"', whole).__repr__().lower()


def test_it_says_what_the_figures_are(whole):
    text = " ".join(parse(whole).text.split())
    run = facts_of(whole)["run"]
    assert f"It fits; the run takes {run['days']['value']:.1f} days" in text
    for words in (
        "8 of 8 microbatches, 1f1b",
        "memory of a device (GiB of 79.6)",
        "days of 40 played runs",
        "share of time lost",
        "goodput: stall, and restart",
        "note: steps of 2,097,152 tokens are taken",
        "cupola plan llama3-70b",
        "--tensor 8",
    ):
        assert words in text


def test_a_recipe_has_a_bar_for_each_stage(capsys, tmp_path):
    page, found = pages(capsys, tmp_path, "quickstart")
    assert facts_of(page) == found
    assert found["by_devices"] is None
    text = parse(page).text
    for name in [stage["name"] for stage in found["stages"]]:
        assert text.count(name) >= 3
    assert "Every stage fits; the run without dpo takes" in text


def test_what_does_not_fit_says_so(capsys, tmp_path):
    page, found = pages(capsys, tmp_path, "llama3-8b", "--on", "a100-40:2", "--tokens", "10B")
    assert found["stages"][0]["fits"] is False
    text = parse(page).text
    assert "It does not fit; the run would take" in text
    assert found["stages"][0]["would_fit"][0]["options"] in text


@pytest.mark.parametrize("schedule", ["gpipe", "interleaved", "zb-h1", "zb-h2", "zb-v"])
def test_every_schedule_is_drawn(capsys, tmp_path, schedule):
    chunks = ("--chunks", "2") if schedule == "interleaved" else ()
    place = ("--on", "h100:4", "--pipeline", "4", "--schedule", schedule, *chunks)
    page, _ = pages(capsys, tmp_path, "llama3-8b", *place)
    text = parse(page).text
    assert f"8 of 128 microbatches, {schedule}" in text
    assert ("weights' gradients" in text) == schedule.startswith("zb")


def test_any_name_is_only_text(capsys, tmp_path):
    recipe = tmp_path / "<b>&$x$.yaml"
    recipe.write_text(
        "name: own\ncorpora: {doc: {files: doc.txt}}\nmodel: {layers: 2, width: 64, heads: 2}\n"
        "stages: {train: {data: doc, tokens: 9900, sequence_length: 64, batch_tokens: 512,"
        " learning_rate: 1e-3}}\n"
    )
    (tmp_path / "doc.txt").write_text("word " * 4000)
    hardware = tmp_path / "mine.yaml"
    hardware.write_text('"<i>$y$": {base: h100, rent: 2}\n')
    arguments = [str(recipe), "--on", "<i>$y$:8", "--hardware", str(hardware)]
    page, found = pages(capsys, tmp_path, *arguments, "--batch-tokens", "512")
    assert "<b>&$x$" in found["name"]
    assert "<b>&" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;&amp;$x$" in page
    assert facts_of(page) == found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".", "is a folder; name a file in it"),
        ("pipe", "is no file that could be written to"),
        (300 * "n", "cannot be written (File name too long)"),
        ("nowhere/plan.html", "there is no folder"),
        ("file/plan.html", "there is no folder"),
        ("locked/plan.html", "cannot be written"),
    ],
)
def test_where_it_cannot_be_written_is_one_line(capsys, tmp_path, monkeypatch, name, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    os.mkfifo(tmp_path / "pipe")
    if name.startswith("locked"):
        real = Path.open

        def refuse(path, *arguments, **options):
            if path.parent.name == "locked":
                raise PermissionError(13, "Permission denied")
            return real(path, *arguments, **options)

        monkeypatch.setattr(Path, "open", refuse)  # root may write anywhere
    assert main(["plan", "llama3-8b", "--on", "h100:8", "--html", str(tmp_path / name)]) != 0
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--html", "--plot"])
def test_what_is_no_page_is_not_replaced(tmp_path, capsys, option):
    """Not a recipe, whose name stands where the page's was meant to."""
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\n")
    subject = ["--fit", str(tmp_path)] if option == "--plot" else ["llama3-8b"]
    assert main(["plan", *subject, option, str(path)]) == 2
    assert f"{option} {path}: is there, and is something else" in capsys.readouterr().err
    assert path.read_text() == "name: mine\n"
