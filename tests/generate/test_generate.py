"""Decoding with states against the full forward pass, against each prompt alone, and against Hugging Face."""

import math

import pytest
import torch

from cupola.errors import InputError
from cupola.export.formats import of_model
from cupola.export.pairs import to_theirs
from cupola.generate import generate
from cupola.generate.sampling import Sampling, choose, uniform
from cupola.models import build
from tests.models import small_models
from tests.models.small_models import LLAMA

VOCABULARY = 67
GPT2 = small_models.GPT2.model_copy(update={"max_positions": 24})
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9], [9, 3, 2]]


@pytest.fixture(params=[LLAMA, GPT2], ids=["llama", "gpt2"])
def module(request):
    return loud(request.param)


def loud(model):
    """Blocks that matter, so that what is chosen depends on the whole prompt."""
    module = build(model, VOCABULARY, seed=1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2 and "positions" not in name:
                parameter.mul_(6)
    return module


def greedy_without_cache(module, prompt, count):
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(module.logits(module.hidden(torch.tensor([tokens])))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_equals_the_full_forward_for_prompts_of_any_length(module):
    completions = generate(module, PROMPTS, 12, temperature=0)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.tokens == greedy_without_cache(module, prompt, 12)
        assert completion.finish_reason == "length"


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.7, "temperature": 1.4}])
def test_a_sample_does_not_depend_on_its_batch(module, settings):
    together = generate(module, PROMPTS, 10, seed=11, **settings)
    # Alone, but at the same index: what stands before it is another prompt each time.
    for index, prompt in enumerate(PROMPTS):
        company = [[7]] * index + [prompt]
        alone = generate(module, company, 10, seed=11, **settings)[index]
        assert alone.tokens == together[index].tokens
        for first, second in zip(alone.log_probabilities, together[index].log_probabilities, strict=True):
            assert first == pytest.approx(second, abs=1e-4)
    assert [c.tokens for c in generate(module, PROMPTS, 10, seed=12, **settings)] != [
        c.tokens for c in together
    ]


@pytest.mark.parametrize("model", [LLAMA, GPT2, small_models.HYBRID], ids=["llama", "gpt2", "hybrid"])
def test_a_prompt_that_is_continued_several_times_is_read_once(model):
    module = loud(model)
    read = []
    module.embedding.register_forward_hook(lambda layer, inputs, output: read.append(len(inputs[0])))
    repeated = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
    together = generate(module, repeated, 8, seed=5)
    assert read[0] == 2
    assert read[1] == 4
    for index, prompt in enumerate(repeated):
        # All prompts different, so that none is taken for another.
        company = [[60 + n] for n in range(index)] + [prompt]
        assert generate(module, company, 8, seed=5)[index].tokens == together[index].tokens
    assert len({tuple(done.tokens) for done in together}) == 4


def test_log_probabilities_are_the_models(module):
    completion = generate(module, [PROMPTS[0]], 6, temperature=1.3, top_k=9)[0]
    tokens = torch.tensor([PROMPTS[0] + completion.tokens])
    with torch.no_grad():
        expected = module.logits(module.hidden(tokens)).log_softmax(-1)[0, len(PROMPTS[0]) - 1 : -1]
    chosen = expected.gather(1, tokens[0, len(PROMPTS[0]) :, None])[:, 0]
    assert completion.log_probabilities == pytest.approx(chosen.tolist(), abs=1e-4)


def test_stop_tokens_end_one_row_and_not_the_others():
    module = loud(LLAMA)
    free = generate(module, PROMPTS, 12, temperature=0)
    stop = {free[0].tokens[2], free[2].tokens[5]}
    for completion, unstopped in zip(
        generate(module, PROMPTS, 12, temperature=0, stop=stop), free, strict=True
    ):
        ends = [i for i, token in enumerate(unstopped.tokens) if token in stop]
        assert completion.tokens == (unstopped.tokens[: ends[0] + 1] if ends else unstopped.tokens)
        assert completion.finish_reason == ("stop" if ends else "length")


def test_learned_positions_are_never_exceeded():
    module = loud(GPT2)
    prompts = [[5] * 24, [4] * 20, [3]]
    completions = generate(module, prompts, 10, temperature=0)
    assert [c.finish_reason for c in completions] == ["max_positions", "max_positions", "length"]
    assert [len(c.tokens) for c in completions] == [1, 5, 10]
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.tokens == greedy_without_cache(module, prompt, len(completion.tokens))


def test_on_token_reports_every_token_as_it_comes(module):
    heard: dict[int, list[int]] = {}
    completions = generate(
        module, PROMPTS, 5, on_token=lambda index, token: heard.setdefault(index, []).append(token)
    )
    assert [heard[index] for index in range(len(PROMPTS))] == [c.tokens for c in completions]


def test_under_bf16_autocast(module):
    module.train()
    with torch.autocast("cpu", torch.bfloat16):
        completions = generate(module, PROMPTS, 8, seed=2)
    assert all(len(c.tokens) == 8 for c in completions)
    assert module.training
    with torch.no_grad():
        tokens = torch.tensor([PROMPTS[0] + completions[0].tokens])
        expected = module.logits(module.hidden(tokens)).log_softmax(-1)[0, len(PROMPTS[0]) - 1 : -1]
    chosen = expected.gather(1, tokens[0, len(PROMPTS[0]) :, None])[:, 0]
    assert completions[0].log_probabilities == pytest.approx(chosen.tolist(), abs=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [[]]}, "prompt 0 is empty"),
        ({"prompts": [[1], [VOCABULARY]]}, "prompt 1 holds a token outside the vocabulary of 67"),
        ({"prompts": [[1] * 25]}, "positions end at 24"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        generate(build(GPT2, VOCABULARY, 0), **{"prompts": [[1]], "max_tokens": 2, **arguments})


def test_nothing_to_do():
    module = build(LLAMA, VOCABULARY, 0)
    assert generate(module, [], 5) == []
    assert generate(module, [[1]], 0)[0].tokens == []


def test_choices_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    draws = 4000
    places = [(0, position) for position in range(draws)]
    tokens, _ = choose(logits.expand(draws, 5), Sampling(temperature=0.8, seed=3), places)
    expected = (logits.double() / 0.8).softmax(-1) * draws
    statistic = ((torch.bincount(tokens, minlength=5) - expected) ** 2 / expected).sum()
    assert float(statistic) < 18.5  # chi-squared with 4 degrees of freedom, 0.1%


def test_truncation_keeps_what_it_should():
    logits = torch.log(torch.tensor([0.05, 0.4, 0.25, 0.3]))
    places = [(0, position) for position in range(500)]
    rows = logits.expand(500, 4)
    chosen = lambda **settings: set(choose(rows, Sampling(**settings), places)[0].tolist())
    assert chosen() == {0, 1, 2, 3}
    assert chosen(top_k=2) == {1, 3}
    assert chosen(top_p=0.69) == {1, 3}
    assert chosen(top_p=0.71) == {1, 2, 3}
    assert chosen(top_p=1e-9) == {1}
    assert chosen(temperature=0) == {1}
    assert chosen(top_k=99) == {0, 1, 2, 3}


def test_uniform_numbers_are_uniform_and_keyed():
    numbers = [uniform(1, prompt, position) for prompt in range(40) for position in range(50)]
    assert len(set(numbers)) == 2000
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 2000 - 0.5) < 4 * math.sqrt(1 / 12 / 2000)
    assert uniform(1, 2, 3) != uniform(2, 2, 3)


@pytest.mark.oracle
def test_greedy_equals_hugging_faces_generate(module):
    from transformers import AutoConfig, AutoModelForCausalLM

    format_ = of_model(module.settings)
    fields = format_.configuration(module.settings, VOCABULARY)
    config = AutoConfig.for_model(**fields, bos_token_id=0, eos_token_id=None, pad_token_id=0)
    oracle = AutoModelForCausalLM.from_config(config).eval()
    oracle.load_state_dict(to_theirs(module.state_dict(), format_.pairs(module.settings)), strict=False)
    ours = generate(module, PROMPTS, 12, temperature=0)
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        theirs = oracle.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert completion.tokens == theirs[0, len(prompt) :].tolist()
