"""How a script with psgc.torch ends in one process: its exit code, and what is in its run directory."""

import json
import re
import subprocess
import sys

SCRIPT = """
import os, signal, sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import psgc.torch

# Optimizers import the compiler only to say what it is not to compile. That takes as long as importing torch.
sys.modules["torch._dynamo"] = SimpleNamespace(disable=lambda function, *_, **__: function, graph_break=lambda: None)
x = torch.randn(40, 3)
model = torch.nn.Linear(3, 1)
data = torch.utils.data.TensorDataset(x)
run = psgc.torch.init(model, data, lambda model, batch: model(batch[0]).mean(), chunks=2, output="run")
optimizer = torch.optim.SGD(model.parameters(), 0.1)
run.attach(optimizer)
run.on("iteration", lambda row: print("row", row.iteration))  # the last ones come at the end
for batch in run.batches(20):
    run.backward(batch)
    optimizer.step()
    if sys.argv[1] == "raises":
        raise ValueError("on purpose")
if sys.argv[1] == "spoils the state":
    optimizer.param_groups[0]["log"] = object()
if sys.argv[1] == "is told to stop":
    os.kill(os.getpid(), signal.SIGTERM)
"""


def ended(folder, what):
    """The exit code, the summary, the names of checkpoints without their checksums, and standard error.

    Whatever the end, the script is given the row of each iteration.
    """
    done = subprocess.run([sys.executable, "-c", SCRIPT, what], cwd=folder, capture_output=True, text=True, timeout=100)
    summary = json.loads((folder / "run/summary.json").read_text())
    assert re.findall(r"^row (.*)", done.stdout, re.MULTILINE) == (["0"] if what == "raises" else ["0", "1"])
    names = [path.name.partition("-")[0] for path in (folder / "run").glob("checkpoints/*")]
    return done.returncode, {name: summary[name] for name in ("status", "exit_code", "reason")}, names, done.stderr


def test_a_script_that_raises_leaves_no_checkpoint(tmp_path):
    """It may have been in the middle of a step."""
    code, summary, names, said = ended(tmp_path, "raises")
    assert (code, names) == (1, [])
    reason = "its script raised ValueError: on purpose, <string>:23"
    assert summary == {"status": "failed", "exit_code": 1, "reason": reason}
    assert said.splitlines()[-1] == "ValueError: on purpose"


def test_a_signal_when_the_run_is_over_changes_nothing(tmp_path):
    code, summary, names, said = ended(tmp_path, "is told to stop")
    assert (code, names, said) == (0, ["00000002"], "")
    assert summary == {"status": "done", "exit_code": 0, "reason": ""}


def test_a_last_checkpoint_that_cannot_be_made_is_an_error(tmp_path):
    code, summary, names, said = ended(tmp_path, "spoils the state")
    assert (code, names) == (2, [])
    reason = "SGD, attached to the run: optimizer.param_groups.0.log is a object, which cannot be saved; expected "
    reason += "numbers, texts, tensors"
    assert (said, summary) == (f"psgc: {reason}\n", {"status": "failed", "exit_code": 2, "reason": reason})
