import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cupola import objectives
from cupola.data.batch import IGNORED, Batch, Microbatch
from cupola.models import build
from cupola.recipe.model import Model
from cupola.recipe.schema import Stage


def stage(**settings) -> Stage:
    return Stage.model_validate({"data": "texts", "learning_rate": 1e-3, **settings})


def microbatch(seed: int = 0) -> Microbatch:
    rows = np.random.default_rng(seed).integers(0, 97, (3, 17))
    rows[:, [4, 9]] = 5
    return Microbatch.of_rows(rows, delimiter=5)


@pytest.fixture(scope="module")
def module():
    return build(Model(layers=2, width=16, heads=2), 97, seed=1)


def test_loss_is_the_plain_formula(module):
    objective, batch = objectives.build(stage()), microbatch()
    batch.targets[1, 3] = IGNORED
    parts = objective.loss(module, batch)
    logits = F.linear(module.hidden(batch.tokens, batch.documents), module.head_weight)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    torch.testing.assert_close(parts.sum, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts.loss, expected, rtol=1e-6, atol=0)
    assert parts.sum.requires_grad
    assert not parts.loss.requires_grad
    assert parts.metrics == {}


def test_z_loss_is_differentiated_but_not_reported_as_loss(module):
    plain = objectives.build(stage()).loss(module, microbatch())
    parts = objectives.build(stage(z_loss=0.5)).loss(module, microbatch())
    assert float(parts.loss) == float(plain.loss)
    assert float(parts.sum) == pytest.approx(float(plain.loss) + 0.5 * float(parts.metrics["z"]), rel=1e-6)
    assert float(parts.metrics["z"]) > 0


def test_document_mask(module):
    batch = microbatch()
    assert int(batch.documents.max()) > 0
    masked = objectives.build(stage()).loss(module, batch)
    unmasked = objectives.build(stage(document_mask=False)).loss(module, batch)
    assert float(masked.loss) != float(unmasked.loss)
    batch.documents.zero_()
    assert float(objectives.build(stage()).loss(module, batch).loss) == pytest.approx(float(unmasked.loss))


def test_normaliser_is_counted_over_the_whole_batch():
    objective = objectives.build(stage())
    assert objective.normaliser(Batch(0, 96, [microbatch()], {"texts": 96}, valid_tokens=96)) == 96
    assert objective.normaliser(Batch(0, 96, [], {}, valid_tokens=0)) == 1


def test_first_loss_of_a_fresh_model(module):
    objective = objectives.build(stage())
    parts = objective.loss(module, microbatch())
    assert float(parts.loss) / 48 == pytest.approx(objective.expected_first_loss(97), rel=0.03)
    assert objective.expected_first_loss(32768) == math.log(32768)
