# ruff: noqa: E501 (tables read best with one case to a line)
"""Every mistake is one line that says file, line, key and what was expected."""

from pathlib import Path

import pytest

from cupola.errors import InputError
from cupola.recipe.loading import load
from tests.recipe.whole_recipe import WHOLE


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def message(text, *overrides):
    Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        load("r.yaml", overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_the_recipe_itself_is_right():
    Path("r.yaml").write_text(WHOLE)
    assert load("r.yaml").name == "whole"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("    sequence_length: 64", "    sequense_length: 64", "r.yaml:14: stages.pretrain.sequense_length: unknown key; did you mean sequence_length?"),
        ("  heads: 4", "  n_head: 4", "r.yaml:9: model.n_head: unknown key; did you mean heads?"),
        ("name: whole", "name: whole\nlr: 3", "r.yaml:2: lr: unknown key here; learning_rate stands in stages.NAME"),
        ("name: whole", "name: whole\nheads: 3", "r.yaml:2: heads: unknown key here; heads stands in model"),
        ("      peak: 1e-3", "      peak: 1e-3\n      xyzzy: 1", "r.yaml:18: stages.pretrain.learning_rate.xyzzy: unknown key; stages.pretrain.learning_rate has peak, warmup, decay, decay_over, final, batch_rule"),
        ("  layers: 2", "  layers: 0", "r.yaml:7: model.layers: must be at least 1, not 0"),
        ("  layers: 2", "  layers: two", "r.yaml:7: model.layers: a whole number is expected, not 'two'"),
        ("  layers: 2", "  layers: 2.5", "r.yaml:7: model.layers: a whole number is expected, not 2.5"),
        ("  layers: 2", "  layers: true", "r.yaml:7: model.layers: a whole number is expected, not true"),
        ("  layers: 2", "  layers: [2]", "r.yaml:7: model.layers: a whole number is expected, not [2]"),
        ("  layers: 2\n", "", "r.yaml:6: model.layers: is missing (Number of blocks)"),
        ("      peak: 1e-3", "      peak: -1e-3", "r.yaml:17: stages.pretrain.learning_rate.peak: must be above 0, not -0.001"),
        ("      peak: 1e-3", "      peak: .nan", "r.yaml:17: stages.pretrain.learning_rate.peak: a finite number is expected, not nan"),
        ("      peak: 1e-3", "      peak: .inf", "r.yaml:17: stages.pretrain.learning_rate.peak: a finite number is expected, not inf"),
        ("      peak: 1e-3", "      peak: 1e-3\n      decay: cosin", "r.yaml:18: stages.pretrain.learning_rate.decay: cosine, linear, 1-sqrt, inverse_sqrt, constant are possible, not 'cosin'; did you mean cosine?"),
        ("    data: {mine: 1}", "    objective: next_tokens\n    data: {mine: 1}", "r.yaml:12: stages.pretrain.objective: next_token, sft, dpo, kto, reward, grpo, ppo are possible, not 'next_tokens'; did you mean next_token?"),
        ("1M tokens", "20%", "r.yaml:13: stages.pretrain.tokens: an amount in tokens, steps or epochs is expected, not '20%'"),
        ("1M tokens", "10 lightyears", "r.yaml:13: stages.pretrain.tokens: unknown unit 'lightyears'; units are tokens, steps, items, epochs, %"),
        ("1M tokens", "0 tokens", "r.yaml:13: stages.pretrain.tokens: must be above 0"),
        ("1M tokens", "2.5 steps", "r.yaml:13: stages.pretrain.tokens: a whole number of steps is expected, not 2.5"),
        ("{mine: 1}", "{mine: -1}", "r.yaml:12: stages.pretrain.data: the weight of 'mine' must be a number above 0, not -1"),
        ("{mine: 1}", "{}", "r.yaml:12: stages.pretrain.data: a mapping of sources to weights is expected, such as {speeches: 0.6, manuals: 0.4}"),
        ("{mine: 1}", "{mien: 1}", "r.yaml:12: stages.pretrain.data.mien: there is no corpus mien; did you mean mine?"),
        ("name: whole", "name: a/b", "r.yaml:1: name: a name of letters, digits, '-', '_' and '.' is expected, not 'a/b'"),
        ("  pretrain:", "  pre train:", "r.yaml:11: stages.pre train: a name of letters, digits, '-', '_' is expected, not 'pre train'"),
        ("name: whole", "name: whole\nscale: {data: many}", "r.yaml:2: scale.data: a whole number or auto is expected, not 'many'"),
        ("name: whole", "name: whole\nscale: {data: 0}", "r.yaml:2: scale.data: must be at least 1, not 0"),
        ("texts/*.md", "[1]", "r.yaml:3: corpora.mine.files[0]: text is expected, not 1"),
        ("texts/*.md", "7", "r.yaml:3: corpora.mine.files: text or a list is expected, not 7"),
        ("  heads: 4", "  heads: 4\n  rope: yes please", "r.yaml:10: model.rope: a mapping is expected, not 'yes please'"),
        ("  heads: 4", "  heads: 4\n  layers: 3", "r.yaml:10: layers: is written twice (first on line 7)"),
        ("  heads: 4", "  heads: 4\n  base: llama3-9b", "r.yaml:10: model.base: no preset or file llama3-9b; did you mean llama3-8b?"),
        ("name: whole", "name: whole\nbase: quickstrat", "r.yaml:2: base: quickstrat: no recipe of that name; did you mean quickstart?"),
        ("name: whole", "name: whole\nbase: ''", "r.yaml:2: base: an empty path; name a recipe (there are "),
        ("name: whole", f"name: whole\nbase: a/{'x' * 9000}", "r.yaml:2: base: a/xxx"),
        ("texts/*.md", "''", "r.yaml:3: corpora.mine.files: is empty; a path is expected, or . for the folder itself"),
        ("texts/*.md", "[a.txt, ' ']", "r.yaml:3: corpora.mine.files: is empty; a path is expected"),
        ("texts/*.md", "$EMPTY", "r.yaml:3: corpora.mine.files: is empty; a path is expected"),
        ("  vocabulary: 512", "  kind: file\n  path: ''", "r.yaml:6: tokenizer.path: is empty; a path is expected"),
        ("name: whole", "name: whole\nbase: [a]", "r.yaml:2: base: a file or the name of a recipe is expected"),
        ("name: whole", "name: whole\nseed: 0\n? [a]\n: 1", "r.yaml:3: a key is a plain word"),
        ("name: whole", "name: !!python/name:os.system", "r.yaml:1: tags such as tag:yaml.org,2002:python/name:os.system have no meaning"),
        ("name: whole", "name: &a [*a]", "r.yaml:1: an alias contains itself"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file(old, new, line, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    assert old in WHOLE
    assert message(WHOLE.replace(old, new, 1)).startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "r.yaml: is empty; a recipe is a YAML mapping"),
        ("# only this\n", "r.yaml: is empty; a recipe is a YAML mapping"),
        ("- a\n- b\n", "r.yaml:1: a recipe is a YAML mapping (`name: ...`), not a list"),
        ("just text", "r.yaml:1: a recipe is a YAML mapping (`name: ...`), not 'just text'"),
        (
            "name: a\nmodel: {layers: 1\n",
            "r.yaml:3: is not YAML: expected ',' or '}', but got '<stream end>'",
        ),
        ("name: a\n\tmodel: 1\n", "r.yaml:2: is not YAML: found character '\\t'"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: is not YAML: but found another document"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "r.yaml: is not UTF-8 text (byte 0); a recipe is YAML"),
        (b"name: \x00\x01", "r.yaml: is not YAML: unacceptable character"),
        ("[" * 5000, "r.yaml: is nested too deeply"),
        ("x" * 1_000_000, f"r.yaml:1: a recipe is a YAML mapping (`name: ...`), not '{'x' * 56}..."),
    ],
)
def test_what_is_no_recipe_at_all(text, line):
    assert message(text).startswith(line)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("stages.pretrain.sequense_length=5", "--set stages.pretrain.sequense_length=5: unknown key; did you mean stages.pretrain.sequence_length?"),
        ("model.vocabulry=5", "--set model.vocabulry=5: unknown key; did you mean model.vocabulary?"),
        ("model={layres: 5}", "--set model={layres: 5}: model.layres: unknown key; did you mean model.layers?"),
        ("stages.pretran.tokens=5", "--set stages.pretran.tokens=5: stages has no pretran (did you mean pretrain?); to add it, give it whole: stages.pretran={...}"),
        ("stages.long=null", "--set stages.long=null: stages has no long (there are pretrain); nothing to remove"),
        ("stages.pretrain.learning_rate=-1", "--set stages.pretrain.learning_rate=-1: stages.pretrain.learning_rate.peak: must be above 0, not -1"),
        ("model.layers.deep=1", "--set model.layers.deep=1: model.layers is one value, so it holds no deep"),
        ("model.layers={", "--set model.layers={: is not YAML: "),
        ("model.layers", "--set model.layers: KEY=VALUE is expected, such as stages.pretrain.learning_rate=3e-4"),
        ("=3", "--set =3: KEY=VALUE is expected"),
        ("model=null", "--set model=null: is missing (The network)"),
        ("model.layers=null", "--set model.layers=null: is missing (Number of blocks)"),
        ("stages=null", "--set stages=null: is missing (The stages, in the order in which they run)"),
        ("name=", "--set name=: is missing (The run's name, and its folder's)"),
        ("stages.pretrain.data.mine=null", "--set stages.pretrain.data.mine=null: stages.pretrain.data: a mapping of sources to weights"),
        ("model.family=[]", "--set model.family=[]: "),
        ("corpora.mine.files=", "--set corpora.mine.files=: corpora.mine: names no source"),
        ("corpora.mine.files=''", "--set corpora.mine.files='': is empty; a path is expected"),
        ("corpora.mine.files=$NOT_SET", "--set corpora.mine.files=$NOT_SET: the environment variable NOT_SET is not set"),
        ("name=\udcff", "--set 'name=\\udcff': is not UTF-8 text"),
        ("base=quickstart", "--set base=quickstart: unknown key"),
        ("model=llama3-9b", "--set model=llama3-9b: model.base: no preset or file llama3-9b; did you mean llama3-8b?"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_override(override, line):
    assert message(WHOLE, override).startswith(line)


def test_the_override_that_takes_a_key_away_is_named_among_others():
    whole = ("seed=3", "model.layers=null", "model.width=128")
    assert message(WHOLE, *whole) == "--set model.layers=null: is missing (Number of blocks)"
    # An override that the schema needs does not bring about what blocks disagree in.
    text = WHOLE.replace("  layers: 2\n", "").replace("{mine: 1}", "{mien: 1}")
    assert message(text, "model.layers=2").startswith(
        "r.yaml:11: stages.pretrain.data.mien: there is no corpus"
    )
    assert message(text, "seed=3").startswith("r.yaml:6: model.layers: is missing")


def test_more_mistakes_are_counted():
    text = WHOLE.replace("layers: 2", "layers: 0").replace("width: 64", "wide: 64")
    assert message(text) == "r.yaml:7: model.layers: must be at least 1, not 0 (and 2 more)"


def test_a_mistake_in_a_base_is_located_there():
    Path("deep").mkdir()
    Path("deep/base.yaml").write_text(WHOLE.replace("layers: 2", "layers: 0"))
    assert (
        message("base: deep/base.yaml\nname: x\n")
        == "deep/base.yaml:7: model.layers: must be at least 1, not 0"
    )
    removes = "base: deep/base.yaml\nstages:\n  long: null\n"
    assert message(removes) == "r.yaml:3: stages has no long (there are pretrain); there is nothing to remove"
