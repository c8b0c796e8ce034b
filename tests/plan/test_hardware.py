"""Records of devices: what is shipped, what a file changes, how devices are named."""

import pytest

from cupola.errors import InputError
from cupola.plan.hardware import GIB, catalogue, parse

WANTED = (
    "v100-32 a100-40 a100 h100 h100-pcie h100-96 h200 h800 b200 gb200 b300 gb300 mi300x tpu-v4 tpu-v5p cpu"
)


def test_every_device_is_there_with_its_sources():
    found = catalogue()
    assert set(found) == set(WANTED.split())
    for record in found.values():
        assert set(record.sources) == {"sheet", "node", "prices"}
        assert all(record.sources.values())
        assert record.rent < record.price


def test_amounts_are_read_with_their_prefixes():
    h100, h96 = catalogue()["h100"], catalogue()["h100-96"]
    assert h100.memory == pytest.approx(79.6 * 2**30)
    assert h100.bandwidth == 3.35e12
    assert h100.flops("bf16") == 989e12
    assert h100.link_latency == pytest.approx(3e-6)
    assert (h96.watts, h96.bandwidth) == (500, 2.4e12)


def test_a_precision_that_is_not_there_runs_in_the_next_wider():
    found = catalogue()
    assert found["a100"].flops("fp8") == 312e12
    assert found["v100-32"].flops("bf16") == 125e12
    with pytest.raises(InputError, match="tpu-v4 has no peak for fp32; it has bf16"):
        found["tpu-v4"].flops("fp32")


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("h100:1024", "h100", 1024),
        ("H100-SXM:8", "h100", 8),
        ("a100", "a100", 1),
        ("tpu_v5p:4,096", "tpu-v5p", 4096),
    ],
)
def test_devices_are_named_with_their_number(text, name, count):
    record, number = parse(text)
    assert (record.name, number) == (name, count)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h10:8", "no device is called 'h10'; did you mean h100?"),
        ("nothing", "there are v100-32, a100-40"),
        ("h100:0", "h100:0: '0' devices can't be"),
        ("h100:-8", "'-8' devices can't be"),
        ("h100:eight", "such as h100:8"),
        ("h100:", "'' devices can't be"),
        ("h100:99999999999999", "from 1 to 10,000,000"),
    ],
)
def test_other_names_and_numbers_are_refused(text, words):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert words in str(caught.value)


def test_the_cpu_is_this_machine():
    import psutil

    record, _ = parse("cpu")
    assert record.memory == psutil.virtual_memory().total


def test_a_file_changes_records_and_adds_some(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("A100-80GB: {rent: 1.05}\nmine: {base: h100, memory: 90 GiB, aliases: [ours]}\n")
    found = catalogue(file)
    assert found["a100"].rent == 1.05
    assert found["a100"].price == catalogue()["a100"].price
    assert parse("ours:4", found)[0].memory == 90 * GIB
    assert found["mine"].bandwidth == found["h100"].bandwidth
    assert catalogue()["a100"].rent != 1.05


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h100: {rent: -1}", "mine.yaml:1: h100.rent: Input should be greater than 0"),
        ("h100: {price: 0}", "h100.price: Input should be greater than 0"),
        ("mine: {rnt: 2}", "mine.yaml:1: mine.rnt: unknown key; did you mean rent?"),
        ("mine: {rent: 2}", "mine.memory: is missing; state it, or take it over with `base: h100`"),
        ("mine: 3", "mine: a mapping is expected"),
        ("mine: {base: h10}", "mine.base: no device is called 'h10'; did you mean h100?"),
        ("h100:\n  memory: 90 GX", "mine.yaml:2: h100.memory: '90 GX' is no amount; write it as 79.6 GiB"),
        ("h100: {peak: {fp7: 3}}", "h100.peak.fp7: Input should be"),
        ("h100: {priced: soon}", "h100.priced: 'soon' is no date"),
        ("mine: {base: h100, aliases: [a100]}", "a100 names both a100 and mine"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        catalogue(file)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
