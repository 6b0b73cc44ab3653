"""How a script with psgc.torch ends in one process: its exit code, and what is in its run directory."""

import json
import re
import subprocess
import sys

import pytest

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


# all ends at once, by forks of a process that has imported torch; the code of each goes to a file
ALL = """
import os, sys, torch, psgc.torch
for what in ("raises", "spoils the state", "is told to stop"):
    if process := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        open(f"{what}/code", "w").write(str(code))
        continue
    os.mkdir(what)
    os.chdir(what)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv[1:] = [what]
    exec(compile(open("../script.py").read(), os.path.abspath("../script.py"), "exec"))
    break
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ends")
    (folder / "script.py").write_text(SCRIPT)
    subprocess.run([sys.executable, "-c", ALL], cwd=folder, timeout=100, check=True)
    return folder


def ended(folder, what):
    """The exit code, the summary, the names of checkpoints without their checksums, and standard error.

    Whatever the end, the script is given the row of each iteration.
    """
    folder = folder / what
    summary = json.loads((folder / "run/summary.json").read_text())
    rows = re.findall(r"^row (.*)", (folder / "out").read_text(), re.MULTILINE)
    assert rows == (["0"] if what == "raises" else ["0", "1"])
    names = [path.name.partition("-")[0] for path in (folder / "run").glob("checkpoints/*")]
    summary = {name: summary[name] for name in ("status", "exit_code", "reason")}
    return int((folder / "code").read_text()), summary, names, (folder / "err").read_text()


def test_a_script_that_raises_leaves_no_checkpoint(folder):
    """It may have been in the middle of a step."""
    code, summary, names, said = ended(folder, "raises")
    assert (code, names) == (1, [])
    reason = f"its script raised ValueError: on purpose, {folder}/script.py:23"
    assert summary == {"status": "failed", "exit_code": 1, "reason": reason}
    assert said.splitlines()[-1] == "ValueError: on purpose"


def test_a_signal_when_the_run_is_over_changes_nothing(folder):
    code, summary, names, said = ended(folder, "is told to stop")
    assert (code, names, said) == (0, ["00000002"], "")
    assert summary == {"status": "done", "exit_code": 0, "reason": ""}


def test_a_last_checkpoint_that_cannot_be_made_is_an_error(folder):
    code, summary, names, said = ended(folder, "spoils the state")
    assert (code, names) == (2, [])
    reason = "SGD, attached to the run: optimizer.param_groups.0.log is a object, which cannot be saved; expected "
    reason += "numbers, texts, tensors"
    assert (said, summary) == (f"psgc: {reason}\n", {"status": "failed", "exit_code": 2, "reason": reason})
