"""The questions that a policy answers: an index for `data.order`, one entry a question.

A stage that learns from rewards has the same data order as any other, with a question in the place of a
token: a position is the number of questions asked so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cupola.chat.conversation import Message
from cupola.corpus.generators import PROGRAMS
from cupola.storage import digest


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        messages: what was said before the answer.
        answer: the corpus's own.
        ids: (tokens,) int64, the messages and what opens an answer, after a delimiter.
    """

    messages: tuple[Message, ...]
    answer: str
    ids: np.ndarray


class Questions:
    """The questions of one source, as `data.order.Store` without tokens of its own.

    Args:
        generator: the program that made them, if one did.
    """

    row_length = None
    learnt = None
    delimiter = -1

    def __init__(self, source: str, questions: Sequence[Question], generator: str | None) -> None:
        self.source, self.questions = source, questions
        self.check: Callable[[str, str], bool] | None = PROGRAMS[generator].check if generator else None
        self.tokens = np.arange(len(questions))
        self.length = len(questions)
        self.fingerprint = digest(
            [[[m.role, m.content] for m in q.messages] + [q.answer] + [q.ids.tolist()] for q in questions]
        )

    def is_right(self, question: Question, answer: str) -> bool:
        """By the generator's own check; else, is it the corpus's answer, blanks at the ends aside?"""
        if self.check is not None:
            return self.check(question.messages[-1].content, answer)
        return answer.strip() == question.answer.strip()
