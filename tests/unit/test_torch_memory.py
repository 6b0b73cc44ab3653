"""Tensors and arrays over the same memory, on the stand-in for CuPy and, where there is one, on a GPU."""

import sys

import numpy as np
import pytest
import torch

from psgc.torch import memory
from psgc.torch.flat import FlatModel
from psgc.torch.memory import Memory, OnGpu, memory_of, settle
from tests.stand_in import cupy

CPU = torch.device("cpu")


def test_on_the_cpu_an_array_is_the_memory_of_the_tensor():
    found, why = memory_of(CPU)
    assert (type(found), why) == (Memory, "")
    tensor = torch.arange(5.0)
    found.array(tensor)[0] = 7
    found.tensor(found.array(tensor))[1] = 8
    assert tensor.tolist() == [7, 8, 2, 3, 4]


def test_on_a_gpu_dlpack_makes_one_of_the_other(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(memory, "is_on_gpu", lambda _: True)
    found, why = memory_of(CPU)
    assert (type(found), found.backend.name, why) == (OnGpu, "cupy", "")
    tensor = torch.arange(5.0)
    array = found.array(tensor)
    assert type(array) is cupy.ndarray
    array[0] = 7
    found.tensor(array)[1] = 8
    assert tensor.tolist() == [7, 8, 2, 3, 4]


def test_without_cupy_it_is_said_that_vectors_go_through_the_host(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    found, why = memory_of(torch.device("cuda", 0))
    assert (type(found), found.backend.name) == (Memory, "numpy")
    assert why.startswith("CuPy is not installed (pip install cupy-cuda13x")


@pytest.mark.gpu
def test_the_streams_of_torch_and_of_cupy_wait_for_each_other():
    """Torch is on a stream of its own, and each side reads what the other one has only begun to write."""
    pytest.importorskip("cupy")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    device, size = torch.device("cuda", 0), 1 << 24
    found, why = memory_of(device)
    assert not why
    with torch.cuda.stream(torch.cuda.Stream(device)):
        for _ in range(20):
            tensor = torch.zeros(size, device=device)
            for _ in range(50):
                tensor += 1
            array = found.array(tensor)
            del tensor
            for _ in range(50):
                array += 1
            again = found.tensor(array)
            assert again.data_ptr() == array.data.ptr
            del array
            assert float((again * 2).min()) == float((again * 2).max()) == 200
            settle(device)


@pytest.mark.gpu
def test_gradients_and_sums_of_a_model_on_a_gpu_stay_there():
    pytest.importorskip("cupy")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    device = torch.device("cuda", 0)
    model = torch.nn.Linear(100, 100).to(device)
    flat = FlatModel(model)
    found, _ = memory_of(device)
    total = found.backend.xp.ones(flat.dim, np.float32)
    flat.take(found.tensor(total))
    assert next(model.parameters()).grad.data_ptr() == total.data.ptr
