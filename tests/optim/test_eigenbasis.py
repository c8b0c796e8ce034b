import pytest
import torch

from cupola.models.table.states import rotated_sides
from cupola.optim import eigenbasis


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def covariances(count: int, side: int, rank: int, decades: float) -> torch.Tensor:
    """Of a spectrum that falls by so many powers of ten, in a random basis."""
    basis = torch.linalg.qr(random(count, side, side).double()).Q
    values = torch.zeros(side, dtype=torch.float64)
    values[:rank] = torch.logspace(0, -decades, rank, dtype=torch.float64)
    return ((basis * values) @ basis.mT).float()


def unorthogonality(basis: torch.Tensor) -> float:
    return float((basis.double().mT @ basis.double() - torch.eye(basis.shape[-1])).abs().max())


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((8, 8), (True, True)),
        ((32, 8), (True, True)),
        ((33, 8), (False, True)),
        ((8, 33), (True, False)),
        ((101, 90), (False, True)),
        ((101, 101), (False, False)),
        ((1, 3), (False, True)),
        ((1, 5), (False, False)),
        ((7, 33, 8), (False, True)),
    ],
)
def test_which_sides_are_rotated(shape, sides):
    assert rotated_sides(shape, largest=100, ratio=4.0) == sides


def test_a_ratio_of_1_is_the_one_sided_variant():
    assert rotated_sides((8, 9), largest=100, ratio=1.0) == (True, False)
    assert rotated_sides((9, 8), largest=100, ratio=1.0) == (False, True)


def test_rotation_and_back():
    matrices = random(3, 5, 7)
    left, right = (torch.linalg.qr(random(3, side, side)).Q for side in (5, 7))
    for bases in ((left, right), (left, None), (None, right), (None, None)):
        rotated = eigenbasis.rotate(matrices, *bases)
        torch.testing.assert_close(eigenbasis.rotate_back(rotated, *bases), matrices, atol=1e-5, rtol=1e-5)
    one = left[1].T @ matrices[1] @ right[1]
    torch.testing.assert_close(eigenbasis.rotate(matrices, left, right)[1], one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [6, 96])
@pytest.mark.parametrize(("rank", "decades"), [(1.0, 0.1), (1.0, 12.0), (0.5, 3.0), (0.0, 0.0)])
def test_bases_are_orthogonal_whatever_the_covariance(side, rank, decades):
    """Singular, of a spectrum beyond fp32's digits, or zero, and after many renewals."""
    matrices = covariances(2, side, int(rank * side), decades)
    basis, _ = eigenbasis.first_bases(matrices, (True, False))
    assert unorthogonality(basis) < 1e-5
    for seed in range(20):
        gradient = random(2, side, side, seed=seed)
        eigenbasis.accumulate(matrices, gradient * 1e-6, 0.9)
        basis, _ = eigenbasis.next_basis(matrices, basis)
        assert unorthogonality(basis) < 1e-5


@pytest.mark.parametrize("spread", [0.5, 6.0])
@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", [(6, 6), (17, 6), (6, 17), (4, 1)])
def test_first_bases_have_the_eigenvectors_by_falling_eigenvalue(shape, sides, spread):
    """Of gradients with a flat spectrum and with one beyond fp32's digits; a longer side's is singular."""
    matrices = random(2, *shape) * torch.logspace(0, -spread, shape[-1])
    for basis, side, wanted in zip(
        eigenbasis.first_bases(matrices, sides), (matrices, matrices.mT), sides, strict=True
    ):
        if not wanted:
            assert basis is None
            continue
        covariance = side.double() @ side.double().mT
        values = torch.linalg.eigvalsh(covariance).flip(-1)
        turned = basis.double().mT @ covariance @ basis.double()
        assert unorthogonality(basis) < 1e-5
        assert float((turned - torch.diag_embed(values)).abs().max() / values.max()) < 1e-5


def test_first_bases_of_nothing():
    left, right = eigenbasis.first_bases(torch.zeros(1, 5, 3), (True, True))
    assert unorthogonality(left) == unorthogonality(right) == 0.0


def test_decompositions_fall_back_to_fp64(monkeypatch):
    decompose = torch.linalg.eigh

    def fail(matrix):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return decompose(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    for basis in eigenbasis.first_bases(random(1, 9, 6), (True, True)):
        assert basis.dtype == torch.float32
        assert unorthogonality(basis) < 1e-6


def test_renewals_converge_to_the_eigenvectors():
    matrices = covariances(2, 6, 6, 3.0)
    basis = torch.linalg.qr(random(2, 6, 6, seed=5)).Q
    for _ in range(30):
        basis, order = eigenbasis.next_basis(matrices, basis)
    assert order.tolist() == [list(range(6))] * 2
    turned = basis.mT @ matrices @ basis
    expected = torch.diag_embed(torch.logspace(0, -3, 6)).expand(2, 6, 6)
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=1e-3)


def test_order_says_where_a_column_came_from():
    """A basis of eigenvectors out of order: the next one is the same, in order, but for signs."""
    matrices = torch.diag_embed(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    shuffled = [2, 0, 3, 1]
    basis = torch.eye(4)[:, shuffled][None]
    renewed, order = eigenbasis.next_basis(matrices, basis)
    assert order.tolist() == [[1, 3, 0, 2]]
    torch.testing.assert_close(renewed.abs(), torch.eye(4)[None])


def test_costs_are_shared_out():
    costs = [1.0] * 24 + [19.0] * 18
    turns = eigenbasis.share_out(costs, 10)
    loads = [sum(c for c, t in zip(costs, turns, strict=True) if t == turn) for turn in range(10)]
    assert max(loads) <= 4 / 3 * sum(costs) / 10
    assert eigenbasis.share_out([1.0, 5.0], 10) == [1, 0]
    assert eigenbasis.share_out([1.0, 5.0, 2.0], 1) == [0, 0, 0]
