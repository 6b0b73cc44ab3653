import os
import time
from pathlib import Path

from psgc.diagnosis.commands import Command, Finished
from psgc.diagnosis.probe import MARK


def shell(script, seconds=20.0):
    return Command(["sh", "-c", script], os.environ, seconds)


def test_an_answer():
    with shell("echo yes; echo no >&2; exit 3") as question:
        answer = question.result()
        assert (answer.code, answer.out, answer.err) == (3, "yes\n", "no\n")


def test_who_is_late_is_killed_with_all_that_it_started(tmp_path):
    began = time.monotonic()
    with shell(f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' & echo begun; wait", 3.0) as question:
        answer = question.result()
    assert (answer.code, answer.out) == (None, "begun\n")
    assert time.monotonic() - began < 15
    end = time.monotonic() + 10
    while Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cmdline").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_who_keeps_the_pipe_open_keeps_nobody_waiting():
    began = time.monotonic()
    with shell("setsid sleep 30 & echo done") as question:
        assert question.result().out == "done\n"
    assert time.monotonic() - began < 20


def test_a_command_that_nobody_waits_for_ends_with_its_block(tmp_path):
    with shell(f"echo $$ > {tmp_path}/pid; exec sleep 60"):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.02)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_no_such_command():
    with Command(["/nowhere/sinfo"], {}, 1.0) as question:
        assert question.result() == Finished(None, "", "/nowhere/sinfo: No such file or directory", 0.0)


def test_what_the_probe_found():
    out = f'noise\n{MARK}{{"size": 3}}\nrank 1: {MARK}{{"exchanged": 0.5, "size": 4}}\n{MARK}{{"half'
    answer = Finished(0, out, "", 1.0)
    assert answer.lines() == [{"size": 3}, {"exchanged": 0.5, "size": 4}]
    assert answer.found() == {"size": 4, "exchanged": 0.5}
