"""Decoding: batches of prompts, sampling keyed by prompt and position, cached states."""

from cupola.generate.answering import Answer, answer
from cupola.generate.continuing import Continuation, continue_texts
from cupola.generate.decode import Completion, generate

__all__ = ["Answer", "Completion", "Continuation", "answer", "continue_texts", "generate"]
