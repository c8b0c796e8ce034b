"""How many questions a model answers rightly, where a program can tell (`generators.marks_of`).

Answers are written as in `cupola chat`: the run's own chat template, until the model ends its answer. Each
question is answered once greedily, and by as many samples at temperature 1 as are asked for. Right is an
answer with the full mark, 1; the mean mark of greedy answers stands beside. A figure is a mean over
questions; the attempts at one question depend on each other, so its standard error is that of the means of
the questions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cupola.chat.conversation import Message
from cupola.chat.template import ChatTemplate
from cupola.corpus.generators import Marks
from cupola.corpus.generators.items import number_below
from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display, Task
from cupola.evaluate.shares import Share, pass_at
from cupola.generate import answer
from cupola.models.stack import LanguageModel
from cupola.parallel.device import Precision

ANSWERS_TOGETHER = 64
SPARE_TOKENS = 8
"""An answer may have so many tokens more than the longest right one, and is wrong if it is longer."""


@dataclass(frozen=True)
class Question:
    """What is asked, an answer that is right, and the id of the document that asks it."""

    text: str
    answer: str
    document: str = ""


@dataclass(frozen=True)
class TaskScore:
    """What a task's questions came to.

    Attributes:
        greedy: the likeliest token each time.
        score: the mean mark of the greedy answers; of programs that give none between 0 and 1 it is `greedy`.
        sampled: temperature 1; None where no sample was asked for.
        attempts: samples of each question.
        pass_at: k -> the chance that one of k samples is right.
    """

    greedy: Share
    score: Share
    sampled: Share | None
    attempts: int
    pass_at: dict[int, Share]

    def facts(self) -> dict[str, Any]:
        """As `--json` shows it: the greedy figures, and `score`, `sampled` and `pass_at` beside them."""
        sampled = {"attempts": self.attempts, **asdict(self.sampled)} if self.sampled else None
        passed = {str(k): asdict(share) for k, share in self.pass_at.items()}
        return {**asdict(self.greedy), "score": self.score.accuracy, "sampled": sampled, "pass_at": passed}


def score_task(
    module: LanguageModel,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    questions: Sequence[Question],
    marks: Marks,
    *,
    attempts: int = 1,
    ks: Sequence[int] = (),
    seed: int = 0,
    precision: Precision = "fp32",
    display: Display | None = None,
    title: str = "answers",
) -> TaskScore:
    """Let a model answer, and judge its answers.

    Args:
        questions: at least one.
        marks: how an answer is judged.
        attempts: samples of each question, 0 for greedy answers alone.
        ks: the k of pass@k, none above `attempts`.
        seed: of the samples.

    Raises:
        InputError: as `cupola.generate.answer`.
    """
    longest = max(len(tokenizer.encode(question.answer)) for question in questions) + SPARE_TOKENS

    def judged(asked: Sequence[Question], task: Task, **sampling: Any) -> list[float]:
        found: list[float] = []
        for first in range(0, len(asked), ANSWERS_TOGETHER):
            batch = asked[first : first + ANSWERS_TOGETHER]
            talks = [[Message("user", question.text)] for question in batch]
            # Randomness is keyed by a prompt's number in its batch, so each batch has a seed of its own.
            own = number_below(2**62, seed, "answers", first)
            said = answer(module, tokenizer, template, talks, longest, precision, seed=own, **sampling)
            found += [marks(q.text, done.text, q.document) for q, done in zip(batch, said, strict=True)]
            task.advance(len(batch))
        return found

    with (display or Display()).task(title, len(questions) * (1 + attempts), "answers") as task:
        greedy = judged(questions, task, temperature=0)
        sampled = judged([q for q in questions for _ in range(attempts)], task, temperature=1)
    rights = [sum(map(_is_right, sampled[i * attempts : (i + 1) * attempts])) for i in range(len(questions))]
    return TaskScore(
        Share.of([float(_is_right(mark)) for mark in greedy]),
        Share.of(greedy),
        Share.of([right / attempts for right in rights]) if attempts else None,
        attempts,
        {k: Share.of([pass_at(attempts, right, k) for right in rights]) for k in ks},
    )


def _is_right(mark: float) -> bool:
    return mark >= 1
