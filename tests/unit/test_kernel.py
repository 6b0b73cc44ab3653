"""The kernel of `CupyBackend`: NVRTC compiles it where CuPy is installed, and a C++ compiler makes it run here."""

import ctypes
import os
import shutil
import subprocess

import numpy as np
import pytest

from psgc import backend
from tests.stand_in import cupy as stand_in

TYPES = pytest.mark.parametrize("T", ["float", "double"])
KERNEL = stand_in.ElementwiseKernel(*backend.KERNEL)
HOST = """
#include <cstdint>
typedef int64_t int64;
typedef TYPE T;
extern "C" void psgc_combine(const T *coefficients, const T *rows, int64 b, int64 p, T *targets, int64 size) {
    for (int64 i = 0; i < size; ++i) { T &target = targets[i]; BODY; }
}
"""
DEVICE = """
#include <cupy/carray.cuh>
typedef long long int64;
typedef TYPE T;
typedef CArray<T, 2, true, true> Array;
extern "C" __global__ void psgc_combine(
    Array coefficients, Array rows, int64 b, int64 p, CArray<T, 1, true, true> targets, CIndexer<1, true> all) {
    CUPY_FOR(i, all.size()) { T &target = targets[i]; BODY; }
}
"""


def source(template, T):
    return template.replace("TYPE", T).replace("BODY", KERNEL.operation)


def test_its_parameters_are_those_that_are_compiled_here():
    assert (KERNEL.in_params, KERNEL.out_params) == ("raw T coefficients, raw T rows, int64 b, int64 p", "T target")


@TYPES
def test_it_adds_the_product(tmp_path, T):
    if (compiler := shutil.which("c++")) is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "kernel.cc").write_text(source(HOST, T))
    command = [compiler, "-shared", "-fPIC", "kernel.cc", "-o", "kernel.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    combine, dtype = ctypes.CDLL(tmp_path / "kernel.so").psgc_combine, {"float": "float32", "double": "float64"}[T]
    array, number = np.ctypeslib.ndpointer(dtype, flags="C"), ctypes.c_int64
    combine.argtypes = [array, array, number, number, array, number]
    rng = np.random.default_rng(0)
    for a, b, p in ((1, 1, 5), (1, 3, 4), (3, 1, 4), (4, 3, 7), (2, 3, 1)):
        coefficients, rows, target = (rng.standard_normal(shape).astype(dtype) for shape in ((a, b), (b, p), (a, p)))
        expected = target + coefficients @ rows
        combine(coefficients, rows, b, p, target, target.size)
        np.testing.assert_allclose(target, expected, rtol=0, atol=1e-5 if T == "float" else 1e-13)


@TYPES
def test_nvrtc_compiles_it(T):
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    nvrtc = cupy.cuda.nvrtc
    try:
        program = nvrtc.createProgram(source(DEVICE, T), "kernel.cu", (), ())
    except Exception as error:
        pytest.skip(f"no NVRTC: {error}")
    include = os.path.join(os.path.dirname(cupy.__file__), "_core", "include")
    try:
        nvrtc.compileProgram(program, [f"-I{include}", "--std=c++17"])
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    assert b"psgc_combine" in nvrtc.getPTX(program)
