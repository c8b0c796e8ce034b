"""Weights in the form in which each family is published, both ways: Hugging Face folders and RWKV's `.pth`.

One file for each home format: `llama` (with its relatives and their mixtures), `gpt2`, `mamba`, `mamba2`,
`granite` (a hybrid), `rwkv7`. `formats` finds the one that a model or a file has; `pairs` holds the words in
which they say how tensors correspond, `config` those for settings; `tensors` and `folder` read and write.
"""
