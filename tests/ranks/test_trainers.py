"""`psgc launch` of scripts with Lightning and with transformers: a worker dies, the weights are as without psgc.

One goes on from a checkpoint that transformers has written.
"""

import signal

import pytest
from safetensors.torch import load_file

from tests.ranks.mpirun import mpirun, psgc, run
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
    found = values(script(sys.argv[1]).with_psgc(*sys.argv[2:], output="run"))
save_file(found, f"result-{rank}.safetensors")
"""


@pytest.mark.timeout(300)
@pytest.mark.faults
@pytest.mark.parametrize("name", NEEDS)
def test_a_worker_dies_under_a_trainer(name, tmp_path):
    if name in ABSENT:
        pytest.skip(f"{name} needs {ABSENT[name]}")
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "plain").mkdir()
    expected = result(name, "torch", tmp_path / "plain")
    checkpoint = ["plain/trained/checkpoint-7"] if name == "transformers_by_length" else []  # after an epoch
    python = prepared((*TORCH, f"tests.torch_equivalence.scripts.{name}"))  # a trainer takes seconds to import
    command = psgc("launch", "train.py", "-n", "4", "--", name, *checkpoint, python=python)
    finished = run(command, tmp_path, 250.0, code=0)
    assert (tmp_path / "died").exists(), finished.said
    for rank in (0, 1, 3):
        found = load_file(tmp_path / f"result-{rank}.safetensors")
        if checkpoint:  # the mean over the steps since then
            found |= {key: expected[key] for key in found if key.endswith("train_loss")}
        assert difference(found, expected if rank == 0 else {key: expected[key] for key in found}) <= CLOSE


STOPPED = """
import os, signal, sys, time
from pathlib import Path

from safetensors.torch import save_file

from tests.torch_equivalence.scripts import lightning_schedules
from tests.torch_equivalence.values import values
from tests.torch_equivalence.ways import one_process

rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
validation_step = lightning_schedules.Scheduled.validation_step


def stops(self, *batch):
    if rank == 0 and self.trainer.current_epoch == 2 and not Path("stopped").exists():
        Path("stopped").touch()
        os.kill(os.getpid(), signal.SIGUSR1)
        end = time.monotonic() + 20
        while not Path("run/summary.json").exists() and time.monotonic() < end:
            time.sleep(0.01)
    return validation_step(self, *batch)


lightning_schedules.Scheduled.validation_step = stops
with one_process():
    found = values(lightning_schedules.with_psgc(output="run", checkpoint_every=3))
save_file(found, f"result-{rank}.safetensors")
"""


@pytest.mark.timeout(300)
@pytest.mark.faults
@pytest.mark.skipif("lightning_schedules" in ABSENT, reason="no lightning")
def test_a_run_that_is_stopped_while_it_validates_goes_on_as_if_it_had_not(tmp_path):
    (tmp_path / "train.py").write_text(STOPPED)
    (tmp_path / "plain").mkdir()
    expected = result("lightning_schedules", "torch", tmp_path / "plain")
    python = prepared((*TORCH, "tests.torch_equivalence.scripts.lightning_schedules"))
    stopped = run(mpirun(3, ["train.py"], True, python), tmp_path, 120.0)
    assert stopped.returncode == 128 + signal.SIGUSR1, stopped.said
    assert (tmp_path / "stopped").exists()
    finished = run(mpirun(3, ["train.py"], True, python), tmp_path, 120.0, env={"PSGC_RESUME": "1"}, code=0)
    assert "resuming from step" in finished.stdout
    assert difference(load_file(tmp_path / "result-0.safetensors"), expected) <= CLOSE
