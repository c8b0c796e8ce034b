"""`cupola plan`: what it prints and refuses, without torch."""

import json
import subprocess
import sys

import pytest

from cupola.cli import main


def planned(capsys, *arguments: str) -> dict:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_preset(capsys):
    found = planned(capsys, "llama3-8b", "--on", "h100:8")
    assert found["parameters"] == {
        "total": 8_030_261_248,
        "active": 8_030_261_248,
        "embedding": 128256 * 4096,
    }
    (stage,) = found["stages"]
    assert stage["sequence_length"] == 8192
    assert (stage["layout"]["data"], stage["layout"]["shard"]) == (8, 3)
    assert (stage["fits"], stage["would_fit"]) == (True, [])
    parts = {name: value for name, value in stage["memory"].items() if name != "total"}
    assert sum(parts.values()) == pytest.approx(stage["memory"]["total"])
    assert stage["available"] == found["hardware"]["memory"]


def test_a_table_for_people(capsys):
    assert main(["plan", "llama3-8b", "--on", "h100:8"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "llama3-8b: 8.03B parameters (8,030,261,248), 525M in the embedding\non 8 x h100 of 79.6 GiB"
    )
    for words in ("optimizer states", "activations", "total", "dp8 shard3 1 row", "llama3-8b: fits, "):
        assert words in text


def test_a_mixture_says_what_a_token_meets(capsys):
    assert (
        main(["plan", "mixtral-8x7b", "--on", "h100:64", "--expert", "8", "--sequence-length", "4096"]) == 0
    )
    text = capsys.readouterr().out
    for words in ("46.7B parameters", "12.9B met by a token", "dp64 ep8"):
        assert words in text


def test_every_stage_of_a_recipe(capsys):
    found = planned(capsys, "quickstart")
    assert [stage["name"] for stage in found["stages"]] == [
        "pretrain",
        "midtrain",
        "long",
        "sft",
        "dpo",
        "rl",
    ]
    assert {stage["precision"] for stage in found["stages"]} == {"fp32"}
    long = planned(capsys, "quickstart", "--stage", "long", "--set", "stages.long.sequence_length=1024")
    assert [stage["sequence_length"] for stage in long["stages"]] == [1024]


def test_the_precision_is_one_that_the_device_has(capsys):
    for device, precision in (("v100:8", "fp16"), ("a100:8", "bf16"), ("cpu", "fp32")):
        (stage,) = planned(capsys, "gpt2-small", "--on", device)["stages"]
        assert stage["precision"] == precision


def test_the_recipes_scale_counts_unless_told_else(capsys):
    settings = ["--set", "model={base: llama3-8b}", "--set", "precision=bf16", "--stage", "pretrain"]
    one = planned(
        capsys, "quickstart", *settings, "--set", "scale.microbatch_tokens=2048", "--batch-tokens", "65536"
    )
    assert one["stages"][0]["layout"]["rows"] == 2048 // one["stages"][0]["sequence_length"]
    two = planned(capsys, "quickstart", *settings, "--rows", "2", "--batch-tokens", "65536")
    assert two["stages"][0]["layout"]["rows"] == 2
    assert two["stages"][0]["precision"] == "bf16"


@pytest.mark.parametrize(
    "arguments",
    [
        ["llama3-8b", "--on", "h100:8", "--sequence-length", "131072", "--context", "8"],
        ["llama3-8b", "--on", "a100-40"],
        ["llama3-70b", "--on", "h100:16", "--rows", "8"],
        ["llama3.1-405b", "--on", "h100:64", "--sequence-length", "8192"],
        ["mamba2-2.7b", "--on", "a100-40:8", "--shard", "0", "--rows", "8"],
    ],
)
def test_what_would_fit_does(capsys, arguments):
    (stage,) = planned(capsys, *arguments)["stages"]
    assert stage["fits"] is False
    assert stage["would_fit"]
    name, *rest = arguments
    for cure in stage["would_fit"]:
        options = dict(zip(rest[::2], rest[1::2], strict=True))
        words = cure["options"].split()
        options |= dict(zip(words[::2], words[1::2], strict=True))
        (mended,) = planned(capsys, name, *(word for pair in options.items() for word in pair))["stages"]
        assert mended["fits"], cure
        assert mended["memory"]["total"] == pytest.approx(cure["total"])


def test_adapters_take_no_states_of_what_is_frozen(capsys):
    settings = ["quickstart", "--stage", "sft"]
    whole = planned(capsys, *settings)["stages"][0]["memory"]
    adapted = planned(capsys, *settings, "--set", "stages.sft.lora={rank: 4}")["stages"][0]["memory"]
    assert adapted["gradients"] < 0.2 * whole["gradients"]
    assert adapted["optimizer states"] < 0.2 * whole["optimizer states"]
    assert adapted["parameters"] > whole["parameters"]


def test_devices_of_ones_own(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mine: {base: h100, memory: 40 GiB}\n")
    found = planned(capsys, "llama3-8b", "--on", "mine:8", "--hardware", str(file))
    assert found["hardware"]["memory"] == 40 * 2**30
    assert found["stages"][0]["fits"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lama3-8b"], "lama3-8b: no recipe or shipped model of that name; did you mean llama3-8b?"),
        (["quickstrt"], "quickstrt: no recipe of that name; did you mean quickstart?"),
        (["missing.yaml"], "missing.yaml: no such file"),
        (["llama3-8b", "--on", "h10:8"], "did you mean h100?"),
        (["llama3-8b", "--on", "h100:0"], "h100:0: '0' devices can't be"),
        (["llama3-8b", "--on", "h100:8", "--tensor", "16"], "takes 16 devices and there are 8"),
        (["llama3-8b", "--on", "h100:64", "--pipeline", "64"], "64 stages are more than 32 layers"),
        (["llama3-8b", "--on", "h100:8", "--expert", "8"], "the model has no experts"),
        (
            ["llama3-8b", "--on", "h100:8", "--batch-tokens", "98304"],
            "a batch of 12 rows: no multiple of data 8",
        ),
        (["llama3-8b", "--on", "h100:8", "--batch-tokens", "many"], "--batch-tokens many:"),
        (["llama3-8b", "--on", "h100:8", "--batch-tokens", "2 steps"], "a number of tokens is expected"),
        (["llama3-8b", "--on", "h100:8", "--data", "0"], "Invalid value for '--data'"),
        (["llama3-8b", "--margin", "nan"], "--margin nan: a share from 0 to 0.9 is expected"),
        (["llama3-8b", "--stage", "pretrain"], "is a shipped model; --set and --stage need a recipe"),
        (["quickstart", "--set", "stages.sft.freeze=[hed]"], "stages.sft.freeze: no parameter is called hed"),
        (["quickstart", "--stage", "train"], "--stage train: there is none of that name; there are pretrain"),
        (["llama3-8b", "--hardware", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, arguments, words):
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_no_torch_is_loaded():
    code = (
        "import sys; from cupola.cli import main\n"
        "assert main(['plan', 'llama3-8b', '--on', 'h100:8']) == 0 and main(['plan', 'quickstart']) == 0\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.split() == ["False"]
