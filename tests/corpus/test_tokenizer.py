"""The tokenizer against the `tokenizers` library and transformers, on text that is hard to cut."""

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from cupola.corpus import tiktoken_engine
from cupola.corpus.tokenizer import Tokenizer
from cupola.corpus.tokenizer_training import PATTERN, RESERVED, train
from cupola.errors import InputError

ENGLISH = list(topics.topics.values())
CHINESE = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"


@functools.cache
def trained() -> Tokenizer:
    return train(ENGLISH, 2000).tokenizer


def reference_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids by the `tokenizers` library, from the file alone."""
    library = tokenizers.Tokenizer.from_str(tokenizer._text)
    library.encode_special_tokens = True
    return library.encode(text, add_special_tokens=False).ids


def build(
    texts: list[str] = ENGLISH,
    model: Callable[..., models.BPE] = models.BPE,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
    vocabulary: int = 1500,
    special: tuple[str, ...] = ("<|endoftext|>",),
    alphabet: bool = True,
) -> tokenizers.Tokenizer:
    """A tokenizer as other projects make them, by the library."""
    library = tokenizers.Tokenizer(model())
    library.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return library


def opened(library: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(library.to_str())


HARD = [
    "",
    " ",
    "\n",
    "\r\n\r\n  \r",
    "a" * 5000,
    "ab" * 3000,
    " " * 3000 + "x",
    "\t \n" * 500,
    "=" * 777 + "\n" * 33,
    "1234567890" * 50,
    "def f(x):\n\tif x:\n        return {'a': x**2}  # ok\n",
    "I'll we'Re DON'T it\u2019s 'sS 'ſ",
    "x\u00a0y\u3000z\u2028w\u0085v\u200bu",
    "e\u0301\u0327 \u0939\u093f\u0928\u094d\u0926\u0940 مرحبا שלום",
    "👩‍👩‍👧‍👦🏳️‍🌈😀" * 20,
    CHINESE * 100,
    "\x00\x01\x7f\ufeff\ufffd",
    "\U0010ffff\U000e0001\u0378",
    "½²Ⅷ٣४௧",
    b"caf\xe9 \xff\xfe\x80 ok".decode("utf-8", errors="replace"),
    " ".join(RESERVED),
    "<|endoftext|>",
]


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_same_ids_as_the_library_and_back(text: str) -> None:
    ids = trained().encode(text)
    assert trained().engine == "tiktoken"
    assert ids.tolist() == reference_ids(trained(), text)
    assert ids.dtype == np.int32
    assert trained().decode(ids) == text


LIKELY = st.sampled_from(
    [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "123", "the", "=", "--", "中", "é", "\u00a0"]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(LIKELY, st.text(max_size=8)), max_size=40).map("".join))
@example("\ud800a\udc00")
def test_same_ids_on_any_text(text: str) -> None:
    valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ids = trained().encode(text)
    assert ids.tolist() == reference_ids(trained(), valid)
    assert trained().decode(ids) == valid


def test_same_ids_where_merges_compete() -> None:
    """A vocabulary over two letters, in which every merge overlaps others; the longest pieces there are."""
    draw = random.Random(1)
    texts = ["".join(draw.choices("ab", (2, 1), k=300)) for _ in range(300)]
    for ignore_merges in (False, True):
        tokenizer = opened(build(texts, functools.partial(models.BPE, ignore_merges=ignore_merges)))
        assert tokenizer.engine == "tiktoken", tokenizer.engine_reason
        fresh = ["".join(draw.choices("ab", k=draw.randrange(1, 60))) for _ in range(3000)]
        for text, ids in zip(fresh, tokenizer.encode_batch(fresh), strict=True):
            assert ids.tolist() == reference_ids_of(tokenizer, text)


def reference_ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer._reference.encode(text, add_special_tokens=False).ids


def test_both_engines_read_unicode_by_the_same_tables() -> None:
    """Every code point is a letter, a number or a space to both, or to neither."""
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    single = {bytes([byte]): byte for byte in range(256)}
    for kind in (r"\p{L}", r"\p{N}", r"\s"):
        cut = pre_tokenizers.Split(Regex(f"{kind}+"), "removed", invert=True)
        by_library = {
            c
            for start in range(0, len(everything), 5000)
            for piece, _ in cut.pre_tokenize_str(everything[start : start + 5000])
            for c in piece
        }
        encoding = tiktoken_engine.tiktoken.Encoding(
            "x", pat_str=kind, mergeable_ranks=single, special_tokens={}
        )
        by_tiktoken = encoding.decode_bytes(encoding.encode_ordinary(everything)).decode()
        assert by_library == set(by_tiktoken)


def test_text_never_becomes_a_special_token() -> None:
    special = set(trained().special.values())
    for text in (*RESERVED, "".join(RESERVED), "a<|im_start|>user\nb<|im_end|>", " <think> x </think>"):
        ids = trained().encode(text)
        assert not special & set(ids.tolist())
        assert trained().decode(ids) == text


def test_reserved_ids_come_first() -> None:
    assert [trained().special[name] for name in RESERVED] == list(range(32))
    assert trained().delimiter == 0
    assert trained().decode([0, 2, 3]) == "<|endoftext|><|im_start|><|im_end|>"
    assert trained().token_bytes(1) == b"<|pad|>"


def test_token_bytes_join_to_the_text() -> None:
    text = "".join(HARD)
    assert b"".join(map(trained().token_bytes, trained().encode(text))) == text.encode()
    with pytest.raises(IndexError):
        trained().token_bytes(trained().size)
    with pytest.raises(IndexError):
        trained().token_bytes(-1)


def test_decode_of_half_a_character_and_of_ids_beyond_the_vocabulary() -> None:
    first = next(i for i in range(trained().size) if trained().token_bytes(i) == "é".encode()[:1])
    assert trained().decode([first]) == "\ufffd"
    assert trained().decode([trained().size + 3]) == "\ufffd"


def test_batches_keep_their_order() -> None:
    texts = [*HARD, *ENGLISH] * 3
    expected = [trained().encode(text).tolist() for text in texts]
    assert [ids.tolist() for ids in trained().encode_batch(texts)] == expected
    assert trained().encode_batch([]) == []


@pytest.mark.parametrize("space", [" ", "\u3000", "\n"])
def test_long_runs_of_space_do_not_overflow(space: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A million spaces overflow the stack of tiktoken's regular expressions."""
    text = "a" + space * 1_000_000 + "b"
    assert trained().encode(text).tolist() == reference_ids(trained(), text)
    assert "panic" not in capfd.readouterr().err


@pytest.mark.parametrize("piece", ["a", "=", "中", "1", "ab"])
def test_long_pieces_do_not_hang(piece: str) -> None:
    text = piece * (300_000 // len(piece))
    assert trained().encode(text).tolist() == reference_ids(trained(), text)


def test_a_pattern_that_overflows_is_encoded_all_the_same() -> None:
    pattern = r"(?:.(?!\n))+|[\s\S]"
    parts = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ]
    tokenizer = opened(build(pre_tokenizer=pre_tokenizers.Sequence(parts), texts=["the cat\n"] * 5))
    assert tokenizer.engine == "tiktoken"
    text = "the cat " * 200_000
    assert tokenizer._fast is not None
    assert tokenizer._fast.encode(text) is None
    assert tokenizer.encode(text).tolist() == reference_ids_of(tokenizer, text)


def test_saved_and_loaded(tmp_path: Path) -> None:
    trained().save(tmp_path / "new")
    for path in (tmp_path / "new", tmp_path / "new" / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.fingerprint == trained().fingerprint
        assert again.encode(ENGLISH[0]).tolist() == trained().encode(ENGLISH[0]).tolist()


def test_fingerprint_is_of_the_contents() -> None:
    spec = json.loads(trained()._text)
    assert Tokenizer(json.dumps(spec, indent=7, sort_keys=True)).fingerprint == trained().fingerprint
    spec["model"]["merges"].pop()
    assert Tokenizer(json.dumps(spec)).fingerprint != trained().fingerprint


def test_fingerprint_is_of_the_delimiter_where_the_file_does_not_say_it(tmp_path: Path) -> None:
    spec = json.loads(trained()._text.replace("<|endoftext|>", "<|stop|>"))
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": trained().size, "content": "<|turn|>"})
    found = {name: Tokenizer(json.dumps(spec), end_of_text=name) for name in ("<|stop|>", "<|turn|>")}
    assert found["<|stop|>"].delimiter != found["<|turn|>"].delimiter
    assert found["<|stop|>"].fingerprint != found["<|turn|>"].fingerprint
    found["<|turn|>"].save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == found["<|turn|>"].fingerprint


@pytest.mark.oracle
def test_transformers_reads_what_is_saved(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    trained().save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == trained().delimiter
    for text in [*HARD[:-2], *ENGLISH[:20]]:  # the last two name special tokens, which that library finds
        assert theirs.encode(text, add_special_tokens=False) == trained().encode(text).tolist()


# Files of other projects


def test_gpt2_style() -> None:
    """Ids of the bytes in an order of their own, special token last, no `ignore_merges`."""
    library = build(special=())
    library.add_special_tokens(["<|endoftext|>"])
    tokenizer = opened(library)
    assert (tokenizer.engine, tokenizer.engine_reason) == ("tiktoken", "")
    assert tokenizer.delimiter == tokenizer.size - 1
    for text in HARD:
        assert tokenizer.encode(text).tolist() == reference_ids_of(tokenizer, text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def llama3_style() -> tokenizers.Tokenizer:
    """Every way to put a token together is listed as a merge, as converters from tiktoken do."""
    library = build(pre_tokenizer=trained()._reference.pre_tokenizer, special=())
    spec = json.loads(library.to_str())
    vocabulary = spec["model"]["vocab"]
    spec["model"]["merges"] = [
        [token[:cut], token[cut:]]
        for token in sorted(vocabulary, key=vocabulary.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    spec["model"]["ignore_merges"] = True
    library = tokenizers.Tokenizer.from_str(json.dumps(spec))
    library.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", library.token_to_id("<|begin_of_text|>"))],
    )
    return library


def test_llama3_style() -> None:
    tokenizer = opened(llama3_style())
    assert tokenizer.engine == "tiktoken", tokenizer.engine_reason
    assert tokenizer.delimiter == tokenizer.special["<|end_of_text|>"]
    for text in (*HARD, *ENGLISH):
        assert tokenizer.encode(text).tolist() == reference_ids_of(tokenizer, text)


def test_qwen_style() -> None:
    """Added tokens that the file does not call special are found in text; and text is normalised."""
    library = build(special=())
    library.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    library.add_tokens([AddedToken("<tool_call>", normalized=False)])
    plain = opened(library)
    assert plain.engine == "tiktoken", plain.engine_reason
    text = "a <tool_call>b<|im_start|> <tool_call"
    assert plain.encode(text).tolist() == reference_ids_of(plain, text)
    assert library.token_to_id("<tool_call>") in plain.encode(text)
    assert not set(plain.special.values()) & set(plain.encode(text).tolist())
    assert plain.decode(plain.encode(text)) == text

    library.normalizer = normalizers.NFC()
    normalised = opened(library)
    assert normalised.engine == "tokenizers"
    assert normalised.engine_reason == "it normalises text (NFC)"
    assert normalised.decode(normalised.encode("e\u0301")) == "é"


def test_sentencepiece_style() -> None:
    library = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])  # fmt: skip
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    library.train_from_iterator(
        ENGLISH[:20], trainers.BpeTrainer(vocab_size=900, special_tokens=names[:3], show_progress=False)
    )
    spec = json.loads(library.to_str())
    size = len(spec["model"]["vocab"])
    spec["model"]["vocab"] |= {name: size + i for i, name in enumerate(names[3:])}
    tokenizer = Tokenizer(json.dumps(spec))
    assert tokenizer.engine == "tokenizers"
    assert "byte_fallback" in tokenizer.engine_reason
    assert tokenizer.delimiter == tokenizer.special["</s>"]
    text = "The cat sat 中 on </s> it."
    ids = tokenizer.encode(text)
    assert tokenizer.special["</s>"] not in ids
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == " " + text
    assert [i.tolist() for i in tokenizer.encode_batch([text, "The"])] == [
        ids.tolist(),
        tokenizer.encode("The").tolist(),
    ]


def bert_style() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    library.train_from_iterator(ENGLISH[:5], trainer)
    return library


def spaced(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return library


def digits(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    library.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return library


def edited(**model: object) -> tokenizers.Tokenizer:
    spec = json.loads(build().to_str())
    spec["model"] |= model
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def shuffled() -> tokenizers.Tokenizer:
    """Merges whose order leaves some tokens unreachable: whole pieces would differ."""
    merges = json.loads(build().to_str())["model"]["merges"]
    return edited(merges=merges[::-1])


def added(*tokens: AddedToken) -> tokenizers.Tokenizer:
    library = build()
    library.add_tokens(list(tokens))
    return library


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (bert_style, "not BPE"),
        (lambda: spaced(build()), "a space before"),
        (lambda: digits(build()), "several steps"),
        (lambda: build(alphabet=False), "of the 256 bytes"),
        (lambda: edited(dropout=0.1), "dropout"),
        (shuffled, "its merges do not make the token"),
        (lambda: added(AddedToken("<t>", lstrip=True)), "takes the spaces"),
        (lambda: added(AddedToken("<t"), AddedToken("<tt")), "begins another"),
    ],
)
def test_what_tiktoken_cannot_do_is_left_to_the_library(
    make: Callable[[], tokenizers.Tokenizer], reason: str
) -> None:
    tokenizer = opened(make())
    assert tokenizer.engine == "tokenizers"
    assert reason in tokenizer.engine_reason
    assert len(tokenizer.encode("The cat, 12 cats.")) > 3


def test_ids_need_not_be_in_merge_order() -> None:
    spec = json.loads(build().to_str())
    size = len(spec["model"]["vocab"])
    spec["model"]["vocab"] = {token: size - 1 - number for token, number in spec["model"]["vocab"].items()}
    spec["added_tokens"][0]["id"] = size - 1
    tokenizer = Tokenizer(json.dumps(spec))
    assert tokenizer.engine == "tiktoken", tokenizer.engine_reason
    for text in HARD:
        assert tokenizer.encode(text).tolist() == reference_ids_of(tokenizer, text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_truncation_and_padding_of_the_file_are_ignored() -> None:
    library = build()
    library.enable_truncation(4)
    library.enable_padding(length=4)
    for tokenizer in (opened(library), opened(spaced(library))):
        assert len(tokenizer.encode(ENGLISH[0])) > 100
        assert len(tokenizer.encode("a")) == 1


def test_delimiter_unknown_is_said_with_the_special_tokens(tmp_path: Path) -> None:
    library = build(special=("<begin>", "<fin>"))
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"no known token ends a document.*<begin>, <fin>"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<fin>"}}')
    assert Tokenizer.load(tmp_path).delimiter == library.token_to_id("<fin>")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"model": 3}', b"\xff\xfe", b"not json"])
def test_what_is_no_tokenizer_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match="there is no such tokenizer"):
        Tokenizer.load(tmp_path / "elsewhere")


def test_the_pattern_cuts_text_as_published() -> None:
    """The published pattern of cl100k with its case-blind contractions, but for the long s."""
    published = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    ours, theirs = (pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (PATTERN, published))
    for text in [*HARD, *ENGLISH]:
        text = text.replace("ſ", "")
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_what_opens_and_ends_a_message_is_there_from_the_start_and_never_written() -> None:
    """Conversations come in a later stage; until then a model may not choose their tokens."""
    tokenizer = trained()
    chat = {tokenizer.special[name] for name in ("<|im_start|>", "<|im_end|>")}
    unwritten = tokenizer.unwritten(tokenizer.size + 2)
    assert chat < unwritten
    assert tokenizer.delimiter not in unwritten
    assert unwritten == {*range(len(RESERVED)), tokenizer.size, tokenizer.size + 1} - {tokenizer.delimiter}
    assert not unwritten & set(tokenizer.encode(" ".join(HARD)).tolist())
