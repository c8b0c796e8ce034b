"""What is cheapest with its use counted, beside trying sizes one by one."""

import pytest

from cupola.plan.advice import advise
from cupola.plan.scaling import CORRECTED


@pytest.mark.parametrize("used", [1e12, 50e12])
def test_training_and_use_together(used):
    own = 8e9, 2e12
    found = advise(*own, None, used)
    loss = CORRECTED.loss(*own)

    def life(parameters, tokens):
        return 6 * parameters * tokens + 2 * parameters * used

    tried = {n * 1e8: CORRECTED.tokens_to(loss, n * 1e8) for n in range(10, 2000)}
    best = min(tried, key=lambda n: life(n, tried[n]))
    assert found.cheapest is not None
    assert found.cheapest.parameters == pytest.approx(best, abs=1e8)
    assert CORRECTED.loss(found.cheapest.parameters, found.cheapest.tokens) == pytest.approx(loss)
    assert found.saved == pytest.approx(1 - life(best, tried[best]) / life(*own), abs=1e-4)


def test_the_more_it_is_used_the_smaller_it_should_be():
    sizes = [advise(8e9, 2e12, None, used).cheapest.parameters for used in (0.0, 1e12, 1e13, 1e14)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(CORRECTED.cheapest(CORRECTED.loss(8e9, 2e12)).parameters)


def test_nobody_says_how_much_it_is_used():
    found = advise(8e9, 2e12, 1e12)
    assert (found.cheapest, found.saved) == (None, None)
    assert found.passes == 2
