"""The questions of a stage that answers them: which are asked, and what is left out."""

from pathlib import Path
from pydoc_data import topics

import pytest

from cupola.chat.conversation import as_json, read
from cupola.chat.template import ChatTemplate, load_template
from cupola.corpus.tokenizer import Tokenizer
from cupola.corpus.tokenizer_training import train
from cupola.errors import InputError
from cupola.pipeline.asking import read_questions
from tests.corpus.corpus_fakes import gathered
from tests.displays import Heard

REFUSING = """\
{%- if messages[0].role == 'system' -%}{{ raise_exception('no system message') }}{%- endif -%}
{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}
{% else %}{{ m.content }}<|im_end|>
{% endif %}{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(list(topics.topics.values())[:20], 600).tokenizer


def line(question: str, system: str = "") -> str:
    return as_json(read({"prompt": question, "completion": "Yes.", "system": system}))


def asked(tmp_path: Path, tokenizer: Tokenizer, lines: list[str], heard: Heard, longest: int = 60):
    folder = gathered(tmp_path / "text", lines, [])
    template = ChatTemplate(REFUSING, "refusing.jinja")
    return read_questions("mine", folder, "train", tokenizer, template, longest, None, heard)


def test_what_cannot_be_asked_is_counted_by_its_reason(tmp_path: Path, tokenizer: Tokenizer) -> None:
    heard = Heard()
    lines = [line("Is it?"), line("word " * 80), line("Why?", "Be brief."), line("And?", "Be brief.")]
    found = asked(tmp_path, tokenizer, lines, heard)
    assert [question.messages[-1].content for question in found.questions] == ["Is it?"]
    assert len(heard.warnings) == 2
    assert "mine: 1 questions have over 60 tokens and are left out" in heard.warnings
    assert any(text.startswith("mine: 2 questions are left out: ") for text in heard.warnings)


def test_a_source_without_a_question_that_fits_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"corpora.mine: no question is left to answer"):
        asked(tmp_path, tokenizer, [line("word " * 80)], Heard())


def test_the_question_is_what_stands_before_the_last_answer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    turns = [("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    whole = as_json(read({"messages": [{"role": role, "content": text} for role, text in turns]}))
    folder = gathered(tmp_path / "text", [whole], [])
    found = read_questions("mine", folder, "train", tokenizer, load_template(None), 90, None, Heard())
    [question] = found.questions
    assert [message.content for message in question.messages] == ["One?", "1", "Two?"]
    assert tokenizer.decode(question.ids.tolist()).endswith("<|im_start|>assistant\n")
