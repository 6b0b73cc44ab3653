"""Encode, decode, sparse matrices and message buffers against plain NumPy, and on a GPU where there is one."""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse

from psgc.backend import Backend, CupyBackend, condensed, decode, encode, open_backend, part_length
from psgc.errors import UserError
from tests.stand_in import cupy as stand_in
from tests.stand_in import cupyx

FLOATS = pytest.mark.parametrize(("dtype", "exact"), [("float64", 1e-12), ("float32", 1e-4)])
# (entries, parts): with and without a rest, and with fewer entries than parts
CUTS = list(itertools.product((1, 2, 3, 4, 5, 6, 7, 11, 12, 60, 61, 64, 100), (1, 2, 3, 4, 5)))


def opened(name):
    if name == "numpy":
        return Backend()
    if "stand-in" in name:
        return CupyBackend(stand_in, 0, "aware" in name)
    try:
        return open_backend("cupy", environ={"PSGC_CUDA_AWARE": "1" if "aware" in name else "0"})
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["numpy", "stand-in", pytest.param("cupy", marks=pytest.mark.gpu)])
def backend(request):
    return opened(request.param)


def cut(gradient, parts):
    """The gradient's parts as float64 rows of equal length; the entries left over fill the last column from the top."""
    columns, left = divmod(len(gradient), parts)
    rows = np.zeros((parts, columns + (left > 0)))
    for k in range(parts):
        rows[k, :columns] = gradient[k * columns : (k + 1) * columns]
    for k in range(left):
        rows[k, -1] = gradient[parts * columns + k]
    return rows


def joined(rows, dim):
    """The inverse of `cut`."""
    parts = len(rows)
    columns, left = divmod(dim, parts)
    return np.concatenate([*rows[:, :columns], rows[:left, columns] if left else []])


def on(backend, array, dtype=None):
    return backend.asarray(np.ascontiguousarray(array, dtype))


@FLOATS
def test_encode_adds_the_weighted_parts(backend, dtype, exact):
    rng = np.random.default_rng(0)
    for dim, parts in CUTS:
        gradient = rng.standard_normal(dim).astype(dtype)
        before = rng.standard_normal(part_length(dim, parts)).astype(dtype)
        coefficients = rng.standard_normal(parts)
        coded, sent = on(backend, before.copy()), on(backend, gradient)
        encode(backend, coded, coefficients, sent)
        np.testing.assert_allclose(
            backend.to_host(coded), before + coefficients @ cut(gradient, parts), rtol=0, atol=exact
        )
        assert coded.dtype == dtype
        np.testing.assert_array_equal(backend.to_host(sent), gradient)


@FLOATS
def test_decode_adds_to_every_part_its_share_of_every_copy(backend, dtype, exact):
    rng = np.random.default_rng(0)
    for (dim, parts), copies in itertools.product(CUTS, (1, 2, 5)):
        before = rng.standard_normal(dim).astype(dtype)
        coded = rng.standard_normal((copies, part_length(dim, parts))).astype(dtype)
        coefficients = rng.standard_normal((parts, copies))
        columns = dim // parts
        gradient = on(backend, before.copy())
        decode(backend, gradient, coefficients, on(backend, coded[:, :columns]), on(backend, coded[:, columns:]))
        np.testing.assert_allclose(
            backend.to_host(gradient), before + joined(coefficients @ coded, dim), rtol=0, atol=exact
        )
        assert gradient.dtype == dtype


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda target: np.repeat(target, 2, axis=1)[:, ::2],  # strided
        lambda target: target.astype("int64"),
        lambda target: target.astype(">f8"),
        lambda target: target[:, ::-1],
    ],
)
def test_combine_refuses_what_blas_would_copy_and_lose(rows, spoil):
    target = spoil(np.ones((rows, 8)))
    with pytest.raises(TypeError, match="combine needs contiguous float32 or float64 arrays"):
        Backend().combine(target, np.ones((rows, 2)), np.ones((2, 8)))
    assert (target == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_finite_looks_again_when_only_the_sum_is_not(dtype):
    largest = np.finfo(dtype).max
    assert Backend().all_finite(np.array([largest, largest, 1], dtype))
    assert not Backend().all_finite(np.array([np.inf, -np.inf, 1], dtype))
    assert not Backend().all_finite(np.array([np.nan, 1], dtype))


@pytest.mark.parametrize("backend", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True)
def test_a_csr_matrix_multiplies_like_a_dense_one(backend):
    rng = np.random.default_rng(2)
    dense = np.where(rng.random((7, 5)) < 0.4, rng.standard_normal((7, 5)), 0.0)
    csr = scipy.sparse.csr_array(dense)
    matrix = backend.csr(backend.asarray(csr.data), csr.indices, csr.indptr, csr.shape)
    assert matrix.shape == (7, 5)
    right, left = rng.standard_normal(5), rng.standard_normal(7)
    np.testing.assert_allclose(backend.to_host(matrix @ backend.asarray(right)), dense @ right, atol=1e-12)
    np.testing.assert_allclose(backend.to_host(matrix.T @ backend.asarray(left)), dense.T @ left, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "name",
    [
        "numpy",
        "stand-in",
        "stand-in, CUDA-aware MPI",
        pytest.param("cupy", marks=pytest.mark.gpu),
        pytest.param("cupy, CUDA-aware MPI", marks=pytest.mark.gpu),
    ],
)
def test_what_is_put_in_a_message_comes_out_of_a_message_buffer(monkeypatch, name, dtype):
    if "stand-in" in name:
        monkeypatch.setitem(sys.modules, "cupyx", cupyx)
    backend = opened(name)
    values = np.arange(5.0).astype(dtype)
    array = backend.asarray(values)
    message = backend.to_message(array)
    buffer = backend.message_buffer(9, dtype)
    assert (message.dtype, buffer.dtype, buffer.shape) == (dtype, dtype, (9,))
    assert buffer.flags.c_contiguous
    buffer[:5] = message  # what MPI does
    received = backend.asarray(buffer[:5])
    assert type(received) is type(array)
    np.testing.assert_array_equal(backend.to_host(received), values)
    assert type(backend.to_host(received)) is np.ndarray


def test_nothing_is_copied_on_the_host():
    array = np.arange(3.0)
    assert Backend().asarray(array) is array
    assert Backend().to_host(array) is array
    assert Backend().to_message(array) is array
    matrix = scipy.sparse.csr_array(np.eye(3))
    assert np.shares_memory(Backend().csr(matrix.data, matrix.indices, matrix.indptr, (3, 3)).data, matrix.data)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_vectors_begin_where_those_of_torch_would(dtype):
    """Else kernels round the same numbers differently on different ranks."""
    vectors = [Backend().empty(length, dtype) for length in (1, 3, 3, 17, 1000)]
    assert [vector.ctypes.data % 64 for vector in vectors] == [0] * 5
    assert [(vector.size, vector.dtype) for vector in vectors] == [(n, dtype) for n in (1, 3, 3, 17, 1000)]


# which backend it is


class FakeCupy:
    """As much of CuPy as choosing a device takes."""

    ElementwiseKernel = SimpleNamespace

    def __init__(self, devices):
        self.used = []

        def count():
            if isinstance(devices, Exception):
                raise devices
            return devices

        device = lambda number: SimpleNamespace(use=lambda: self.used.append(number))  # noqa: E731
        null = SimpleNamespace(use=lambda: None)
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(getDeviceCount=count), Device=device, Stream=SimpleNamespace(null=null)
        )
        self.ElementwiseKernel = lambda *text: None


NO_GPU = {
    "not installed": (None, r"CuPy is not installed \(pip install cupy-cuda13x, or cupy-cuda12x\)"),
    "no device": (FakeCupy(RuntimeError("cudaErrorNoDevice: none")), r"CuPy finds no GPU \(cudaErrorNoDevice: none\)"),
    "zero devices": (FakeCupy(0), "CuPy finds no GPU"),
}


@pytest.mark.parametrize("cupy", NO_GPU)
def test_without_a_gpu_cupy_is_one_clear_line_and_auto_is_numpy(monkeypatch, cupy):
    module, reason = NO_GPU[cupy]
    monkeypatch.setitem(sys.modules, "cupy", module)
    with pytest.raises(UserError, match=f"^backend: cupy was asked for, but {reason}; use backend: numpy or auto$"):
        open_backend("cupy")
    assert type(open_backend("auto")) is Backend


def test_a_cupy_that_does_not_load_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('====\\nFailed to import CuPy.\\n====')")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^backend: .* CuPy cannot be loaded \(python -c 'import cupy' says why\); .+"):
        open_backend("cupy")
    assert type(open_backend("auto")) is Backend


@pytest.mark.parametrize("name", ["cupy", "auto"])
def test_the_ranks_of_a_host_share_its_gpus_in_turn(monkeypatch, name):
    chosen = []
    for local_rank in range(5):
        cupy = FakeCupy(devices=2)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        assert type(open_backend(name, local_rank, {})) is CupyBackend
        chosen += cupy.used
    assert chosen == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("dim", [2, 3, 1023, 2047, 5000])
def test_other_bits_of_a_vector_show(backend, dtype, dim):
    values = np.random.default_rng(dim).normal(size=dim).astype(dtype)
    first, last = values.copy(), values.copy()
    first[0], last[-1] = np.nextafter(first[0], np.inf), np.nextafter(last[-1], np.inf)
    found = {condensed(backend, backend.asarray(vector)) for vector in (values, first, last, -values)}
    assert len(found) == 4
    assert condensed(backend, backend.asarray(values.copy())) in found
