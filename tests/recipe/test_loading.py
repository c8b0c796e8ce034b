"""Bases, presets, --set, paths and what comes out of loading."""

import glob
import os
from pathlib import Path

import pytest
import yaml

from cupola.errors import InputError
from cupola.recipe.loading import dump, load, load_preset
from cupola.recipe.lookup import presets, shipped_recipes
from cupola.recipe.schema import Recipe

WHOLE = """\
name: whole
corpora:
  mine: {files: texts/*.md}
model: {layers: 2, width: 64, heads: 4}
stages:
  pretrain:
    data: {mine: 1}
    tokens: 1M tokens
    sequence_length: {0%: 32, 50%: 64}
    batch_tokens: {0%: 256, 50%: 512}
    optimizer: {kind: muon, momentum: 0.9}
    learning_rate: {peak: 1e-3, warmup: 2%, final: 0.1}
  midtrain:
    data: {mine: 1}
    tokens: 100k tokens
    learning_rate: 3e-4
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with whole.yaml."""
    monkeypatch.chdir(tmp_path)
    write("whole.yaml", WHOLE)
    return tmp_path


def write(name, text):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def derived(text, *overrides):
    return load(write("derived.yaml", f"base: whole.yaml\n{text}"), overrides)


def test_comes_out_complete(folder):
    pretrain, midtrain = load("whole.yaml").stages.values()
    assert pretrain.sequence_length.dump() == {"0%": 32, "50%": 64}
    assert midtrain.sequence_length.dump() == 64  # a ramp passes on where it arrived
    assert midtrain.batch_tokens.dump() == 512
    assert midtrain.optimizer == pretrain.optimizer
    assert midtrain.learning_rate.peak == 3e-4
    assert midtrain.learning_rate.warmup.amount == 0  # a learning rate does not pass on


def test_the_first_stage_has_defaults(folder):
    recipe = load(
        write("bare.yaml", WHOLE[: WHOLE.index("    sequence_length")] + "    learning_rate: 1e-3\n")
    )
    stage = recipe.stages["pretrain"]
    assert (stage.sequence_length.dump(), stage.batch_tokens.dump()) == (1024, 65_536)
    assert stage.optimizer.kind == "adamw"


def test_a_default_fits_learned_positions(folder):
    text = WHOLE[: WHOLE.index("    sequence_length")] + "    learning_rate: 1e-3\n"
    recipe = load(write("bare.yaml", text), ["model.positions=learned", "model.max_positions=512"])
    assert recipe.stages["pretrain"].sequence_length.dump() == 512


@pytest.mark.parametrize("name", shipped_recipes())
def test_what_is_dumped_loads_to_the_same(folder, name):
    recipe = load(name)
    write("again.yaml", yaml.safe_dump(dump(recipe), sort_keys=False))
    again = load("again.yaml")
    assert again == recipe
    assert list(again.stages) == list(recipe.stages)
    assert Recipe.model_validate(dump(recipe)) == recipe


def test_a_ramp_passes_on_what_it_comes_to(folder):
    """Also where its last step would begin at the very end, and for what changes in the optimizer."""
    way = "{points: {0%: 32, 100%: 64}, between: linear}"
    sizes = "{points: {0%: 512, 60%: 600, 100%: 300}, between: linear, multiple: 4}"
    momentum = "{points: {0%: 0.85, 50%: 0.95}, between: linear}"
    optimizer = f"{{kind: muon, momentum: {momentum}, weight_decay: {{0: 0.1, 10000: 0.2}}}}"
    recipe = derived(
        "stages: {pretrain: {"
        f"sequence_length: {way}, batch_tokens: {sizes}, optimizer: {optimizer}"
        "}, midtrain: null, next: {data: {mine: 1}, tokens: 5k, learning_rate: 1e-3}}"
    )
    after = recipe.stages["next"]
    assert (after.sequence_length.dump(), after.batch_tokens.dump()) == (64, 300)
    assert (after.optimizer.momentum.dump(), after.optimizer.weight_decay.dump()) == (0.95, 0.2)
    assert recipe.stages["pretrain"].optimizer.weight_decay.dump() == {"0%": 0.1, "10000 tokens": 0.2}


class TestBase:
    def test_changes_keys_and_keeps_the_rest(self, folder):
        recipe = derived("name: new\nmodel: {layers: 3}\nstages: {pretrain: {tokens: 5M tokens}}\n")
        assert (recipe.name, recipe.model.layers, recipe.model.width) == ("new", 3, 64)
        assert recipe.stages["pretrain"].tokens.amount == 5_000_000
        assert recipe.stages["pretrain"].learning_rate.final == 0.1

    def test_stages_keep_their_order_and_new_ones_follow(self, folder):
        long = "{data: {mine: 1}, tokens: 10k tokens, learning_rate: 1e-4}"
        recipe = derived(
            f"stages: {{long: {long}, midtrain: {{tokens: 2M tokens}}, pretrain: {{z_loss: 0.1}}}}"
        )
        assert list(recipe.stages) == ["pretrain", "midtrain", "long"]

    def test_null_removes(self, folder):
        recipe = derived("stages: {midtrain: null, pretrain: {optimizer: null}}")
        assert list(recipe.stages) == ["pretrain"]
        assert recipe.stages["pretrain"].optimizer.kind == "adamw"  # the default again

    def test_a_single_value_over_a_block_sets_only_its_key(self, folder):
        stage = derived("stages: {pretrain: {learning_rate: 5e-4, optimizer: muon}}").stages["pretrain"]
        assert (stage.learning_rate.peak, stage.learning_rate.warmup.amount) == (5e-4, 2)
        assert (stage.optimizer.kind, stage.optimizer.momentum.dump()) == ("muon", 0.9)

    def test_another_kind_of_optimizer_drops_nothing_of_the_base_silently(self, folder):
        with pytest.raises(InputError, match=r"optimizer\.momentum: has no effect on kind adamw.*remove it$"):
            derived("stages: {pretrain: {optimizer: adamw}}")
        settings = derived("stages: {pretrain: {optimizer: {kind: adamw, momentum: null}}}")
        assert settings.stages["midtrain"].optimizer.kind == "adamw"

    def test_a_block_over_a_single_value_keeps_the_value(self, folder):
        stage = derived("stages: {midtrain: {learning_rate: {decay: linear}}}").stages["midtrain"]
        assert (stage.learning_rate.peak, stage.learning_rate.decay) == (3e-4, "linear")

    def test_schedules_and_mixtures_are_replaced_whole(self, folder):
        recipe = derived(
            "corpora: {other: {python: code}}\n"
            "stages: {pretrain: {data: {other: 1}, sequence_length: {0%: 16, 90%: 64}}}\n"
        )
        stage = recipe.stages["pretrain"]
        assert stage.data.dump() == {"other": 1.0}
        assert stage.sequence_length.dump() == {"0%": 16, "90%": 64}

    def test_chains_and_relative_to_the_file_that_says_it(self, folder):
        write("deep/middle.yaml", "base: ../whole.yaml\nname: middle\nseed: 5\n")
        recipe = load(write("top.yaml", "base: deep/middle.yaml\nname: top\n"))
        assert (recipe.name, recipe.seed, recipe.model.layers) == ("top", 5, 2)

    def test_a_shipped_recipe_by_name(self, folder):
        recipe = load(write("mine.yaml", "base: quickstart\nname: mine\n"))
        assert recipe == load("quickstart").model_copy(update={"name": "mine"})

    def test_a_circle(self, folder):
        write("a.yaml", "base: b.yaml\n")
        write("b.yaml", "name: b\nbase: a.yaml\n")
        with pytest.raises(InputError, match=r"^b\.yaml:2: base: .*circle: a\.yaml -> b\.yaml -> a\.yaml$"):
            load("a.yaml")

    def test_a_preset_is_a_model(self, folder):
        text = WHOLE.replace("model: {layers: 2, width: 64, heads: 4}\n", "")
        recipe = load(write("preset.yaml", f"base: cpu-3m\n{text}"))
        assert recipe.model == load_preset("cpu-3m")


class TestModel:
    @pytest.mark.parametrize("model", ["{base: llama3-8b, layers: 4}", "{layers: 4, base: llama3-8b}"])
    def test_on_top_of_a_preset(self, folder, model):
        recipe = load(write("m.yaml", WHOLE.replace("{layers: 2, width: 64, heads: 4}", model)))
        assert recipe.model == load_preset("llama3-8b").model_copy(update={"layers": 4})

    def test_by_name(self, folder):
        recipe = load(write("m.yaml", WHOLE.replace("{layers: 2, width: 64, heads: 4}", "cpu-1m")))
        assert recipe.model == load_preset("cpu-1m")

    def test_of_a_file(self, folder):
        write("shapes/small.yaml", "layers: 1\nwidth: 32\nheads: 2\n")
        recipe = load(
            write("m.yaml", WHOLE.replace("{layers: 2, width: 64, heads: 4}", "{base: shapes/small.yaml}"))
        )
        assert (recipe.model.layers, recipe.model.width) == (1, 32)

    @pytest.mark.parametrize(
        "override", ["model.base=gpt2-small", "model=gpt2-small", "model={base: gpt2-small}"]
    )
    def test_a_preset_leaves_nothing_of_the_model_before(self, folder, override):
        overrides = ["model.qk_norm=true", override]
        assert load("whole.yaml", overrides).model == load_preset("gpt2-small")
        assert derived("model: {qk_norm: true}\n", override).model == load_preset("gpt2-small")

    def test_what_is_set_after_the_preset_holds(self, folder):
        recipe = load("whole.yaml", ["model.base=gpt2-small", "model.layers=3"])
        assert recipe.model == load_preset("gpt2-small").model_copy(update={"layers": 3})


class TestSet:
    @pytest.mark.parametrize(
        ("override", "read"),
        [
            ("seed=5", lambda r: r.seed == 5),
            ("stages.pretrain.learning_rate=3e-4", lambda r: r.stages["pretrain"].learning_rate.peak == 3e-4),
            (
                "stages.pretrain.learning_rate=3e-4",
                lambda r: r.stages["pretrain"].learning_rate.warmup.amount == 2,
            ),
            (
                "stages.midtrain.learning_rate.decay=linear",
                lambda r: r.stages["midtrain"].learning_rate.peak == 3e-4,
            ),
            (
                "stages.midtrain.optimizer.kind=adamw",
                lambda r: r.stages["midtrain"].optimizer.kind == "adamw",
            ),
            ("stages.pretrain.tokens=300 steps", lambda r: str(r.stages["pretrain"].tokens) == "300 steps"),
            ("stages.pretrain.batch_tokens=1024", lambda r: r.stages["midtrain"].batch_tokens.dump() == 1024),
            (
                "stages.pretrain.batch_tokens.75%=1024",
                lambda r: r.stages["pretrain"].batch_tokens.dump() == {"0%": 256, "50%": 512, "75%": 1024},
            ),
            ("stages.midtrain=null", lambda r: list(r.stages) == ["pretrain"]),
            ("compile=off", lambda r: r.compile == "off"),
            ("model.tied=true", lambda r: r.model.tied is True),
            ("model.norm_epsilon=1e-6", lambda r: r.model.norm_epsilon == 1e-6),
            (
                "stages.pretrain.optimizer.betas=[0.9, 0.99]",
                lambda r: r.stages["pretrain"].optimizer.betas == (0.9, 0.99),
            ),
            ("corpora.mine.max_bytes=1_000_000", lambda r: r.corpora["mine"].max_bytes == 1_000_000),
            ("stages.pretrain.data={mine: 2}", lambda r: r.stages["pretrain"].data.dump() == {"mine": 2.0}),
            ("corpora.other={npm: '@a/b'}", lambda r: r.corpora["other"].npm == "@a/b"),
            ("corpora.mine.exclude=*.tmp", lambda r: r.corpora["mine"].exclude == "*.tmp"),
            ("evaluate.prompts=[]", lambda r: r.evaluate.prompts == []),
            ("tokenizer.train_on.mine=2", lambda r: r.tokenizer.train_on == {"mine": 2.0}),
        ],
    )
    def test_sets(self, folder, override, read):
        assert read(load("whole.yaml", [override]))

    def test_the_last_one_wins(self, folder):
        assert load("whole.yaml", ["seed=1", "seed=2"]).seed == 2


class TestPaths:
    def test_relative_to_the_recipe(self, folder, monkeypatch):
        (folder / "elsewhere").mkdir()
        monkeypatch.chdir(folder / "elsewhere")
        assert load("../whole.yaml").corpora["mine"].files == str(folder / "texts/*.md")

    def test_each_relative_to_the_file_that_writes_it(self, folder):
        write("sub/base.yaml", WHOLE)
        recipe = load(write("top.yaml", "base: sub/base.yaml\ncorpora: {more: {files: [a.txt, /b.txt]}}\n"))
        assert recipe.corpora["mine"].files == str(folder / "sub/texts/*.md")
        assert recipe.corpora["more"].files == [str(folder / "a.txt"), "/b.txt"]

    def test_variables_and_home(self, folder, monkeypatch):
        monkeypatch.setenv("TEXTS", "/data/texts")
        monkeypatch.setenv("HOME", "/home/somebody")
        files = (
            load("whole.yaml", ["corpora.mine.files=['${TEXTS}/a.md', $TEXTS/b.md, ~/c.md]"])
            .corpora["mine"]
            .files
        )
        assert files == ["/data/texts/a.md", "/data/texts/b.md", "/home/somebody/c.md"]

    @pytest.mark.parametrize("name", ["$HOME", "a$b", "$$", "${X}", "[old]", "a*b?", "~"])
    def test_any_character_in_the_folder_of_the_recipe(self, folder, monkeypatch, name):
        there = folder / name
        write(there / "texts" / "a.md", "text")
        write(there / "whole.yaml", WHOLE)
        monkeypatch.chdir(there)
        recipe = load("whole.yaml", ["tokenizer={kind: file, path: tok.json}"])
        assert glob.glob(recipe.corpora["mine"].files) == [str(there / "texts" / "a.md")]
        assert recipe.tokenizer.path == str(there / "tok.json")
        named = load("whole.yaml", ["corpora.mine.files=[texts, texts/a.md]"])
        assert named.corpora["mine"].files == [str(there / "texts"), str(there / "texts/a.md")]
        for loaded in (recipe, named):
            assert load(write("again.yaml", yaml.safe_dump(dump(loaded)))) == loaded

    def test_a_dollar_is_written_twice(self, folder, monkeypatch):
        monkeypatch.setenv("PRICE", "5$")
        recipe = load("whole.yaml", ["corpora.mine.files=['/$$HOME/${PRICE}/$$$PRICE']"])
        assert recipe.corpora["mine"].files == ["/$HOME/5$/$5$"]
        assert load(write("again.yaml", yaml.safe_dump(dump(recipe)))) == recipe

    def test_an_unset_variable(self, folder):
        write("v.yaml", WHOLE.replace("texts/*.md", "'${NOWHERE_SET}/x'"))
        with pytest.raises(
            InputError,
            match=r"^v\.yaml:3: corpora\.mine\.files: the environment variable NOWHERE_SET is not set$",
        ):
            load("v.yaml")

    def test_patterns_inside_a_package_stay(self, folder):
        recipe = load("whole.yaml", ["corpora.mine={npm: x, files: 'data/*.txt', fallback: {files: y.txt}}"])
        assert recipe.corpora["mine"].files == "data/*.txt"
        assert recipe.corpora["mine"].fallback.files == str(folder / "y.txt")

    def test_urls_stay(self, folder):
        recipe = load("whole.yaml", ["corpora.mine.files=s3://bucket/x.jsonl"])
        assert recipe.corpora["mine"].files == "s3://bucket/x.jsonl"

    def test_the_tokenizer_file(self, folder):
        recipe = load("whole.yaml", ["tokenizer={kind: file, path: tok/tokenizer.json}"])
        assert recipe.tokenizer.path == str(folder / "tok/tokenizer.json")


class TestLookup:
    def test_path_then_recipes_folder_then_shipped(self, folder):
        assert load("quickstart").name == "quickstart"
        write("recipes/quickstart.yaml", WHOLE)
        assert load("quickstart").name == "whole"
        write("quickstart", WHOLE.replace("name: whole", "name: here"))
        assert load("quickstart").name == "here"

    def test_shipped_are_the_files_of_the_recipes_folder(self):
        root = Path(__file__).parents[2] / "recipes"
        assert {path.resolve() for path in shipped_recipes().values()} == set(root.glob("*.yaml"))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "quickstrat",
                r"^quickstrat: no recipe of that name; did you mean quickstart\? \(there are .*quickstart",
            ),
            (
                "hole.yaml",
                r"^hole\.yaml: no such file; did you mean whole\.yaml\? \(shipped recipes: .*quickstart",
            ),
            ("zebra.yaml", r"^zebra\.yaml: no such file \(shipped recipes: "),
            ("x.yaml", r"^x\.yaml: no such file \(shipped recipes: "),
            ("whole.yml", r"^whole\.yml: no such file; did you mean whole\.yaml\?"),
            ("x/quickstart.yaml", r"no such file; the shipped recipe is called by its name, quickstart$"),
            (".", r"^\.: is a folder"),
        ],
    )
    def test_what_is_missing(self, folder, name, message):
        with pytest.raises(InputError, match=message):
            load(name)

    def test_a_file_without_permission(self, folder):
        if os.geteuid() == 0:
            pytest.skip("root reads everything")
        Path("whole.yaml").chmod(0)
        with pytest.raises(InputError, match=r"^whole\.yaml: cannot be read \(Permission denied\)$"):
            load("whole.yaml")


def test_every_preset_fits_in_a_recipe(folder):
    for name in presets():
        assert load("whole.yaml", [f"model={name}", "tokenizer.vocabulary=8192"]).model == load_preset(name)


def test_a_rewards_file_lies_beside_the_recipe(tmp_path, monkeypatch):
    text = "name: r\nmodel: {layers: 1, width: 8, heads: 1}\ncorpora: {a: {generate: addition}}\nstages:\n"
    text += "  rl: {objective: grpo, data: a, tokens: 2 steps, learning_rate: 1e-4,\n"
    text += "       policy: {rewards: {check: 1, %s: 2}}}\n"
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes/r.yaml"
    path.write_text("tokenizer: {kind: file, path: t.json}\n" + text % '"own/brief.py:brief"')
    monkeypatch.chdir(tmp_path)
    rewards = load(path).stages["rl"].policy.rewards
    assert rewards == {"check": 1, f"{tmp_path}/recipes/own/brief.py:brief": 2}
    change = 'stages.rl.policy.rewards={"brief.py:brief": 1}'
    assert list(load(path, [change]).stages["rl"].policy.rewards) == [f"{tmp_path}/brief.py:brief"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("chek", "'chek' is none of check, finished, random, format:REGEX, length:TOKENS, stage:NAME, nor"),
        ("brief.py:", "brief.py:' is none of check, finished, random"),
        ("format:(", "format:( is no regular expression (missing ), unterminated subpattern"),
        ("length:0", "length:0 names no number of tokens; write length:200"),
    ],
)
def test_what_no_reward_is_called_is_refused_with_its_place(tmp_path, name, why):
    text = "name: r\nmodel: {layers: 1, width: 8, heads: 1}\ncorpora: {a: {generate: addition}}\n"
    text += "tokenizer: {kind: file, path: t.json}\nstages:\n  rl:\n    objective: grpo\n    data: a\n"
    text += (
        f"    tokens: 2 steps\n    learning_rate: 1e-4\n    policy:\n      rewards:\n        '{name}': 1\n"
    )
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}:13: stages.rl.policy.rewards.")
    assert why in line
