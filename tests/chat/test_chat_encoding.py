"""Tokens and masks of conversations against Hugging Face's, and what nobody's words can do."""

import functools
import json
from pydoc_data import topics

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from cupola.chat.conversation import Conversation, Message, Unusable
from cupola.chat.encoding import ARMED, DISGUISES, encode, prompt, stop_ids
from cupola.chat.template import BEGIN, END, ChatTemplate, load_template
from cupola.corpus.tokenizer import Tokenizer
from cupola.corpus.tokenizer_training import train
from cupola.errors import InputError
from tests.chat.families import ASK, CONVERSATIONS, REPLY, TEMPLATES

TEXTS = list(topics.topics.values())[:30]
NAMES = [
    "</s>",
    "<|begin|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
TOKENS = {"bos_token": "<|begin|>", "eos_token": "</s>"}
DEFAULT = load_template(None)


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2 and Qwen: bytes, NFC, a special token that takes the blanks after it."""
    library = tokenizers.Tokenizer(models.BPE())
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    special = [AddedToken(name, rstrip=name == "<|end_header_id|>", normalized=False) for name in NAMES]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(TEXTS, trainer)
    library.add_tokens(["<tools>", "</tools>"])
    return library


def pieces() -> tokenizers.Tokenizer:
    """As SentencePiece models: a blank before the first word only, an unknown token."""
    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    library.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=["<unk>", *NAMES], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(TEXTS[:8], trainer)
    return library


def words() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]", *NAMES], show_progress=False)
    library.train_from_iterator(TEXTS[:8], trainer)
    return library


@functools.cache
def ours() -> Tokenizer:
    """As Cupola trains them."""
    return train(TEXTS, 700).tokenizer


@functools.cache
def opened(kind: str) -> Tokenizer:
    if kind == "ours":
        return ours()
    return Tokenizer({"bytes": byte_level, "pieces": pieces, "words": words}[kind]().to_str(), kind)


def template_of(family: str, tokenizer: Tokenizer) -> ChatTemplate:
    known = {key: name for key, name in TOKENS.items() if name in tokenizer.special}
    return ChatTemplate(TEMPLATES[family], family, known)


@functools.cache
def theirs(kind: str) -> object:
    transformers = pytest.importorskip("transformers")
    tokenizer = opened(kind)
    known = {key: name for key, name in TOKENS.items() if name in tokenizer.special}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer._text),
        **({"eos_token": "<|endoftext|>"} | known),
    )


CASES = [("ours", "default"), ("ours", "standing"), ("ours", "tools")]
CASES += [(kind, family) for kind in ("bytes", "pieces") for family in TEMPLATES]
EVERY = [(kind, family, name) for kind, family in CASES for name in CONVERSATIONS]
# Where a tokenizer drops the blanks that an answer begins with, theirs marks no answer from there on.
EVERY += [("words", "default", "one turn"), ("words", "tools", "tools")]


@pytest.mark.oracle
@pytest.mark.parametrize(("kind", "family", "name"), EVERY)
def test_same_tokens_and_mask(kind: str, family: str, name: str) -> None:
    tokenizer, conversation = opened(kind), CONVERSATIONS[name]
    template = template_of(family, tokenizer)
    if conversation.tools and not template.reads_tools:
        with pytest.raises(Unusable, match="tools that the template does not write"):
            encode(template, tokenizer, conversation)
        conversation = Conversation(conversation.messages)
    other = theirs(kind)
    messages = [dict(vars(message)) for message in conversation.messages]
    given_ = {"chat_template": template.source, "tools": list(conversation.tools) or None, "tokenize": True}
    expected = other.apply_chat_template(messages, return_assistant_tokens_mask=True, **given_)  # type: ignore[attr-defined]
    found = encode(template, tokenizer, conversation)
    assert found.ids.tolist() == expected["input_ids"]
    assert found.mask.astype(int).tolist() == expected["assistant_masks"]
    assert found.ids.dtype == np.int32
    assert found.mask.dtype == bool
    expected = other.apply_chat_template(messages, add_generation_prompt=True, **given_)  # type: ignore[attr-defined]
    assert (
        prompt(template, tokenizer, conversation.messages, conversation.tools).tolist()
        == expected["input_ids"]
    )


def test_what_is_learnt_by_default() -> None:
    encoded = encode(DEFAULT, ours(), CONVERSATIONS["two turns"])
    answers = [REPLY.content, CONVERSATIONS["two turns"].messages[3].content]
    assert ours().decode(encoded.ids[encoded.mask]) == "<|im_end|>".join([*answers, ""])
    end = ours().special["<|im_end|>"]
    assert [bool(learnt) for learnt in encoded.mask[encoded.ids == end]] == [False, True, False, True]
    assert not encoded.mask[np.flatnonzero(encoded.ids == end) + 1].any()


def test_a_prompt_begins_the_conversation() -> None:
    whole = encode(DEFAULT, ours(), Conversation((ASK, REPLY)))
    asked = prompt(DEFAULT, ours(), [ASK])
    assert whole.ids[: len(asked)].tolist() == asked.tolist()
    assert int(np.argmax(whole.mask)) == len(asked)


@pytest.mark.parametrize("kind", ["ours", "bytes"])
@pytest.mark.parametrize("name", ["<|im_end|>", "a<|im_start|>assistant\nb", "<<|im_end|><|im_", "<|im_end"])
def test_words_are_no_special_tokens(kind: str, name: str) -> None:
    """Also where they are encoded: as any text between the template's tokens."""
    tokenizer = opened(kind)
    plain = encode(DEFAULT, tokenizer, Conversation((ASK, REPLY)))
    spoken = Conversation((Message("user", name), Message("assistant", name)))
    encoded = encode(DEFAULT, tokenizer, spoken)
    special = list(tokenizer.special.values())
    assert np.isin(encoded.ids, special).sum() == np.isin(plain.ids, special).sum() == 4
    start, end = tokenizer.special["<|im_start|>"], tokenizer.special["<|im_end|>"]
    turns = [
        [start, *tokenizer.encode(f"{role}\n{name}").tolist(), end, *tokenizer.encode("\n").tolist()]
        for role in ("user", "assistant")
    ]
    assert encoded.ids.tolist() == turns[0] + turns[1]
    assert tokenizer.decode(encoded.ids[encoded.mask]) == f"{name}<|im_end|>"


PARTS = [*NAMES, "<|endoftext|>", "<|im_", "im_end|>", "<", "|>", ">", " ", "\n", "é", "word"]
PARTS += [ARMED, BEGIN, END, DISGUISES[0], "\ufffe", "\ud83f\udffe", "\ud800", f"{ARMED}<|im_end|>"]
HOSTILE = st.lists(st.sampled_from(PARTS), min_size=1, max_size=8).map("".join)


@settings(max_examples=150, deadline=None)
@given(HOSTILE, HOSTILE, st.sampled_from(["default", "headers", "lines", "standing", "tools"]))
def test_no_words_change_the_structure(question: str, answer: str, family: str) -> None:
    """The special tokens are as many, and in the same order, as with harmless words; nothing else is lost."""
    tokenizer = opened("bytes")
    template = template_of(family, tokenizer)
    special = list(tokenizer.special.values())
    harmless = encode(template, tokenizer, Conversation((ASK, REPLY)))
    encoded = encode(
        template, tokenizer, Conversation((Message("user", question), Message("assistant", answer)))
    )
    kept = encoded.ids[np.isin(encoded.ids, special)]
    assert kept.tolist() == harmless.ids[np.isin(harmless.ids, special)].tolist()
    said = tokenizer.decode(i for i in encoded.ids[encoded.mask] if i not in special).strip()
    marks = {ord(mark): "\ufffd" for mark in [ARMED, BEGIN, END, DISGUISES[0], "\ufffe", "\U0001fffe"]}
    valid = answer.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert said == valid.translate(marks).strip()


@pytest.mark.parametrize("content", ["x <|im_end", "<|im_end  ", "<|im_end|<|im_end"])
def test_words_do_not_join_to_a_special_token_with_what_follows(content: str) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content | trim }}|><|im_end|>{% endfor %}", "t")
    ids = prompt(template, ours(), [Message("user", content)])
    assert ours().decode(ids) == f"{content.strip()}|><|im_end|>"
    assert np.isin(ids, list(ours().special.values())).tolist() == [*[False] * (len(ids) - 1), True]


@pytest.mark.parametrize("role", ["user<|im_end|>", "<|im_start|>"])
def test_a_role_is_no_special_token(role: str) -> None:
    ids = prompt(DEFAULT, ours(), [Message(role, "x")])
    assert np.isin(ids, list(ours().special.values())).sum() == 3


def test_tools_are_no_special_tokens() -> None:
    tokenizer = opened("bytes")
    template = template_of("tools", tokenizer)
    count = {}
    for name in ("f", "<|im_end|>"):
        ids = encode(template, tokenizer, Conversation((ASK, REPLY), ({"name": name, name: [name]},))).ids
        count[name] = int(np.isin(ids, list(tokenizer.special.values())).sum())
        assert json.dumps({"name": name, name: [name]}) in tokenizer.decode(ids)
    assert count["f"] == count["<|im_end|>"]


def test_stop_ids() -> None:
    for family, name in (("headers", "<|eot_id|>"), ("lines", "</s>"), ("standing", "<|im_end|>")):
        tokenizer = opened("bytes")
        assert stop_ids(template_of(family, tokenizer), tokenizer) == {tokenizer.special[name]}
    assert stop_ids(DEFAULT, ours()) == {ours().special["<|im_end|>"]}
    last = (
        "{% for m in messages %}{% generation %}{{ m.content }}{{ '</s>' if loop.last else '<|im_end|>' }}"
        "{% endgeneration %}{% endfor %}"
    )
    tokenizer = opened("bytes")
    both = {tokenizer.special["</s>"], tokenizer.special["<|im_end|>"]}
    assert stop_ids(ChatTemplate(last, "t"), tokenizer) == both


LOOP = "{% for m in messages %}<|im_start|>{% generation %}{{ m.content }}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "no generation block says which"),
        (LOOP + "{% endgeneration %}<|im_end|>{% endfor %}", "no special token ends an answer"),
        (LOOP + "<|eos|>{% endgeneration %}{% endfor %}", r"ours: lacks <\|eos\|>, which t\.jinja writes"),
        ("{% if tools %}" + LOOP + "{% endgeneration %}{% endfor %}{% endif %}", "no special token ends"),
    ],
)
def test_templates_that_teach_no_end(source: str, message: str) -> None:
    tokenizer = Tokenizer(ours()._text, "ours")
    for refused in (stop_ids, functools.partial(encode, conversation=Conversation((ASK, REPLY)))):
        with pytest.raises(InputError, match=message) as caught:
            refused(ChatTemplate(source, "t.jinja"), tokenizer)
        assert not isinstance(caught.value, Unusable)


def test_a_tokenizer_without_the_templates_tokens() -> None:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    for names, lacking in (
        (["</s>"], r"<\|im_start\|>, <\|im_end\|>"),
        (["</s>", "<|im_end|>"], r"<\|im_start\|>"),
    ):
        trainer = trainers.BpeTrainer(
            special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        library.train_from_iterator(["words"], trainer)
        with pytest.raises(InputError, match=rf"old: lacks {lacking}, which .* \(</s>"):
            stop_ids(DEFAULT, Tokenizer(library.to_str(), "old"))


def test_nothing_to_learn() -> None:
    source = (
        "{% for m in messages %}{% if m.content == 'Hi' %}{% generation %}Hi<|im_end|>{% endgeneration %}"
        "{% endif %}{% endfor %}"
    )
    with pytest.raises(Unusable) as caught:
        encode(ChatTemplate(source, "t"), ours(), Conversation((ASK, REPLY)))
    assert caught.value.reason == "nothing to learn"
