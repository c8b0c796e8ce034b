"""Chat templates: how messages are written down as one text, and which of it an assistant says.

Guarantees: a template that Hugging Face's `apply_chat_template` takes gives the same text here, and where it
marks `{% generation %}...{% endgeneration %}` the same ranges of characters. A template is a program from
elsewhere: it runs in Jinja's sandbox and is given copies of JSON values, nothing else. No content of a
message can pass for the mark of a range.

The ranges are found by two characters that Unicode keeps free for a program's own use, written into the text
around each block and taken out again; so they survive macros, filters and assigned blocks. Hugging Face
counts the characters written so far, which is another number inside those.

Costs about 2 ms to compile, some 50 microseconds a conversation. A template that calls `strftime_now` gives
another text on another day; whoever stores tokens has stored the day with them.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cupola import storage
from cupola.chat.conversation import Message, Unusable
from cupola.errors import InputError

DEFAULT = """\
{%- if tools %}
    {{- '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""ChatML (OpenAI, 2023). What ends an answer is learnt, the newline after it is not."""

FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
NONCHARACTERS = [
    *range(0xFDD0, 0xFDF0),
    *(plane * 0x10000 + low for plane in range(17) for low in (0xFFFE, 0xFFFF)),
]
"""Code points that never are text (The Unicode Standard, 23.7): free for a program's own use."""
BEGIN, END = map(chr, NONCHARACTERS[:2])
_REPLACED = dict.fromkeys(NONCHARACTERS, "\ufffd")
_MARKS = re.compile(f"[{BEGIN}{END}]")


@dataclass(frozen=True)
class Rendered:
    """A conversation as one text.

    Attributes:
        spans: (start, end) of what the generation blocks wrote, in characters of `text`, in order.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A Jinja template in the dialect of Hugging Face's chat templates.

    Attributes:
        source: its text.
        origin: how errors name it.
        variables: what it may name besides the messages, such as `bos_token`.
        marks_answers: it has a generation block.
        reads_tools: it names `tools`.
        fingerprint: SHA-256 (hex) of source and variables.
    """

    def __init__(self, source: str, origin: str, variables: Mapping[str, str] | None = None) -> None:
        """Compile a template.

        Raises:
            InputError: it is no valid Jinja.
        """
        self.source, self.origin, self.variables = source, origin, dict(variables or {})
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"{origin}: line {error.lineno}: is no chat template ({error.message})"
            ) from None
        self.marks_answers = any(data.data == BEGIN for data in tree.find_all(jinja2.nodes.TemplateData))
        self.reads_tools = "tools" in jinja2.meta.find_undeclared_variables(tree)

    @cached_property
    def fingerprint(self) -> str:
        return storage.digest({"source": self.source, "variables": self.variables})

    def require_marks(self) -> None:
        """Raises InputError where nothing says which of the text an assistant's answers are."""
        if not self.marks_answers:
            raise InputError(
                f"{self.origin}: no generation block says which words to learn; write {{% generation %}}"
                " before an assistant's content and {% endgeneration %} after the token that ends it"
            )

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, **variables: Any
    ) -> Rendered:
        """Write messages down.

        Args:
            add_generation_prompt: end with what opens an answer.
            variables: more names for the template (`tools`, `bos_token`, a date), of JSON values; they stand
                before its own.

        Raises:
            Unusable: the template refuses the conversation (`raise_exception`).
            InputError: the template fails.
        """
        plain = [without_marks({"role": message.role, "content": message.content}) for message in messages]
        return cut_marks(self.marked(plain, add_generation_prompt, without_marks(variables)), self.origin)

    def marked(
        self, messages: list[dict[str, str]], add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> str:
        """`render` before its marks `BEGIN` and `END` are cut out; they may not be in what is passed.

        Raises:
            Unusable, InputError: as `render`.
        """
        given = {"tools": None, "documents": None, **self.variables, **variables}
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **given
            )
        except _Refused as error:
            raise Unusable("refused by the chat template", str(error)) from None
        except Exception as error:  # whatever an expression of the template can raise
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.origin}: the chat template fails on a conversation ({what})") from None


def load_template(path: str | Path | None) -> ChatTemplate:
    """A template from its file, or from a folder in Hugging Face's format; the default one for None.

    The special tokens that `tokenizer_config.json` in the folder names (`bos_token`, ...) are its variables.

    Raises:
        InputError: there is none, it can't be read, or it is no valid Jinja.
    """
    if path is None:
        return ChatTemplate(DEFAULT, "the default chat template")
    path = Path(path).expanduser()
    folder, file = (path, path / FILE) if path.is_dir() else (path.parent, path)
    try:
        config = json.loads(_text_of(folder / CONFIG)) if (folder / CONFIG).is_file() else {}
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: is no JSON ({error})") from None
    if path.is_dir() and not file.is_file():
        source = _configured(config.get("chat_template"))
        if source is None:
            raise InputError(f"{path}: holds no chat template, neither {FILE} nor one in {CONFIG}")
        file = folder / CONFIG
    else:
        source = _text_of(file)
    tokens = {key: value for key, value in config.items() if key.endswith("_token")}
    names = {key: value.get("content") if isinstance(value, dict) else value for key, value in tokens.items()}
    return ChatTemplate(
        source, str(file), {key: name for key, name in names.items() if isinstance(name, str)}
    )


def save_template(template: ChatTemplate, folder: Path) -> None:
    """Write a template beside a tokenizer in Hugging Face's format, and the special tokens that it names into
    the tokenizer's configuration, whose own `eos_token` stays."""
    storage.write_text(folder / FILE, template.source)
    config = json.loads(_text_of(folder / CONFIG))
    storage.write_json(folder / CONFIG, {**template.variables, **config})


def without_marks(value: Any) -> Any:
    """A JSON value whose texts have U+FFFD for each noncharacter, so that none can be taken for a mark."""
    return in_texts(value, lambda text: text if text.isascii() else text.translate(_REPLACED))


def in_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON value with every text in it changed, keys as well."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {in_texts(key, change): in_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [in_texts(item, change) for item in value]
    return value


def cut_marks(text: str, origin: str) -> Rendered:
    """Take the marks out of a text and say what stood between them.

    Raises:
        InputError: they don't come in pairs.
    """
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length = position = 0
    begun: int | None = None
    for mark in _MARKS.finditer(text):
        pieces.append(text[position : mark.start()])
        length += mark.start() - position
        position = mark.end()
        if (begun is None) != (mark[0] == BEGIN):
            raise InputError(f"{origin}: a generation block lies in another, or is cut by an expression")
        if begun is not None:
            spans.append((begun, length))
        begun = length if begun is None else None
    if begun is not None:
        raise InputError(f"{origin}: a generation block is cut by an expression")
    return Rendered("".join([*pieces, text[position:]]), tuple(spans))


class _Refused(jinja2.TemplateError):
    """A template calls `raise_exception`."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: its body in a scope of its own, between the two marks."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (jinja2.nodes.Output([jinja2.nodes.TemplateData(mark)]) for mark in (BEGIN, END))
        return [node.set_lineno(line) for node in (begin, jinja2.nodes.Scope(body), end)]


def _raise(message: str) -> None:
    raise _Refused(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Iterable[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter writes it for HTML."""
    pair = None if separators is None else tuple(separators)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)  # type: ignore[arg-type]


def _configured(value: Any) -> str | None:
    """The template of a `tokenizer_config.json`: a text, or the one called default of several."""
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{file}: there is no such chat template") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
