import torch

from cupola.optim import threads


def test_each_worker_has_one_thread_and_the_caller_keeps_its_own():
    """Also for what it calls: a worker that asked for workers would wait for itself."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert threads.each(lambda _: torch.get_num_threads(), range(6)) == [1] * 6
        assert torch.get_num_threads() == 3
        nested = threads.each(lambda item: threads.each(lambda inner: inner + item, [1, 2]), [10, 20, 30])
        assert nested == [[11, 12], [21, 22], [31, 32]]
    finally:
        torch.set_num_threads(before)
