"""What rank 0 of a script says first: what the run lacks, how to go on then, and what it is."""

from types import SimpleNamespace

import pytest
from torch import nn

from psgc.run.inputs import Given
from psgc.torch.program import TorchProgram
from psgc.torch.settings import settings_of, settled

LACKS = "started without psgc launch: exit codes are mpirun's; no fault tolerance: a dead rank ends this run"
IT = "; resume it with: psgc launch train.py -n 4 --resume -- --epochs 3"
RESTORE = "faults.restore: without psgc launch nobody starts the run again, it goes on without lost workers; no fault"


def opening(source, survives=False, hosts="aabb", **settings):
    program = TorchProgram(nn.Linear(3, 2), [0] * 9, len, settings_of({"chunks": 8, **settings}), None, None, source)
    transport = SimpleNamespace(survives_deaths=survives, hosts=list(hosts), size=len(hosts), library="Some MPI 1")
    return program.opening_lines(transport, *settled(program.settings, len(hosts), program.dim))


@pytest.mark.parametrize(
    ("name", "settings", "lacks"),
    [
        ("train.py", {"output": "run"}, LACKS + IT),
        ("train.py", {}, LACKS),
        ("train.py", {"output": "run", "checkpoint_every": 0}, LACKS),
        ("-c", {"output": "run"}, LACKS),
        ("train.py", {"output": "run", "faults": {"restore": {}}}, LACKS.replace("no fault", RESTORE) + IT),
    ],
)
def test_without_psgc_launch_and_fault_tolerance(monkeypatch, name, settings, lacks):
    monkeypatch.delenv("PSGC_LAUNCHED", raising=False)
    monkeypatch.setattr("psgc.machine.fabrics", lambda: ["mlx5_0"])
    lines = opening(Given(name, arguments=["--epochs", "3"]), **settings)
    assert lines[0] == lacks
    assert lines[1].startswith(
        "psgc 0.1.0: 4 workers on 2 hosts, 8 chunks in 24 copies (blocks), parts 1, schedule dyn"
    )
    assert lines[1].endswith(", 8 parameters, torch float32 on cpu, Some MPI 1 over TCP, mlx5_0 unused")


def test_a_run_that_lacks_nothing(monkeypatch):
    monkeypatch.setenv("PSGC_LAUNCHED", "1")
    (line,) = opening(Given("train.py"), survives=True, hosts="aa", reproducible=True)
    assert line.startswith("psgc 0.1.0: 2 workers on 1 host, ")
    assert line.endswith(", torch float32 on cpu, Some MPI 1")
