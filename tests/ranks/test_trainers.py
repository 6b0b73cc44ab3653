"""`psgc launch` of scripts with Lightning and with transformers: a worker dies, the weights are as without psgc."""

import pytest
from safetensors.torch import load_file

from tests.ranks.mpirun import psgc, run
from tests.ranks.prepared import TORCH, prepared
from tests.torch_equivalence.values import difference
from tests.torch_equivalence.ways import ABSENT, CLOSE, NEEDS, result

SCRIPT = """
import os, signal, sys
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from tests.torch_equivalence.values import values
from tests.torch_equivalence.ways import one_process, script

rank, passes = int(os.environ["OMPI_COMM_WORLD_RANK"]), 0


def dies(*_):
    global passes
    passes += 1
    if rank == 2 and passes > 30:
        Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)


nn.modules.module.register_module_forward_pre_hook(dies)
with one_process():
    save_file(values(script(sys.argv[1]).with_psgc(output="run")), f"result-{rank}.safetensors")
"""


@pytest.mark.timeout(300)
@pytest.mark.faults
@pytest.mark.parametrize("name", NEEDS)
def test_a_worker_dies_under_a_trainer(name, tmp_path):
    if name in ABSENT:
        pytest.skip(f"{name} needs {ABSENT[name]}")
    (tmp_path / "train.py").write_text(SCRIPT)
    python = prepared((*TORCH, f"tests.torch_equivalence.scripts.{name}"))  # a trainer takes seconds to import
    finished = run(psgc("launch", "train.py", "-n", "4", "--", name, python=python), tmp_path, 250.0, code=0)
    assert (tmp_path / "died").exists(), finished.said
    (tmp_path / "plain").mkdir()
    expected = result(name, "torch", tmp_path / "plain")
    for rank in (0, 1, 3):
        assert difference(load_file(tmp_path / f"result-{rank}.safetensors"), expected) <= CLOSE
