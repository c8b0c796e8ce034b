import copy

import pytest
import pytorch_optimizer
import torch

from cupola.optim.soap import Soap

RATE, DECAY = 0.01, 0.1
SHAPES = [(8, 8), (8, 8), (12, 6), (6, 30)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrices(shapes=SHAPES) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]


def give_gradients(parameters, step: int) -> None:
    """Of a spread spectrum, as real ones are: a basis matters."""
    for i, parameter in enumerate(parameters):
        spread = torch.logspace(0, -1.5, parameter.shape[-1])
        parameter.grad = 0.1 * random(*parameter.shape, seed=1000 * (step + 1) + i) * spread


def soap(parameters, **settings) -> Soap:
    group = {"params": parameters, "role": "matrix", "weight_decay": DECAY}
    return Soap([group], **{"lr": RATE, "betas": (0.9, 0.95), **settings})


def run(parameters, optimizer, steps) -> None:
    for step in steps:
        give_gradients(parameters, step)
        optimizer.step()


class Plain:
    """The paper's algorithm for one matrix, in fp64: the first moment is outside the basis."""

    def __init__(self, value, sides, every, beta=0.9, beta_square=0.95, beta_covariance=0.95):
        self.value, self.sides, self.every = value.double(), sides, every
        self.beta, self.beta_square, self.beta_covariance = beta, beta_square, beta_covariance
        self.moment, self.squares = torch.zeros_like(self.value), torch.zeros_like(self.value)
        self.covariances = [torch.zeros(n, n, dtype=torch.float64) for n in value.shape]
        self.bases = [torch.eye(n, dtype=torch.float64) for n in value.shape]
        self.count = -1

    def step(self, gradient):
        gradient = gradient.double()
        self.count += 1
        left, right = self.bases
        if self.count:
            self.moment = self.beta * self.moment + (1 - self.beta) * gradient
            rotated = left.T @ gradient @ right
            self.squares = self.beta_square * self.squares + (1 - self.beta_square) * rotated**2
            mean = left.T @ self.moment @ right / (1 - self.beta**self.count)
            root = (self.squares / (1 - self.beta_square**self.count)).sqrt()
            # The authors' code adds epsilon before it corrects the second moment.
            direction = mean / (root + 1e-8 / (1 - self.beta_square**self.count) ** 0.5)
            self.value = (self.value - RATE * left @ direction @ right.T) * (1 - RATE * DECAY)
        for axis, square in enumerate((gradient @ gradient.T, gradient.T @ gradient)):
            old = self.covariances[axis]
            self.covariances[axis] = self.beta_covariance * old + (1 - self.beta_covariance) * square
        for axis in (0, 1):
            if self.sides[axis] and (self.count == 0 or self.count % self.every == 0):
                self.renew(axis)

    def renew(self, axis):
        covariance, basis = self.covariances[axis], self.bases[axis]
        if self.count == 0:
            self.bases[axis] = torch.linalg.eigh(covariance).eigenvectors.flip(1)
            return
        order = torch.argsort(torch.diag(basis.T @ covariance @ basis), descending=True)
        self.squares = self.squares.index_select(axis, order)
        self.bases[axis] = torch.linalg.qr(covariance @ basis[:, order]).Q


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("shape", "sides"), [((8, 8), (True, True)), ((6, 30), (True, False)), ((30, 6), (False, True))]
)
def test_is_the_papers_algorithm(shape, sides, every):
    [parameter] = matrices([shape])
    optimizer = soap([parameter], precondition_every=every)
    plain = Plain(parameter.detach(), sides, every)
    for step in range(8):
        give_gradients([parameter], step)
        plain.step(parameter.grad)
        optimizer.step()
        torch.testing.assert_close(parameter.detach().double(), plain.value, rtol=1e-4, atol=2e-5)


def test_covariances_may_have_a_decay_of_their_own():
    [parameter] = matrices([(8, 8)])
    optimizer = soap([parameter], precondition_every=2, covariance_decay=0.8)
    plain = Plain(parameter.detach(), (True, True), 2, beta_covariance=0.8)
    for step in range(6):
        give_gradients([parameter], step)
        plain.step(parameter.grad)
        optimizer.step()
    torch.testing.assert_close(parameter.detach().double(), plain.value, rtol=1e-4, atol=2e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (12, 6), (6, 12)])
def test_is_pytorch_optimizers(shape, every):
    """Step by step. Where a first covariance is singular any basis of its null space will do: they take
    ours, which the test checks to be one."""
    [ours] = matrices([shape])
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizer = soap([ours], precondition_every=every)
    reference = pytorch_optimizer.SOAP(
        [theirs], lr=RATE, betas=(0.9, 0.95), weight_decay=DECAY, precondition_frequency=every
    )
    for step in range(10):
        give_gradients([ours], step)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
        state = optimizer.state[ours]
        if step == 0:
            for covariance, name in zip(reference.state[theirs]["GG"], ("left", "right"), strict=True):
                torch.testing.assert_close(state[name], covariance)
                basis = state[f"{name}_basis"]
                turned = basis.T @ covariance @ basis
                torch.testing.assert_close(turned, turned.diag().diag(), atol=1e-7, rtol=0)
            reference.state[theirs]["Q"] = [state["left_basis"].clone(), state["right_basis"].clone()]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            state["exp_avg_sq"], reference.state[theirs]["exp_avg_sq"], rtol=1e-3, atol=1e-6
        )


def test_a_first_gradient_moves_nothing():
    parameters = matrices()
    before = [p.detach().clone() for p in parameters]
    optimizer = soap(parameters)
    run(parameters, optimizer, [0])
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))
    run(parameters, optimizer, [1])
    assert not any(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))


def test_the_state_is_what_parts_says():
    parameters = [*matrices(), *matrices([(2, 8, 6)])]
    optimizer = soap(parameters)
    run(parameters, optimizer, [0, 1])
    for parameter in parameters:
        found = {name: tuple(value.shape) for name, value in optimizer.state[parameter].items()}
        assert found == optimizer.parts("matrix", tuple(parameter.shape))
    assert optimizer.parts("matrix", (6, 30)).keys() == {
        "step", "exp_avg", "exp_avg_sq", "left", "left_basis"
    }  # fmt: skip
    assert optimizer.parts("vector", (6,)).keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_renewals_take_turns():
    """Every matrix once in an interval, and never many of one shape at the same step."""
    parameters = matrices([(8, 8)] * 10 + [(12, 8)] * 5)
    optimizer = soap(parameters, precondition_every=5)
    run(parameters, optimizer, range(2))
    renewed = {}
    for step in range(2, 12):
        before = [optimizer.state[p]["left_basis"].clone() for p in parameters]
        run(parameters, optimizer, [step])
        renewed[step] = [
            i
            for i, (p, old) in enumerate(zip(parameters, before, strict=True))
            if not torch.equal(optimizer.state[p]["left_basis"], old)
        ]
    for step in range(2, 7):
        assert sum(i < 10 for i in renewed[step]) == 2
        assert sum(i >= 10 for i in renewed[step]) == 1
        assert renewed[step] == renewed[step + 5]
    assert sorted(i for step in range(2, 7) for i in renewed[step]) == list(range(15))


@pytest.mark.parametrize("every", [1, 4])
def test_resumes_bit_for_bit_within_an_interval(every):
    parameters = matrices()
    optimizer = soap(parameters, precondition_every=every)
    run(parameters, optimizer, range(6))
    twins = copy.deepcopy(parameters)
    resumed = soap(twins, precondition_every=every)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(parameters, optimizer, range(6, 13))
    run(twins, resumed, range(6, 13))
    for ours, theirs in zip(parameters, twins, strict=True):
        assert torch.equal(ours, theirs)
        for name, value in optimizer.state[ours].items():
            assert torch.equal(value, resumed.state[theirs][name]), name


def test_other_state_may_be_put_in_its_place_at_any_time():
    """The stacks follow the state, not the other way round."""
    parameters = matrices()
    optimizer = soap(parameters, precondition_every=3)
    run(parameters, optimizer, range(4))
    begun, state = [p.detach().clone() for p in parameters], copy.deepcopy(optimizer.state_dict())
    run(parameters, optimizer, range(4, 7))
    ended = [p.detach().clone() for p in parameters]
    optimizer.load_state_dict(state)
    for parameter, value in zip(parameters, begun, strict=True):
        parameter.data.copy_(value)
    run(parameters, optimizer, range(4, 7))
    assert all(torch.equal(p, q) for p, q in zip(parameters, ended, strict=True))


@pytest.mark.parametrize("shape", [(3, 8, 6), (5, 6, 30)])
def test_a_batch_of_matrices_is_its_matrices_one_by_one(shape):
    """A mixture's experts, with another mixture of the same shape beside them."""
    batches = matrices([shape, shape])
    slices = [torch.nn.Parameter(m.detach().clone()) for batch in batches for m in batch]
    together = soap(batches, precondition_every=3)
    alone = soap(slices, precondition_every=3)
    for step in range(6):
        give_gradients(batches, step)
        for matrix, gradient in zip(slices, [g for b in batches for g in b.grad], strict=True):
            matrix.grad = gradient.clone()
        together.step()
        alone.step()
    found = torch.cat([b.detach() for b in batches])
    torch.testing.assert_close(found, torch.stack([m.detach() for m in slices]), rtol=1e-4, atol=1e-5)


def test_chunks_change_nothing(monkeypatch):
    """Five matrices in three pieces; the renewals' turns as before."""
    whole, pieces = matrices([(8, 8)] * 5), matrices([(8, 8)] * 5)
    run(whole, soap(whole, precondition_every=2), range(6))
    monkeypatch.setattr("cupola.optim.soap.CHUNK", 2 * 64)
    run(pieces, soap(pieces, precondition_every=2), range(6))
    for ours, theirs in zip(whole, pieces, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_parameters_without_a_gradient_are_left_alone():
    """At first, and later: each goes by its own count of steps, as if it were the only one."""
    parameters = matrices([(8, 8)] * 3)
    alone = copy.deepcopy(parameters[1])
    optimizer = soap(parameters, precondition_every=1)
    single = soap([alone], precondition_every=1)
    for step in range(9):
        give_gradients(parameters, step)
        if step % 3 == 0:
            parameters[1].grad = None
            before = parameters[1].detach().clone()
        else:
            alone.grad = parameters[1].grad.clone()
            single.step()
        optimizer.step()
        if step % 3 == 0:
            assert torch.equal(parameters[1], before)
            assert (parameters[1] in optimizer.state) == (step > 0)
    assert [int(optimizer.state[p]["step"]) for p in parameters] == [8, 5, 8]
    torch.testing.assert_close(parameters[1], alone, rtol=1e-4, atol=1e-5)


def test_a_matrix_that_gets_no_signal_stays_finite():
    """An expert to which no token went: covariances of zeros."""
    [parameter] = matrices([(2, 6, 6)])
    before = parameter.detach().clone()
    optimizer = soap([parameter], precondition_every=1)
    for step in range(4):
        give_gradients([parameter], step)
        parameter.grad[1] = 0.0
        optimizer.step()
    assert parameter.isfinite().all()
    torch.testing.assert_close(parameter[1].detach(), before[1] * (1 - RATE * DECAY) ** 3)


def test_state_in_bf16_is_near_that_in_fp32():
    """Much nearer than Adam without a basis is."""
    moved = []
    for settings in ({}, {"dtype": torch.bfloat16}, {"one_sided_above": 0.0}):
        parameters = matrices([(8, 8)] * 4)
        optimizer = soap(parameters, precondition_every=3, **settings)
        run(parameters, optimizer, range(10))
        assert all(p.dtype == torch.float32 for p in parameters)
        kept = {v.dtype for p in parameters for name, v in optimizer.state[p].items() if name != "step"}
        assert kept == {settings.get("dtype", torch.float32)}
        moved.append(torch.stack([p.detach() for p in parameters]))
    exact, rough, adam = moved
    assert float((rough - exact).norm()) < 0.5 * float((adam - exact).norm())


def test_bf16_refuses_averages_that_would_stand_still():
    with pytest.raises(ValueError, match=r"decay rate of 0\.999"):
        soap(matrices(), betas=(0.9, 0.999), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"decay rate of 0\.995"):
        soap(matrices(), covariance_decay=0.995, dtype=torch.bfloat16)
    soap(matrices(), betas=(0.9, 0.999))


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match="2-D"):
        soap([torch.nn.Parameter(torch.zeros(3))])


class Turns:
    """Two processes of which this is one, which works on every other matrix."""

    def __init__(self, rank):
        self.rank = rank

    def local(self, tensors):
        return tensors

    def mine(self, count):
        return list(range(count))[self.rank :: 2]

    def gather(self, tensors, parameters):
        return tensors[self.rank :: 2]

    def cut(self, updates, parameters):
        zeros = [torch.zeros_like(p) for p in parameters]
        zeros[self.rank :: 2] = updates
        return zeros


def test_owners_in_turn_do_the_same_as_one_process():
    """Each process's own matrices move as on one process; it keeps no state of the others'."""
    shapes = [(8, 8)] * 3 + [(12, 6)]
    whole = matrices(shapes)
    run(whole, soap(whole, precondition_every=1), range(5))
    for rank in (0, 1):
        parameters = matrices(shapes)
        optimizer = soap(parameters, precondition_every=1, layout=Turns(rank))
        run(parameters, optimizer, range(5))
        for i, (ours, theirs) in enumerate(zip(parameters[:3], whole[:3], strict=True)):
            if i % 2 == rank:
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
                assert "left" in optimizer.state[ours]
            else:
                assert optimizer.state[ours].keys() == {"step"}
