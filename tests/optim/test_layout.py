import torch

from cupola.optim.layout import WHOLE


def test_one_process_copies_nothing():
    parameters = [torch.zeros(3, 2), torch.zeros(3, 2)]
    tensors = [torch.ones(3, 2), torch.ones(3, 2)]
    for found in (
        WHOLE.local(tensors),
        WHOLE.gather(tensors, parameters),
        WHOLE.cut(tensors, parameters),
    ):
        assert [t.data_ptr() for t in found] == [t.data_ptr() for t in tensors]
    assert WHOLE.mine(3) == [0, 1, 2]
