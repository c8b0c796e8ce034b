"""Muon on DTensors by way of the layout interface, on two processes: cut by rows as FSDP2 and colwise do, and
by columns as rowwise does."""

import multiprocessing
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from cupola.optim.muon import Muon

SHAPES = [(12, 8), (12, 8), (12, 8), (8, 24), (6, 6)]
WORLD = 2


class AllOnAll:
    """Every process works on every matrix: an all-gather, and a slice without communication."""

    def local(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.to_local() for t in tensors]

    def mine(self, count: int) -> list[int]:
        return list(range(count))

    def gather(self, tensors: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        return [self._like(t, p).full_tensor() for t, p in zip(tensors, parameters, strict=True)]

    def cut(self, updates: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        return [_cut(update, p) for update, p in zip(updates, parameters, strict=True)]

    def _like(self, tensor: Tensor, parameter: Tensor) -> DTensor:
        mesh, placements = parameter.device_mesh, parameter.placements
        return DTensor.from_local(tensor, mesh, placements, shape=parameter.shape, stride=parameter.stride())


class InTurns(AllOnAll):
    """Each process works on every second matrix, and sends the others what it found."""

    def mine(self, count: int) -> list[int]:
        return list(range(dist.get_rank(), count, WORLD))

    def gather(self, tensors: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        whole = super().gather(tensors, parameters)
        return [whole[index] for index in self.mine(len(whole))]

    def cut(self, updates: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        own = dict(zip(self.mine(len(parameters)), updates, strict=True))
        found = []
        for index, parameter in enumerate(parameters):
            whole = own[index].contiguous() if index in own else torch.empty(parameter.shape)
            dist.broadcast(whole, index % WORLD)
            found.append(_cut(whole, parameter))
        return found


def _cut(whole: Tensor, parameter: Tensor) -> Tensor:
    everywhere = DTensor.from_local(whole, parameter.device_mesh, [Replicate()])
    return everywhere.redistribute(placements=parameter.placements).to_local()


LAYOUTS = {"all on all": AllOnAll, "in turns": InTurns}


def drawn(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def trained(cut, layout=None) -> tuple[list[torch.nn.Parameter], Muon]:
    """Three steps.

    Args:
        cut: a whole tensor -> the parameter or gradient of this process.
    """
    parameters = [torch.nn.Parameter(cut(tensor)) for tensor in drawn(0)]
    group = {"params": parameters, "role": "matrix", "weight_decay": 0.1}
    optimizer = Muon([group], lr=0.02, dtype=torch.float32, **({"layout": layout} if layout else {}))
    for seed in (1, 2, 3):
        for parameter, gradient in zip(parameters, drawn(seed), strict=True):
            parameter.grad = cut(gradient)
        optimizer.step()
    return parameters, optimizer


def work(rank: int, port: int, results: "multiprocessing.Queue[str]") -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, WORLD, is_master=rank == 0, timeout=timedelta(seconds=30))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=30))
    mesh = init_device_mesh("cpu", (WORLD,))
    expected, _ = trained(torch.clone)
    for name, layout in LAYOUTS.items():
        for axis in (0, 1):
            found, optimizer = trained(lambda t, a=axis: distribute_tensor(t, mesh, [Shard(a)]), layout())
            for sharded, whole in zip(found, expected, strict=True):
                momentum = optimizer.state[sharded]["momentum"]
                assert momentum.to_local().numel() == whole.numel() // WORLD
                if not torch.equal(sharded.full_tensor(), whole):
                    results.put(f"{name}, axis {axis}: {tuple(whole.shape)} differs")
    results.put("done")
    dist.destroy_process_group()


@pytest.mark.multiprocess
def test_shards_get_the_whole_matrixs_update_bit_for_bit():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=work, args=(rank, port, results)) for rank in range(WORLD)]
    for worker in workers:
        worker.start()
    try:
        found = [results.get(timeout=120) for _ in workers]
    finally:
        for worker in workers:
            worker.join(30)
            worker.kill()
    assert found == ["done"] * WORLD
