"""Choosing a token: what is banned is never chosen, and does not change what the model thinks."""

import pytest
import torch

from cupola.errors import CupolaError
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


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-39, 1e-300, 5e-324])
@pytest.mark.parametrize("more", [{}, {"top_k": 2}, {"top_p": 0.9}])
def test_a_temperature_near_0_takes_the_likeliest(temperature, more):
    logits = torch.tensor([[0.0, 10.0, 20.0], [3e4, -3e4, 0.0]])
    sampling = Sampling(temperature=temperature, **more)
    assert choose(logits, sampling, [(0, 0), (1, 0)])[0].tolist() == [2, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_end_it(temperature, bad):
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    with pytest.raises(CupolaError, match="logits are not finite"):
        choose(logits, Sampling(temperature=temperature), [(0, 0), (1, 0)])
