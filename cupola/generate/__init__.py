"""Decoding: batches of prompts, sampling keyed by prompt and position, cached states."""

from cupola.generate.decode import Completion, generate

__all__ = ["Completion", "generate"]
