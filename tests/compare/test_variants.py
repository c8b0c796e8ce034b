"""The grid: what is in it, what it is called, what is refused before anything runs."""

import pytest

from cupola.cli import main
from cupola.compare.variants import parse_groups, parse_vary, plan_grid
from cupola.errors import InputError

RATE = "stages.pretrain.learning_rate"
OPTIMIZER = "stages.pretrain.optimizer"


def names(planned):
    return [(run.variant, run.seed) for run in planned]


def test_recipes_times_groups_times_values_times_seeds(tiny_recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(tiny_recipe.read_text().replace("width: 32", "width: 48"))
    groups = parse_groups(["a: {}", f"b: {{model.layers: 1, {RATE}: {{warmup: 1%}}}}"], [])
    planned = plan_grid(
        [str(tiny_recipe), str(other)], groups, parse_vary([f"{RATE}.peak=1e-3,0.02"]), [1, 2], []
    )
    assert len(planned) == len({run.identity for run in planned}) == 16
    assert names(planned)[:3] == [
        ("tiny, a, peak=1e-3", 1),
        ("tiny, a, peak=0.02", 1),
        ("tiny, b, peak=1e-3", 1),
    ]
    assert [run.seed for run in planned] == [1] * 8 + [2] * 8
    last = planned[-1].recipe
    assert (planned[-1].variant, last.seed) == ("other, b, peak=0.02", 2)
    assert (last.model.width, last.model.layers) == (48, 1)
    rate = last.stages["pretrain"].learning_rate
    assert (rate.peak, str(rate.warmup)) == (0.02, "1%")


def test_keys_beside_each_other_in_a_block_do_not_overlap(tiny_recipe):
    groups = parse_groups([f"a: {{{OPTIMIZER}: {{weight_decay: 0.2}}, {RATE}.warmup: 5%}}"], [])
    axes = parse_vary([f"{OPTIMIZER}=soap,adamw", f"{RATE}=1e-3,2e-3"])
    assert len(plan_grid([str(tiny_recipe)], groups, axes, None, [])) == 4


def test_commas_inside_brackets_and_quotes_belong_to_a_value():
    [axis] = parse_vary(["stages.x.data={a: 1, b: 2},{c: [1, 2]},'d,e'"])
    assert [group.settings[0].partition("=")[2] for group in axis] == ["{a: 1, b: 2}", "{c: [1, 2]}", "'d,e'"]
    first, second = parse_vary(["stages.a.tokens=1,2", "stages.b.tokens=3,4"])
    assert (first[0].label, second[1].label) == ("a.tokens=1", "b.tokens=4")


def test_variants_of_a_file_are_those_of_the_option(tmp_path):
    text = (
        "soap: {stages.pretrain.optimizer: {kind: adamw, betas: [0.9, 0.99]}, model.qk_norm: null}\nbase:\n"
    )
    (tmp_path / "v.yaml").write_text(text)
    from_file = parse_groups([], [tmp_path / "v.yaml"])
    assert from_file == parse_groups([text.splitlines()[0], "base: {}"], [])
    assert from_file[0].settings == (
        "stages.pretrain.optimizer={betas: [0.9, 0.99], kind: adamw}",
        "model.qk_norm=null",
    )


def test_a_run_is_known_by_its_recipe_without_the_name(tiny_recipe):
    def identity(*settings, beside=None):
        return plan_grid([str(tiny_recipe)], [], [], None, settings, beside)[0].identity

    assert identity() == identity("name=other") == identity("seed=3") == identity("compile=off")
    others = [identity("seed=4"), identity("model.layers=3"), identity(beside=[1])]
    assert len({identity(), *others}) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vary", "stages.pretrain.learning_rate"], "KEY=V1,V2,... is expected"),
        (["--vary", "model.layers=1,,2"], "a value is missing"),
        (["--vary", "model.layers="], "a value is missing"),
        (["--vary", "model.layers=1,1"], "a value is given twice"),
        (["--vary", "model.layers=1", "--vary", "model.layers=2"], "model.layers is varied twice"),
        (["--vary", "seed=1,2"], "--seeds 3"),
        (
            ["--vary", "model.layer=1,2"],
            "variant layer=1: --set model.layer=1: unknown key; did you mean model.layers?",
        ),
        (["--vary", "model.heads=4,5"], "variant heads=5:"),
        (
            ["--variant", "x: {model.layers: 3}", "--variant", "y: {model.layers: 3}"],
            "x and y are the same recipe",
        ),
        (
            ["--vary", "model.layers=2,3", "--variant", "x: {model.layers: 3}"],
            "variant x sets model.layers, which --vary sets as well",
        ),
        (
            ["--vary", f"{OPTIMIZER}=soap,adamw", "--variant", "a: {stages: {pretrain: {optimizer: muon}}}"],
            f"variant a sets {OPTIMIZER}.kind, which --vary sets as well",
        ),
        (
            ["--vary", f"{OPTIMIZER}.kind=soap,adamw", "--variant", f"a: {{{OPTIMIZER}: muon}}"],
            f"variant a sets {OPTIMIZER}.kind, which --vary sets as well",
        ),
        (
            ["--vary", "stages.midtrain.tokens=100,200", "--variant", "a: {stages.midtrain: null}"],
            "variant a sets stages.midtrain.tokens, which --vary sets as well",
        ),
        (
            ["--vary", "model.base=gpt2-124m,gpt2-355m", "--variant", "a: {model.layers: 3}"],
            "variant a sets model.layers, which --vary sets as well",
        ),
        (
            ["--vary", f"{OPTIMIZER}=soap,adamw", "--vary", f"{OPTIMIZER}.kind=muon,adamw"],
            f"two --vary set {OPTIMIZER}.kind",
        ),
        (["--variant", "x"], "NAME: {KEY: VALUE, ...} is expected"),
        (["--variant", "x: 3"], "variant x: a mapping of keys to values is expected"),
        (["--variant", "x: {}", "--variant", "x: {}"], "variant x is there twice"),
        (["--seeds", "2", "--seed", "1"], "exclude each other"),
        (["--seed", "1", "--seed", "1"], "a seed is given twice"),
        (["--until", "posttrain"], "variant tiny: --until posttrain: no such stage"),
    ],
)
def test_bad_grids_are_one_line_and_leave_nothing(tiny_recipe, tmp_path, capsys, arguments, words):
    assert main(["compare", str(tiny_recipe), *arguments, "--out", str(tmp_path / "out")]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert words in said
    assert not (tmp_path / "out").exists()


def test_the_same_recipe_twice_is_refused(tiny_recipe):
    with pytest.raises(InputError, match="given twice"):
        plan_grid([str(tiny_recipe)] * 2, [], [], None, [])
