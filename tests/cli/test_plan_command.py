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
        (["llama3-8b", "--tokens", "0"], "--tokens 0: a number of tokens is expected"),
        (["llama3-8b", "--tokens", "nan"], "--tokens nan: "),
        (["llama3-8b", "--tokens", "2 epochs"], "--tokens 2 epochs: a number of tokens is expected"),
        (["llama3-8b", "--tokens", "5"], "--tokens 5: less than one row of 8192 tokens"),
        (["llama3-8b", "--tokens", "50T", "--corpus", "1T"], "50 passes over a corpus of"),
        (["llama3-8b", "--corpus", "1T"], "--corpus: says how often --tokens read it; state --tokens too"),
        (["quickstart", "--corpus", "1T"], "--corpus: is for a shipped model"),
        (["quickstart", "--inference-tokens", "1T"], "--inference-tokens: is for a shipped model"),
        (["llama3-8b", "--inference-tokens", "1T"], "--inference-tokens: are weighed against --tokens"),
        (["quickstart", "--tokens", "1M"], "--tokens: of which stage? state --stage, one of pretrain"),
        (["quickstart", "--stage", "rl", "--tokens", "1M"], "rl learns from answers of its own"),
        (["llama3-8b", "--rent", "-1"], "--rent: -1 can't be; it must be at least 0"),
        (["llama3-8b", "--rent", "nan"], "--rent: nan is not a finite number"),
        (["llama3-8b", "--buy", "--capital", "-5"], "--capital: -5 can't be"),
        (["llama3-8b", "--buy", "--lifetime", "0"], "--lifetime: 0 can't be; it must be above 0"),
        (
            ["llama3-8b", "--electricity", "0.1"],
            "--electricity: is of devices that are bought; state --buy too",
        ),
        (["llama3-8b", "--buy", "--rent", "2"], "--buy and --rent: devices are either bought or rented"),
        (["llama3-8b", "--pue", "0.5"], "--pue: 0.5 can't be; it must be at least 1 and at most 3"),
        (["llama3-8b", "--pue", "nan"], "--pue: nan is not a finite number"),
        (["llama3-8b", "--power-fraction", "2"], "--power-fraction: 2 can't be"),
        (
            ["llama3-8b", "--grid", "mars"],
            "--grid mars: kg of CO2 per kWh are expected, such as 0.385, or one of us",
        ),
        (["llama3-8b", "--grid", "-1"], "--grid, in kg per kWh: -1 can't be"),
        (["llama3-8b", "--stall", "-1"], "--stall, in seconds: -1 can't be"),
        (["llama3-8b", "--restart", "inf"], "--restart, in seconds: inf is not a finite number"),
        (["llama3-8b", "--interval", "0"], "--interval, in seconds: 0 can't be; it must be above 0"),
        (["llama3-8b", "--spares", "-1"], "Invalid value for '--spares'"),
        (
            ["llama3.1-405b", "--on", "h100:16384", "--tokens", "1T", "--interval", "10000000"],
            "the run would not get on",
        ),
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


KEYS = {
    *("name", "parameters", "hardware", "devices", "conventions", "stages", "run", "by_devices", "what_if"),
    "scaling",
}
STAGE_KEYS = {
    *("name", "sequence_length", "batch_rows", "optimizer", "precision", "loss", "layout", "rank", "memory"),
    *(
        "memory_total",
        "memory_by_rank",
        "available",
        "margin",
        "fits",
        "would_fit",
        "flops_per_token",
        "step",
        "run",
    ),
    *("unknown", "notes", "warnings"),
}
RUN_KEYS = {
    *("steps", "tokens", "flops", "work_days", "days", "goodput", "lost", "interruptions", "checkpoint"),
    *("device_hours", "energy_mwh", "carbon_tonnes", "dollars", "played"),
}
LLAMA = ("llama3-8b", "--on", "h100:1024", "--tokens", "15T")


def test_a_run_of_a_preset(capsys):
    found = planned(capsys, *LLAMA, "--simulate", "50")
    assert set(found) == KEYS
    (stage,) = found["stages"]
    assert set(stage) == STAGE_KEYS
    run = found["run"]
    assert set(run) == RUN_KEYS
    assert run["flops"]["6nd"] == pytest.approx(6 * 8_030_261_248 * 15e12, rel=1e-4)
    assert set(run["flops"]) == set(found["conventions"]) == set(stage["flops_per_token"])
    assert stage["batch_rows"] == 1024
    assert run["steps"] == stage["run"]["steps"] == -(-15 * 10**12 // (1024 * 8192))
    assert sum(stage["step"]["parts"].values()) == pytest.approx(stage["step"]["seconds"]["value"])
    for name in ("work_days", "days", "goodput", "device_hours", "energy_mwh", "carbon_tonnes", "dollars"):
        assert run[name]["low"] < run[name]["value"] < run[name]["high"]
    assert run["goodput"]["value"] == pytest.approx(run["work_days"]["value"] / run["days"]["value"])
    assert set(run["interruptions"]["number"]) == {"hardware", "software", "operator"}
    assert run["checkpoint"]["why"] == "the best there is"
    assert found["scaling"]["ratio"] == pytest.approx(90, rel=0.1)
    what_if = found["what_if"]
    assert [len(row) for row in what_if["goodput"]] == [len(what_if["restarts"])] * len(what_if["stalls"])
    assert planned(capsys, *LLAMA, "--simulate", "50")["run"] == run
    assert planned(capsys, *LLAMA, "--simulate", "50", "--seed", "1")["run"] != run


def test_without_tokens_there_is_no_run(capsys):
    found = planned(capsys, "llama3-8b", "--on", "h100:8")
    assert (found["run"], found["scaling"], found["what_if"]) == (None, None, None)
    (stage,) = found["stages"]
    assert stage["run"] is None
    assert stage["step"]["tokens"] == stage["batch_rows"] * 8192
    assert stage["notes"] == ["steps of 1,048,576 tokens are taken; --batch-tokens states others"]


def test_a_recipe_with_every_stage(capsys):
    found = planned(capsys, "quickstart")
    work = {stage["name"]: stage["run"] for stage in found["stages"]}
    assert work["dpo"] is None
    assert [stage["unknown"] is not None for stage in found["stages"]] == [name == "dpo" for name in work]
    assert work["pretrain"]["steps"] == 332
    stretches = [(one["batch_tokens"], one["sequence_length"]) for one in work["pretrain"]["stretches"]]
    # Rows grow where a window of 16 of the longest begins, a little after the batch.
    assert stretches == [(2048, 128), (4096, 128), (8192, 128), (8192, 256)]
    assert (work["pretrain"]["evaluations"], work["pretrain"]["checkpoints"]) == (4, 10)
    assert work["rl"]["seconds"]["sampling"]["value"] > 0
    assert any("the time of sampling is a rule of thumb" in note for note in found["stages"][-1]["notes"])
    assert found["run"]["tokens"] == sum(run["tokens"] for run in work.values() if run)
    assert found["run"]["interruptions"] == {"counted": False, "number": {}, "per_day": {}}


def test_epochs_of_what_an_earlier_run_counted(capsys, tmp_path, monkeypatch):
    import yaml

    from cupola.recipe.loading import dump, load

    monkeypatch.setenv("CUPOLA_RUNS", str(tmp_path))
    folder = tmp_path / "quickstart"
    folder.mkdir()
    recipe = dump(load("quickstart"))
    recipe["corpora"]["prose"]["seed"] = 5  # another source since
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    tokens = {"speeches": 200_000, "prose": 1000, "manuals": 100_000, "slips": 50_000}
    record = {"name": "quickstart", "sources": {name: {"tokens": n} for name, n in tokens.items()}}
    (folder / "run.json").write_text(json.dumps(record))
    found = planned(capsys, "quickstart")
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert stages["dpo"]["run"]["tokens"] == pytest.approx(50_000, abs=256)
    epochs = {one["source"]: one["epochs"] for one in stages["pretrain"]["run"]["epochs"]}
    assert epochs == {"speeches": pytest.approx(2.89, rel=0.01), "manuals": pytest.approx(5.61, rel=0.01)}
    assert "pretrain: 2.9 epochs of 'speeches' (200,000 tokens)" in stages["pretrain"]["notes"]
    (warning,) = stages["pretrain"]["warnings"]
    assert warning.startswith("pretrain: 5.6 epochs of 'manuals', which has 100,000 tokens; up to 4 are")


def test_plain_files_say_about_how_many_epochs(capsys, tmp_path):
    (tmp_path / "doc.txt").write_text("word " * 4000)
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "name: own\ncorpora: {doc: {files: doc.txt}}\nmodel: {layers: 2, width: 64, heads: 2}\n"
        "stages: {train: {data: doc, tokens: 9900, sequence_length: 64, batch_tokens: 512,"
        " learning_rate: 1e-3}}\n"
    )
    (stage,) = planned(capsys, str(recipe))["stages"]
    (seen,) = stage["run"]["epochs"]
    assert (seen["source"], seen["tokens"], seen["counted"]) == ("doc", 4950, False)
    assert stage["notes"][-1] == "train: about 2 epochs of 'doc' (about 4,950 tokens)"


def test_prices_power_and_grid(capsys):
    def run(*options: str) -> dict:
        return planned(capsys, *LLAMA, "--simulate", "0", *options)["run"]

    rent, grid = run("--rent", "2"), run("--grid", "0.1")
    assert rent["dollars"]["value"] == pytest.approx(2 * rent["device_hours"]["value"])
    assert grid["carbon_tonnes"]["value"] == pytest.approx(0.1 * grid["energy_mwh"]["value"])
    france = run("--grid", "france")
    assert france["carbon_tonnes"]["value"] == pytest.approx(0.057 * france["energy_mwh"]["value"])
    two, one = run("--pue", "2"), run("--pue", "1")
    assert two["energy_mwh"]["value"] == pytest.approx(2 * one["energy_mwh"]["value"])
    full, half = run("--power-fraction", "0.8"), run("--power-fraction", "0.4")
    assert half["energy_mwh"]["value"] < 0.52 * full["energy_mwh"]["value"]
    bought = run("--buy", "--capital", "40000", "--electricity", "0", "--lifetime", "5")
    hour = 40000 / 5 / 8766 / 0.8
    assert bought["dollars"]["value"] == pytest.approx(hour * bought["device_hours"]["value"])


def test_saving_and_interruptions(capsys):
    def run(*options: str) -> dict:
        return planned(capsys, *LLAMA, "--simulate", "0", *options)["run"]

    slow = run("--stall", "120", "--restart", "3600", "--interval", "7200", "--spares", "0")
    assert slow["checkpoint"]["why"] == "stated"
    assert (slow["checkpoint"]["stall_seconds"], slow["checkpoint"]["restart_seconds"]) == (120, 3600)
    assert slow["lost"]["waiting for a node"] > 0
    assert slow["goodput"]["value"] < run()["goodput"]["value"]


def test_the_whole_table(capsys):
    assert main(["plan", *LLAMA, "--what-if", "--corpus", "3T"]) == 0
    text = capsys.readouterr().out
    for words in (
        "share of peak (MFU)",
        "FLOPs of the run, by convention",
        "6nd: 6 N D ",
        "device-hours",
        "CO2 equivalent",
        "interruptions: hardware ",
        "goodput: stall, and restart",
        "compute-optimal for this size",
        "5 passes over the corpus, worth",
        "up to 4 are nearly as good",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) < 200


def test_help_has_sections(capsys):
    assert main(["plan", "--help"]) == 0
    text = capsys.readouterr().out
    for title in (
        "What is trained:",
        "Devices and layout:",
        "Saving and interruptions:",
        "Energy and money:",
    ):
        assert title in text
    assert text.index("--tensor") < text.index("--stall") < text.index("--pue") < text.index("--json")


def test_no_torch_is_loaded():
    code = (
        "import sys; from cupola.cli import main\n"
        "assert main(['plan', 'llama3-8b', '--on', 'h100:8']) == 0 and main(['plan', 'quickstart']) == 0\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.split() == ["False"]
