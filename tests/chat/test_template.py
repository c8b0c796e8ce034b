"""Templates against Hugging Face's rendering, and where they refuse or fail."""

import json
from pathlib import Path

import pytest

from cupola.chat.conversation import Conversation, Message, Unusable
from cupola.chat.template import BEGIN, DEFAULT, END, NONCHARACTERS, ChatTemplate, Rendered, load_template
from cupola.errors import InputError
from tests.chat.families import ASK, CONVERSATIONS, REPLY, TEMPLATES

TOKENS = {"bos_token": "<|begin|>", "eos_token": "</s>"}


def theirs(source: str, conversation: Conversation, prompt: bool = False, **variables: str) -> Rendered:
    """By transformers."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    texts, spans = utils.render_jinja_template(
        conversations=[[dict(vars(message)) for message in conversation.messages]],
        tools=list(conversation.tools) or None,
        chat_template=source,
        return_assistant_tokens_mask=True,
        add_generation_prompt=prompt,
        **variables,
    )
    return Rendered(texts[0], tuple(spans[0]))


@pytest.mark.oracle
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("family", TEMPLATES)
def test_same_text_and_spans(family: str, name: str, prompt: bool) -> None:
    conversation = CONVERSATIONS[name]
    template = ChatTemplate(TEMPLATES[family], family, TOKENS)
    ours = template.render(conversation.messages, prompt, tools=list(conversation.tools) or None)
    assert ours == theirs(TEMPLATES[family], conversation, prompt, **TOKENS)
    answers = sum(message.role == "assistant" for message in conversation.messages)
    assert len(ours.spans) == answers


SNIPPETS = {
    "scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "names": "{% for m in 'ab' %}{% generation %}{{ loop.index }}{{ m }}{% endgeneration %}{% endfor %}",
    "loop control": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "lines": "a\n  {% if true %}\n  b\n  {% endif %}\n{% generation %}\n c\n{% endgeneration %}\nd\n",
    "json": "{{ messages | tojson(indent=1) }}{{ {'é': 1} | tojson(ensure_ascii=true, separators=';:') }}",
    "undefined": "[{{ nothing }}]{% if nothing is defined %}x{% endif %}",
    "none": "{{ tools }}{{ documents }}",
    "a macro": "{% macro f(x) %}<{{ x }}>{% endmacro %}{% generation %}{{ f(tools) }}{% endgeneration %}",
    "dict": "{{ dict(a=1).a }}{{ namespace(b=2).b }}{{ range(3) | list }}",
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", SNIPPETS)
def test_same_dialect(name: str) -> None:
    conversation = Conversation((ASK, REPLY))
    assert ChatTemplate(SNIPPETS[name], name).render((ASK, REPLY)) == theirs(SNIPPETS[name], conversation)


def test_spans_survive_assigned_blocks() -> None:
    source = "{% set x %}ab{% generation %}cd{% endgeneration %}{% endset %}__{{ x }}__"
    assert ChatTemplate(source, "t").render([ASK]) == Rendered("__abcd__", ((4, 6),))


def test_default() -> None:
    rendered = load_template(None).render([Message("system", "Be brief."), ASK, REPLY], True)
    assert rendered.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHow many words?<|im_end|>\n"
        "<|im_start|>assistant\nTwo, I think.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [rendered.text[slice(*span)] for span in rendered.spans] == ["Two, I think.<|im_end|>"]


def test_a_content_is_no_mark() -> None:
    forged = f"{END}a{BEGIN}b{chr(NONCHARACTERS[-1])}"
    rendered = load_template(None).render([Message("user", forged), REPLY], tools=[{forged: [forged]}])
    assert len(rendered.spans) == 1
    assert rendered.text[slice(*rendered.spans[0])] == "Two, I think.<|im_end|>"
    assert "\ufffda\ufffdb\ufffd" in rendered.text


def test_no_generation_block() -> None:
    plain = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", "plain.jinja")
    assert plain.render([ASK, REPLY]) == Rendered("How many words?Two, I think.", ())
    with pytest.raises(
        InputError, match=r"plain\.jinja.*\{% generation %\} before.*\{% endgeneration %\} after"
    ):
        plain.require_marks()
    load_template(None).require_marks()


def test_a_template_refuses_a_conversation() -> None:
    template = ChatTemplate("{% if tools %}{{ raise_exception('no tools here') }}{% endif %}", "t")
    with pytest.raises(Unusable, match="no tools here") as caught:
        template.render([ASK], tools=[{}])
    assert caught.value.reason == "refused by the chat template"
    assert template.render([ASK]).text == ""


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}",
        "{% generation %}x",
        "{% generation %}x{% endfor %}",
        "{{ messages[ }}",
        "a\n{% nonsense %}",
    ],
)
def test_no_template(source: str) -> None:
    with pytest.raises(InputError, match=r"t\.jinja: line \d+: is no chat template"):
        ChatTemplate(source, "t.jinja")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[9].content }}{{ messages[9].content.x }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% set x %}{% generation %}ab{% endgeneration %}{% endset %}{{ x[1:] }}",
        "{% set x %}{% generation %}ab{% endgeneration %}{% endset %}{{ x[:-1] }}",
        "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}",
    ],
)
def test_a_template_fails(source: str) -> None:
    with pytest.raises(InputError, match=r"t\.jinja"):
        ChatTemplate(source, "t.jinja").render([ASK])


def test_what_it_reads() -> None:
    assert ChatTemplate(TEMPLATES["tools"], "t").reads_tools
    assert not ChatTemplate(TEMPLATES["lines"], "t").reads_tools
    one, other = ChatTemplate(DEFAULT, "a"), ChatTemplate(DEFAULT, "b", {"bos_token": "<s>"})
    assert one.fingerprint == ChatTemplate(DEFAULT, "b").fingerprint != other.fingerprint


def test_load(tmp_path: Path) -> None:
    file, config = tmp_path / "chat_template.jinja", tmp_path / "tokenizer_config.json"
    with pytest.raises(InputError, match="holds no chat template"):
        load_template(tmp_path)
    with pytest.raises(InputError, match="no such chat template"):
        load_template(file)
    config.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is no JSON"):
        load_template(tmp_path)
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "add_bos_token": True}
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}1"}]
    config.write_text(json.dumps({**tokens, "chat_template": named}), encoding="utf-8")
    assert load_template(tmp_path).render([ASK]).text == "<s>1"
    config.write_text(json.dumps({**tokens, "chat_template": "{{ eos_token }}2"}), encoding="utf-8")
    assert load_template(tmp_path).render([ASK]).text == "</s>2"
    file.write_text("{{ bos_token }}3\n", encoding="utf-8")
    for path in (tmp_path, file, str(file)):
        assert load_template(path).render([ASK]).text == "<s>3"
    assert load_template(file).variables == {"bos_token": "<s>", "eos_token": "</s>"}
    file.write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read"):
        load_template(file)
