"""What psgc prints: nothing foreign reaches a terminal as it is; a stream that cannot be written is no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from psgc.cli import main
from psgc.record.progress import RunProgress
from psgc.terminal import say, say_together, say_traceback

LURE = "psgc: done"
NASTY = f"x\x1b[31m\n{LURE}"  # red from here on, and a line that looks like one of ours
SHOWN = f"x\\x1b[31m\\n{LURE}"
SIMULATION = """\
assignment: {kind: cyclic, chunks: 6, workers: 3, load: 4}
parts: [1]
schedules: [static]
speeds: {kind: exponential, mean: 1.0}
trials: 2
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments, code=0):
    """What a command prints, none of which a terminal would obey."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code or 0) == code, err
    assert all(line.isprintable() for line in (out + err).split("\n"))
    assert not any(line.startswith(LURE) for line in (out + err).splitlines())
    return out + err


# ---------------------------------------------------------------- names that are commands to a terminal


def test_launch(capsys, mpirun):
    mpirun("mkdir -p out/checkpoints; echo > out/checkpoints/2.safetensors; exit 1")
    Path("run.yaml").rename(f"{NASTY}.yaml")
    quoted = f"'{SHOWN}.yaml'"
    assert f"train {quoted}\n" in run(capsys, "launch", f"{NASTY}.yaml", "-n", "2", "--print")
    assert f"psgc launch {quoted} -n 2 --resume" in run(capsys, "launch", f"{NASTY}.yaml", "-n", "2", code=1)


def test_errors_and_tracebacks(capsys, mpirun):
    mpirun("exit 0")
    name = NASTY.replace("\n", "")
    lost = "mpirun ended, but x\\x1b[31mpsgc: done/summary.json was not written\n"
    assert lost in run(capsys, "launch", "run.yaml", "-n", "2", "--set", f"output={json.dumps(name)}", code=1)
    shown = run(capsys, "launch", f"{NASTY}.yaml", "-n", "2", "--debug", code=2)
    assert "Traceback" in shown
    assert f"{SHOWN}.yaml" in shown
    try:
        raise ValueError(NASTY)
    except ValueError:
        say_traceback()
    assert "ValueError: x\\x1b[31m\n" in capsys.readouterr().err
    say_together([NASTY, "next"])
    assert capsys.readouterr().err == f"{SHOWN}\nnext\n"


def test_wrong_arguments(capsys):
    assert f"unrecognized arguments: '{SHOWN}'" in run(capsys, "report", "out", NASTY, code=2)


@pytest.mark.parametrize("columns", ["", "80"])
def test_a_run_that_goes_on(capsys, monkeypatch, columns):
    monkeypatch.setenv("PSGC_TERMINAL", columns)
    shown = RunProgress(3)
    shown.say(f"worker 1 on {NASTY} lost")
    shown.close()
    assert f"worker 1 on {SHOWN} lost\n" in capsys.readouterr().out


def test_what_the_encoding_does_not_have_is_escaped(capsys):
    program = f"from psgc.terminal import say; say({os.fsdecode(b'caf') + chr(233)!r})"
    finished = psgc_python(program, PYTHONIOENCODING="ascii")
    assert (finished.stdout, finished.returncode) == (b"caf\\xe9\n", 0)
    say(os.fsdecode(b"\xff"))  # no text at all
    assert capsys.readouterr().out == "\\udcff\n"


# ---------------------------------------------------------------- streams that cannot be written


def psgc_python(program, **environ):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, env={**os.environ, **environ})


def test_what_a_process_has_printed_is_there_when_it_ends_at_once_even_without_standard_error():
    program = "import os, sys; from psgc.terminal import flush; print('a model'); sys.stderr.close(); flush(); "
    finished = psgc_python(program + "os._exit(0)", PYTHONUNBUFFERED="")
    assert (finished.stdout, finished.returncode) == (b"a model\n", 0)


def shell(command):
    """Exit code of psgc, then what is on stdout and stderr; PSGC in the command is psgc."""
    script = f"set -o pipefail; {command.replace('PSGC', f'{sys.executable} -m psgc')}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    finished = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=buffered)
    return finished.returncode, finished.stdout, finished.stderr


@pytest.fixture
def matrix():
    np.save("A.npy", np.ones((2, 2), np.int8))


@pytest.mark.usefixtures("matrix")
class TestStandardStreams:
    def test_a_reader_that_leaves_in_between(self):
        code, out, err = shell("PSGC order A.npy | head -1")
        assert (out, err) == ("A.npy: 2 chunks, 2 workers, 4 copies\n", "")
        assert code in (0, 141)  # all may have been written before

    def test_tables_as_well(self):
        Path("sim.yaml").write_text(SIMULATION)
        assert shell("PSGC simulate sim.yaml | true") == (141, "", "")

    @pytest.mark.parametrize("command", ["--help", "order A.npy"])
    def test_a_full_disk(self, command):
        assert shell(f"PSGC {command} > /dev/full") == (1, "", "psgc: standard output: No space left on device\n")

    @pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", "2>/dev/full"])
    def test_closed_ones(self, closed):
        assert shell(f"PSGC --version {closed}")[::2] == (0, "")
        code, out, err = shell(f"PSGC launch missing.yaml -n 2 {closed}")
        assert (code, out) == (2, "")
        assert err == ("" if "2>" in closed else "psgc: missing.yaml: no such file\n")

    def test_a_closed_one_is_not_where_the_output_of_others_goes(self, mpirun):
        mpirun('echo mpirun says; echo \'{"status": "done"}\' > out/summary.json')
        assert shell("PSGC launch run.yaml -n 2 >&-") == (0, "", "")
        assert shell("PSGC launch run.yaml -n 2 >&- --print") == (0, "", "")
