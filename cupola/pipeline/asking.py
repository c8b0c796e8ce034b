"""The questions of a stage that answers them itself: from gathered conversations, what stands before the last
answer."""

from collections import Counter
from pathlib import Path

import numpy as np

from cupola.chat.conversation import Unusable, from_json
from cupola.chat.encoding import prompt
from cupola.chat.template import ChatTemplate
from cupola.corpus.documents import Split, documents
from cupola.corpus.generators import Marks
from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display
from cupola.errors import InputError
from cupola.train.questions import Question, Questions


def read_questions(
    source: str,
    gathered: Path,
    split: Split,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    longest: int,
    marks: Marks | None,
    display: Display | None = None,
) -> Questions:
    """The questions of a split.

    Args:
        longest: tokens of a question, with the delimiter before it; longer ones are left out, and counted.
        marks: how answers are judged, where a program can tell.
        display: told what is left out.

    Raises:
        InputError: no question of the training split is left.
    """
    found: list[Question] = []
    left_out: Counter[str] = Counter()
    for document in documents(gathered, split):
        try:
            whole = from_json(document.text)
            last = max(n for n, message in enumerate(whole.messages) if message.role == "assistant")
            messages = whole.messages[:last]
            asked = prompt(template, tokenizer, messages, whole.tools)
        except Unusable as error:
            left_out[f"are left out: {error.reason}"] += 1
            continue
        ids = np.concatenate([[tokenizer.delimiter], asked])
        if len(ids) > longest:
            left_out[f"have over {longest} tokens and are left out"] += 1
            continue
        found.append(Question(messages, whole.messages[last].content, ids, document.id))
    for reason, number in left_out.items():
        (display or Display()).warn(f"{source}: {number:,} questions {reason}")
    if split == "train" and not found:
        raise InputError(f"corpora.{source}: no question is left to answer; raise sequence_length")
    return Questions(source, found, marks)
