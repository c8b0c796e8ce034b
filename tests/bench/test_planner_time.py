"""Times of published rows: within the aims, nearer than a constant share, layouts in their order."""

import statistics
from dataclasses import replace

import pytest

from bench.planner.predictors import Case, Unpredicted, cases
from bench.planner.programs import device_of, timed
from bench.planner.rows import Row, read
from bench.planner.scoreboard import groups, scores, spearman
from bench.planner.timing import TIME
from bench.planner.validation import Constants, cross_validated, fit, quantile, samples, seconds_of

ROWS = read()
SAMPLES = samples(ROWS)
SCORES = scores(ROWS)
GROUPS = {(group.group, group.metric): group for group in groups(SCORES)}


def of(name: str, metric: str) -> Case:
    row = next(row for row in ROWS if row.name == name)
    return next(case for case in cases(row, ROWS) if case.metric == metric)


@pytest.mark.parametrize(
    ("group", "metric", "aim"),
    [
        ("megatron2021_t1", "step_time_s_derived", 10),
        ("megatron2021_t2", "tflops_per_device_hw", 15),
        ("mcore_h100_weak", "step_time_s_derived", 10),
        ("foundry_H100_80GB_BF16", "tokens_per_s_per_device", 10),
        ("foundry_H100_80GB_FP8", "tokens_per_s_per_device", 10),
        ("foundry_A100_80GB_with_1600_Gbps_node-node_interconnect", "tokens_per_s_per_device", 10),
        ("foundry_A100_40GB_with_1600_Gbps_node-node_interconnect", "tokens_per_s_per_device", 10),
        ("torchtitan_8b_fsdp", "tokens_per_s_per_device", 15),
        ("torchtitan_asynctp", "tokens_per_s_per_device", 15),
        ("torchtitan_405b", "tokens_per_s_per_device", 15),
        ("torchtitan_405b_cp", "tokens_per_s_per_device", 15),
        ("mbridge_LLAMA3.1_405B", "tokens_per_s_per_device", 15),
        ("mbridge_LLAMA3_70B", "tokens_per_s_per_device", 15),
        ("mbridge_LLAMA3_8B", "tokens_per_s_per_device", 15),
        ("nanotron_bench", "tokens_per_s_per_device", 25),
    ],
)
def test_aims(group, metric, aim):
    found = GROUPS[group, metric]
    assert found.scored == found.rows
    assert found.mean is not None
    assert found.mean < aim


def test_nine_of_ten_times_lie_inside_their_interval():
    inside = [score.inside for score in SCORES if score.metric in TIME and score.inside is not None]
    assert len(inside) > 600
    assert sum(inside) / len(inside) >= 0.9


def test_nearer_than_a_constant_share_over_all():
    pairs = [
        (abs(score.error), abs(score.constant_error))
        for score in SCORES
        if score.error is not None and score.constant_error is not None
    ]
    assert statistics.fmean(own for own, _ in pairs) < 0.4 * statistics.fmean(other for _, other in pairs)


def test_layouts_are_ranked():
    ranked = GROUPS["nanotron_bench", "tokens_per_s_per_device"].ranked
    assert ranked is not None
    assert ranked >= 0.8


def test_figures_of_one_step_agree():
    """Of a row with several: the same step behind each."""
    row = next(row for row in ROWS if row.name.startswith("MPT-7b s2048 8xh100"))
    by_metric = {
        case.metric: TIME[case.metric](case).value for case in cases(row, ROWS) if case.metric in TIME
    }
    assert by_metric["mfu_pct"] == pytest.approx(by_metric["tflops_per_device"] / 989 * 100)
    assert by_metric["hfu_pct"] == by_metric["mfu_pct"]
    recomputed = of("MPT-7b s4096 8xh100_80gb amp_bf16", "hfu_pct")
    mfu = of("MPT-7b s4096 8xh100_80gb amp_bf16", "mfu_pct")
    assert TIME["hfu_pct"](recomputed).value == pytest.approx(4 / 3 * TIME["mfu_pct"](mfu).value)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("H100-96GB HBM2e SXM 500W (Grand Teton)", "h100-96"),
        ("H100-80GB-SXM", "h100"),
        ("A100-SXM4-40GB", "a100-40"),
        ("DGX-GB200", "gb200"),
        ("TPU v4", "tpu-v4"),
    ],
)
def test_devices_of_rows(said, name):
    row = Row("x", "y", {"hardware": said}, {}, {}, {})
    assert device_of(row).name == name


def test_what_can_not_be_timed_has_a_reason():
    plain = next(row for row in ROWS if row.name.startswith("MPT-7b s2048 8xh100"))

    def without(**changes) -> Row:
        return Row(plain.name, plain.group, plain.facts | changes, plain.metrics, plain.extra, plain.odd)

    for changes, said in (
        ({"hardware": "Gaudi2"}, "none of the catalogue"),
        ({"hardware": None}, "no hardware"),
        ({"batch": None}, "no batch"),
        ({"pp": None}, "in part"),
        ({"precision": "int8"}, "precision 'int8'"),
        ({"tp": 5}, "the layout can't be: .*5"),
        ({"n_devices": 12, "dp": 8}, "the layout can't be: .*12"),
    ):
        row = without(**changes)
        with pytest.raises(Unpredicted, match=said):
            timed(next(cases(row, [row])))


def test_what_was_published_did_run():
    refused = [one.name for one in SCORES if "the layout can't be" in one.reason]
    assert refused == []


def test_a_fit_finds_what_rows_were_made_with():
    """Rows whose published time is what a slower device would take: the fit slows the device."""
    own = [one for one in SAMPLES if one.row.group == "foundry_H100_80GB_BF16"][::12]
    constants = Constants()
    slower = Constants(scales={"h100": 0.85})
    made = [replace(one, seconds=seconds_of(one, slower)) for one in own]
    found = fit(made)
    errors = [abs(seconds_of(one, found) / one.seconds - 1) for one in made]
    before = [abs(seconds_of(one, constants) / one.seconds - 1) for one in made]
    assert statistics.fmean(errors) < 0.4 * statistics.fmean(before)


def test_nothing_is_fitted_on_the_system_that_it_is_scored_on():
    """Its published times, doubled, leave its own predictions as they were."""
    own = [one for one in SAMPLES if one.row.group in ("mtnlg", "korthikanti2022")]
    plain = {id(one.row): one.ratio for one in cross_validated(own)}
    doubled = [replace(one, seconds=2 * one.seconds) if one.row.group == "mtnlg" else one for one in own]
    for one in cross_validated(doubled):
        if one.row.group == "mtnlg":
            assert one.ratio == pytest.approx(2 * plain[id(one.row)])


def test_ranks_and_quantiles():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486832980505138)
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([0, 10], 0.25) == 2.5
