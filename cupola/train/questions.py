"""The questions that a policy answers: an index for `data.order`, one entry a question.

A stage that learns from rewards has the same data order as any other, with a question in the place of a
token: a position is the number of questions asked so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cupola.chat.conversation import Message
from cupola.corpus.generators import Marks
from cupola.storage import digest


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        messages: what was said before the answer.
        answer: the corpus's own.
        ids: (tokens,) int64, the messages and what opens an answer, after a delimiter.
        document: the id of the document that asks it.
    """

    messages: tuple[Message, ...]
    answer: str
    ids: np.ndarray
    document: str = ""


class Questions:
    """The questions of one source, as `data.order.Store` without tokens of its own.

    Args:
        marks: how answers are judged, where a program made the questions that can tell.
    """

    row_length = None
    learnt = None
    delimiter = -1

    def __init__(self, source: str, questions: Sequence[Question], marks: Marks | None) -> None:
        self.source, self.questions, self.marks = source, questions, marks
        self.tokens = np.arange(len(questions))
        self.length = len(questions)
        self.fingerprint = digest(
            [[[m.role, m.content] for m in q.messages] + [q.answer] + [q.ids.tolist()] for q in questions]
        )

    def score(self, question: Question, answer: str) -> float:
        """0 to 1, by the program that made the question; else 1 if it is the corpus's answer, blanks at the
        ends aside."""
        if self.marks is not None:
            return self.marks(question.messages[-1].content, answer, question.document)
        return float(answer.strip() == question.answer.strip())
