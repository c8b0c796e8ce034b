"""A recipe that is right, for tests that spoil it."""

WHOLE = """\
name: whole
corpora:
  mine: {files: texts/*.md}
tokenizer:
  vocabulary: 512
model:
  layers: 2
  width: 64
  heads: 4
stages:
  pretrain:
    data: {mine: 1}
    tokens: 1M tokens
    sequence_length: 64
    batch_tokens: 512
    learning_rate:
      peak: 1e-3
"""
