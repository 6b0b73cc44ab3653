"""docs/notebook.ipynb in a Jupyter kernel, and what an interrupt of the kernel does to a run."""

import importlib.util
import json
import socket
from pathlib import Path

import pytest

from tests.ranks.test_train import wait_until

pytest.importorskip("nbclient", reason="no nbclient: pip install nbclient ipykernel")
import nbformat
from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("run_notebook", ROOT / "scripts/run_notebook.py")
run_notebook = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_notebook)

LONG = """
import psgc
psgc.launch(problem="logistic", data=(X, y), workers=3, lr=1, iterations=10**6, output="long", checkpoint={"every": 9})
"""
DATA = "import numpy as np; X = np.random.default_rng(0).random((40, 3)); y = (X.sum(1) > 1.5).astype(int)"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


def outputs(notebook):
    """The kinds of what each cell shows; what runs print may come late, in the next cell or in none."""
    return [
        [out.output_type for out in cell.get("outputs", []) if out.output_type != "stream"] for cell in notebook.cells
    ]


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_the_notebook_runs_and_its_outputs_are_in_the_repository(tmp_path):
    again, committed = run_notebook.executed(tmp_path), nbformat.read(run_notebook.NOTEBOOK, as_version=4)
    assert outputs(again) == outputs(committed)
    assert ["display_data"] in outputs(committed)
    text = run_notebook.NOTEBOOK.read_text()
    assert [word for word in ("/tmp", "/home", "/root", "/work", socket.gethostname() + " ") if word in text] == []


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_an_interrupt_of_the_kernel_ends_the_run_in_order(tmp_path):
    manager, client = start_new_kernel(cwd=str(tmp_path))
    try:
        client.execute_interactive(DATA, timeout=30, output_hook=lambda _: None)
        request = client.execute(LONG, stop_on_error=False)  # or the kernel refuses what comes soon after
        wait_until(lambda: list(tmp_path.glob("long/checkpoints/*")))
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=30))["parent_header"]["msg_id"] != request:
            continue
        assert reply["content"]["ename"] == "KeyboardInterrupt", reply["content"]
        assert json.loads((tmp_path / "long/summary.json").read_text())["status"] == "interrupted"
        said = client.execute_interactive("1 + 1", timeout=30, output_hook=lambda _: None)
        assert said["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
