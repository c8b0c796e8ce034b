# ruff: noqa: E501 (tables read best with one case to a line)
"""What the blocks of a recipe must agree on; each line names the key and the mend."""

from pathlib import Path

import pytest

from cupola.errors import InputError
from cupola.recipe.loading import load
from cupola.recipe.model import Model, Sizes
from tests.recipe.whole_recipe import WHOLE


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(WHOLE)


MIDTRAIN = "stages.midtrain={data: {mine: 1}, tokens: 1k tokens, learning_rate: 1"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["corpora.mine.npm=x", "corpora.mine.pypi=y"], "--set corpora.mine.pypi=y: corpora.mine: names npm and pypi; a corpus has one source"),
        (["corpora.mine.huggingface=x"], "--set corpora.mine.huggingface=x: corpora.mine: names files and huggingface; a corpus has one source"),
        (["corpora.mine.python=code"], "--set corpora.mine.python=code: corpora.mine: names files and python"),
        (["corpora.mine.files=null"], "--set corpora.mine.files=null: corpora.mine: names no source; give one of files, huggingface, apt"),
        (["corpora.mine.files=[]"], "--set corpora.mine.files=[]: corpora.mine: names no source"),
        (["corpora.mine.fallback={max_bytes: 5}"], "--set corpora.mine.fallback={max_bytes: 5}: names no source"),
        (["corpora.mine.subset=x"], "--set corpora.mine.subset=x: only a huggingface source has subsets"),
        (["tokenizer.train_on=nobody"], "--set tokenizer.train_on=nobody: tokenizer.train_on.nobody: there is no corpus nobody; corpora has mine"),
        (["tokenizer.kind=file"], "--set tokenizer.kind=file: tokenizer.path: kind file needs the path of a tokenizer.json"),
        (["tokenizer.path=x"], "--set tokenizer.path=x: has no effect on kind bpe"),
        (["model.vocabulary=511"], "--set model.vocabulary=511: 511 is less than the tokenizer's 512; raise it"),
        (["model.heads=5"], "--set model.heads=5: width 64 is not divisible by 5 heads; take a width of 60 or 65, or state head_width"),
        (["model.heads=100"], "--set model.heads=100: width 64 is not divisible by 100 heads; take a width of 100, or"),
        (["model.heads=64"], "--set model.heads=64: rotary positions need an even head width, not 1"),
        (["model.head_width=7"], "--set model.head_width=7: rotary positions need an even head width, not 7"),
        (["model.key_value_heads=3"], "--set model.key_value_heads=3: 4 heads can't be shared among 3 key/value heads"),
        (["model.positions=learned"], "--set model.positions=learned: model.max_positions: learned positions need the number of their rows"),
        (["model.positions=learned", "model.max_positions=32"], "--set model.max_positions=32: stages.pretrain.sequence_length: 64 is beyond the 32 learned positions"),
        (["model.positions=learned", "model.max_positions=64", "model.rope.factor=2"], "--set model.rope.factor=2: model.rope: has no effect on learned positions"),
        (["model.rope.factor=2"], "--set model.rope.factor=2: has no effect without rope_type"),
        (["model.rope={rope_type: llama3, factor: 2}"], "--set model.rope={rope_type: llama3, factor: 2}: rope_type llama3 needs original_max_position_embeddings"),
        (["model.experts={count: 4, active: 5, width: 8}"], "--set model.experts={count: 4, active: 5, width: 8}: model.experts.active: 5 is more than there are, 4"),
        (["model.experts={count: 4, active: 2, width: 8}", "model.activation=gelu"], "--set model.activation=gelu: experts are gated: take swiglu, or remove experts"),
        (["model.experts={count: 4, active: 2, width: 8}", "model.feedforward_bias=true"], "--set model.feedforward_bias=true: experts have no biases"),
        (["model.experts={count: 4, active: 2, width: 8, first_dense: 9}"], "--set model.experts={count: 4, active: 2, width: 8, first_dense: 9}: model.experts.first_dense: leaves none of"),
        (["scale.tensor=2"], "--set scale.tensor=2: 2 workers: parallel layouts are not built yet; leave it at 1"),
        (["scale.data=8"], "--set scale.data=8: 8 workers: parallel layouts are not built yet"),
        (["scale.microbatch_tokens=32"], "--set scale.microbatch_tokens=32: 32 is less than one row of 64 tokens of stage pretrain"),
        (["stages.pretrain.sequence_length={0%: 48, 50%: 64}"], "--set stages.pretrain.sequence_length={0%: 48, 50%: 64}: 48 does not divide the longest, 64"),
        (["stages.pretrain.batch_tokens=63"], "--set stages.pretrain.batch_tokens=63: stages.pretrain: batch_tokens 63 at 0% is less than one row of 64 tokens; let batch_tokens be at least 64 from there, or sequence_length at most 63"),
        (["stages.pretrain.sequence_length={0%: 64, 50%: 1024}"], "--set stages.pretrain.sequence_length={0%: 64, 50%: 1024}: stages.pretrain: batch_tokens 512 at 50% is less than one row of 1024 tokens"),
        (["stages.pretrain.tokens=5 epochs", "stages.pretrain.batch_tokens=63"], "--set stages.pretrain.batch_tokens=63: stages.pretrain: batch_tokens 63 at 0%"),
        (["stages.pretrain.tokens=100 steps", "stages.pretrain.batch_tokens={0: 64, 1000: 128}"], "--set stages.pretrain.batch_tokens={0: 64, 1000: 128}: stages.pretrain: batch_tokens: with a horizon in steps, positions are percentages"),
        (["stages.pretrain.learning_rate={peak: 1, decay: constant, decay_over: 10%}"], "--set stages.pretrain.learning_rate={peak: 1, decay: constant, decay_over: 10%}: stages.pretrain.learning_rate.decay_over: has no effect where decay is constant"),
        (["stages.pretrain.learning_rate={peak: 1, decay: {0%: 1, 50%: 0.5}, final: 0.1}"], "--set stages.pretrain.learning_rate={peak: 1, decay: {0%: 1, 50%: 0.5}, final: 0.1}: stages.pretrain.learning_rate.final: has no effect where decay is given by shares"),
        (["stages.pretrain.batch_tokens={0: 512, 2M tokens: 1024}"], "--set stages.pretrain.batch_tokens={0: 512, 2M tokens: 1024}: stages.pretrain: batch_tokens changes at 2000000 tokens, but the stage ends at 1,000,000 tokens"),
        (["stages.pretrain.tokens=null"], "--set stages.pretrain.tokens=null: stages.pretrain: tokens is missing: how long the stage is"),
        (["stages.pretrain.learning_rate.warmup=2M tokens"], "--set stages.pretrain.learning_rate.warmup=2M tokens: stages.pretrain: a warm-up of 2,000,000 tokens is longer than the stage (1,000,000)"),
        (["stages.pretrain.learning_rate.warmup=1955 steps", "seed=3"], "--set stages.pretrain.learning_rate.warmup=1955 steps: stages.pretrain: a warm-up of 1955 steps is longer than the stage (1,954 steps)"),
        (["stages.pretrain.tokens=100 steps", "stages.pretrain.learning_rate.warmup=101 steps"], "--set stages.pretrain.learning_rate.warmup=101 steps: stages.pretrain: a warm-up of 101 steps is longer than the stage (100 steps)"),
        (["stages.pretrain.learning_rate.warmup=100 steps", "stages.pretrain.tokens=10 steps"], "--set stages.pretrain.tokens=10 steps: stages.pretrain: a warm-up of 100 steps is longer than the stage (10 steps)"),
        (["corpora.other={python: code}", "corpora.mine=null"], "--set corpora.mine=null: stages.pretrain.data.mine: there is no corpus mine; corpora has other"),
        (["stages.pretrain.carry=[weights, optimizer]"], "--set stages.pretrain.carry=[weights, optimizer]: there is no stage before this one"),
        ([MIDTRAIN + ", carry: [optimizer]}"], f"--set {MIDTRAIN}, carry: [optimizer]}}: stages.midtrain.carry: the optimizer's state belongs to the weights"),
        ([MIDTRAIN + ", optimizer: muon, carry: [weights, optimizer]}"], f"--set {MIDTRAIN}, optimizer: muon, carry: [weights, optimizer]}}: stages.midtrain.carry: muon can't go on from the state of adamw"),
        ([MIDTRAIN + ", carry: [weights, optimizer], optimizer: {kind: soap, one_sided_above: 2}}", "stages.pretrain.optimizer=soap"], f"--set {MIDTRAIN}, carry: [weights, optimizer], optimizer: {{kind: soap, one_sided_above: 2}}}}: stages.midtrain.carry: the state may be of other sides: one_sided_above differs; remove optimizer"),
        (["stages.pretrain.optimizer={kind: adamw, momentum: 0.9}"], "--set stages.pretrain.optimizer={kind: adamw, momentum: 0.9}: stages.pretrain.optimizer.momentum: has no effect on kind adamw (only on muon); remove it"),
        (["stages.pretrain.optimizer={kind: soap, momentum: 0.9}"], "--set stages.pretrain.optimizer={kind: soap, momentum: 0.9}: stages.pretrain.optimizer.momentum: has no effect on kind soap (only on muon); remove it"),
        (["stages.pretrain.optimizer={kind: muon, precondition_every: 5}"], "--set stages.pretrain.optimizer={kind: muon, precondition_every: 5}: stages.pretrain.optimizer.precondition_every: has no effect on kind muon (only on soap); remove it"),
        (["stages.pretrain.optimizer.covariance_decay=0.9"], "--set stages.pretrain.optimizer.covariance_decay=0.9: has no effect on kind adamw (only on soap); remove it"),
        (["stages.pretrain.optimizer.largest_preconditioned=9"], "--set stages.pretrain.optimizer.largest_preconditioned=9: has no effect on kind adamw (only on soap); remove it"),
        (["stages.pretrain.optimizer.one_sided_above=9"], "--set stages.pretrain.optimizer.one_sided_above=9: has no effect on kind adamw (only on soap); remove it"),
        (["stages.pretrain.optimizer.state_dtype=bf16"], "--set stages.pretrain.optimizer.state_dtype=bf16: has no effect on kind adamw (only on soap); remove it"),
        (["stages.pretrain.optimizer={kind: soap, state_dtype: bf16, covariance_decay: 0.999}"], "--set stages.pretrain.optimizer={kind: soap, state_dtype: bf16, covariance_decay: 0.999}: stages.pretrain.optimizer.state_dtype: averages in bf16 stand still with a decay rate of 0.999; take fp32, or rates up to 0.99"),
        (["stages.pretrain=null"], "--set stages.pretrain=null: stages: a recipe needs at least one stage"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together(overrides, line):
    with pytest.raises(InputError) as caught:
        load("r.yaml", overrides)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.pretrain.optimizer={kind: muon, newton_schulz_steps: 5}"], "newton_schulz_steps: 5 steps of polar_express magnify what bf16 rounds; take at most 4"),
        (["stages.pretrain.learning_rate=1e308"], "stages.pretrain.learning_rate.peak: "),
        (["stages.pretrain.optimizer={kind: adamw, weight_decay: 1e308}"], "and below 1e+06 is expected"),
        (["corpora.sums={generate: addition}", "stages.pretrain.objective=sft", "stages.pretrain.data=sums"], "tokenizer.train_on: is missing: stage pretrain reads no text"),
        (["corpora.sums={generate: adition}"], "not 'adition'; did you mean addition?"),
        (["corpora.gym={generate: reasoning_gym}"], "corpora.gym.task: names no task of reasoning_gym; give one, such as chain_sum"),
        (["corpora.gym={generate: reasoning_gym, task: lcm, npm: x}"], "corpora.gym.npm: reasoning_gym reads no source; remove it"),
        (["corpora.gym={generate: reasoning_gym, task: lcm, settings: 5}"], "corpora.gym.settings"),
        (["corpora.sums={generate: addition, task: lcm}"], "corpora.sums.task: addition has no task; remove it"),
        (["corpora.sums={generate: addition, settings: {a: 1}}"], "corpora.sums.settings: addition has no settings; remove it"),
        (["corpora.mine.task=lcm"], ": has no effect without generate; remove it"),
        (["corpora.sums={generate: addition, npm: x}"], "corpora.sums.npm: addition reads no source; remove it"),
        (["corpora.sums={generate: definitions, npm: x, pypi: y}"], ": names npm and pypi; a corpus has one source"),
        (["corpora.sums={generate: addition, format: text}"], "corpora.sums.format: addition makes conversations; remove it"),
        (["corpora.sums={generate: addition, words: [100, 200]}"], "corpora.sums.words: addition makes no texts, whose length this is; remove it"),
        (["corpora.mine.words=[100, 200]"], ": has no effect without generate; remove it"),
        (["corpora.find={generate: retrieval, format: chat}"], "corpora.find.format: retrieval makes texts; remove it"),
        (["corpora.find={generate: retrieval, words: [300, 200]}"], "corpora.find.words: the least, 300, is more than the most, 200; swap them"),
        (["corpora.find={generate: retrieval, words: [10, 200]}"], "corpora.find.words"),
        (["corpora.find={generate: retrieval, words: [200]}"], "corpora.find.words"),
        (["corpora.find={generate: retrieval, words: [200, 40000]}"], "corpora.find.words"),
        (["corpora.find={generate: retrieval, npm: x}"], "corpora.find.npm: retrieval reads no source; remove it"),
        (["corpora.find={generate: retrieval}", "tokenizer.train_on=mine", "stages.pretrain={objective: sft, data: {find: 1}}"], "its documents are text, and sft reads chat"),
        (["corpora.sums={generate: addition, min_document_bytes: 5}"], "corpora.sums.min_document_bytes: has no effect on conversations"),
        (["corpora.mine.items=5"], ": has no effect without generate; remove it"),
        (["corpora.mine.seed=5"], ": has no effect without generate; remove it"),
        (["corpora.more={files: x, format: chat, text_field: body}"], "corpora.more.text_field: has no effect on conversations"),
        (["corpora.more={python: code, format: chat}"], "corpora.more.format: what Python carries are no conversations"),
        (["corpora.more={files: x, format: chat, fallback: {files: y}}"], "corpora.more.fallback: holds text and stands in for chat"),
        (["corpora.mine.format=chat"], "stages.pretrain.data.mine: its documents are chat, and next_token reads text; leave it out"),
        (["corpora.sums={generate: addition}", "tokenizer.train_on={mine: 1, sums: 1}"], "tokenizer.train_on.sums: its documents are chat, and the tokenizer's training reads text"),
    ],
)  # fmt: skip
def test_conversations_where_they_do_not_fit(overrides, message):
    with pytest.raises(InputError) as caught:
        load("r.yaml", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "corpora.gym={generate: reasoning_gym, task: lcm, settings: {max_numbers: 3, a: [1, {b: null}]}, seed: 3}"
        ],
        ["corpora.sums={generate: addition, items: 5, seed: 3, fallback: {files: a.jsonl, format: chat}}"],
        [
            "corpora.find={generate: retrieval, words: [100, 30000], format: text}",
            "stages.pretrain.data={find: 1}",
        ],
        ["corpora.quiz={generate: country_questions, npm: x, files: '*.json', format: chat}"],
        ["corpora.mine={npm: x, files: 'a/*.txt'}"],
        ["model.heads=6", "model.head_width=10"],
        ["model.vocabulary=131072"],
        ["tokenizer={kind: file, path: t.json}", "model.vocabulary=100"],
        ["scale.data=1", "scale.microbatch_tokens=64"],
        [
            "stages.pretrain.sequence_length={0%: 32, 50%: 64}",
            "stages.pretrain.batch_tokens={0%: 32, 50%: 64}",
        ],
        ["stages.pretrain.tokens=2 epochs"],
        ["stages.pretrain.tokens=100 steps", "stages.pretrain.learning_rate.warmup=100 steps"],
        [MIDTRAIN + ", carry: [weights, optimizer]}"],
        [MIDTRAIN + ", optimizer: muon, carry: []}"],
    ],
)
def test_what_fits(overrides):
    assert load("r.yaml", overrides)


def test_sizes_fill_in_what_is_left_out():
    assert Model(layers=1, width=96, heads=3).sizes() == Sizes(3, 32, 3, 256)
    assert Model(layers=1, width=100, heads=2, activation="gelu").sizes() == Sizes(2, 50, 2, 448)
    stated = Model(layers=1, width=96, heads=4, key_value_heads=2, head_width=16, feedforward=100)
    assert stated.sizes() == Sizes(4, 16, 2, 100)


def test_rows_of_the_embedding():
    model = Model(layers=1, width=8, heads=1)
    assert [model.rows(size) for size in (1, 64, 65, 8192)] == [64, 64, 128, 8192]
    assert Model(layers=1, width=8, heads=1, vocabulary=50257).rows(8192) == 50257


def test_a_file_that_is_wrong_by_itself_is_not_blamed_on_an_override():
    Path("r.yaml").write_text(WHOLE.replace("batch_tokens: 512", "batch_tokens: 63"))
    with pytest.raises(InputError) as caught:
        load("r.yaml", ["model.layers=3", "stages.pretrain.tokens=2M tokens"])
    assert str(caught.value).startswith("r.yaml:11: stages.pretrain: batch_tokens 63 at 0%")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["stages.pretrain.lora=4", "stages.pretrain.freeze=[head]"],
            "stages.pretrain.freeze=[head]: has no effect with lora, which leaves alone all that it does not name; remove it",
        ),
        (
            [f"{MIDTRAIN}, carry: [weights, optimizer], lora: 4}}"],
            "stages.midtrain.carry: LoRA's matrices and their state belong to this stage alone; remove optimizer",
        ),
        (
            ["stages.pretrain.lora=4", f"{MIDTRAIN}, carry: [weights, optimizer]}}"],
            "stages.midtrain.carry: LoRA's matrices and their state belong to the stage before alone",
        ),
        (
            [f"{MIDTRAIN}, carry: [weights, optimizer], freeze: [head]}}"],
            "stages.midtrain.carry: the state is of other parameters: freeze differs; remove optimizer",
        ),
        (["stages.pretrain.lora={rank: 0}"], "rank: must be at least 1, not 0"),
        (["stages.pretrain.lora={alpha: 0}"], "alpha: must be above 0, not 0"),
        (
            ["stages.pretrain.lora={dropout: 0.1}"],
            "dropout: unknown key; stages.pretrain.lora has rank, alpha, rslora, targets, train",
        ),
        (["stages.pretrain.freeze=head"], "a list is expected, not 'head'"),
    ],
)
def test_a_part_of_the_weights(overrides, line):
    with pytest.raises(InputError) as error:
        load("r.yaml", overrides)
    assert line in str(error.value)


def test_lora_by_its_rank_and_what_is_passed_on():
    recipe = load("r.yaml", ["stages.pretrain.lora=4", f"{MIDTRAIN}}}"])
    assert recipe.stages["pretrain"].lora.rank == 4
    assert recipe.stages["midtrain"].lora is None
    kept = load(
        "r.yaml",
        ["stages.pretrain.freeze=[head]", f"{MIDTRAIN}, freeze: [head], carry: [weights, optimizer]}}"],
    )
    assert kept.stages["midtrain"].freeze == ["head"]
