"""Choosing a token: what is banned is never chosen, and does not change what the model thinks."""

import pytest
import torch

from cupola.generate.sampling import Sampling, choose


def test_banned_tokens_are_never_chosen():
    logits = torch.zeros(1, 6)
    logits[0, 2] = 9.0
    for temperature in (0.0, 1.0):
        seen = set()
        for place in range(60):
            sampling = Sampling(temperature=temperature, seed=1, banned=frozenset({2, 5}))
            token, log_probability = choose(logits, sampling, [(0, place)])
            seen.add(int(token))
            assert log_probability.item() == pytest.approx(
                logits.log_softmax(-1)[0, int(token)].item()
            )  # under the model, before anything is banned
        assert not seen & {2, 5}
    assert seen == {0, 1, 3, 4}
