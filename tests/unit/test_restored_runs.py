"""When `psgc launch` starts a run again: the runs that follow one another."""

import json
import os
import random
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from psgc.config import from_yaml_text, load
from psgc.errors import UserError
from psgc.launching import launch as launching
from psgc.launching.mpirun import Placement
from psgc.launching.script import Program
from psgc.record.recorder import Recorder
from psgc.run.launched import READY, UNDO, Found, settings_of_the_start, undo, with_settings
from psgc.run_rows import IterationRow, WorkerEvent
from tests.unit.fake_mpirun import CHECKPOINT, NAMED, launch, summary
from tests.unit.recording import BOTH_HOLD_ALL

LOST = "iteration,worker,host,event,reason\n5,{},n1,lost,its process died\n"
ONCE = f"""
echo "$PSGC_RESTORED $*" >> started
[ -z "$PSGC_STANDBY" ] || {{ touch $PSGC_STANDBY; while [ -e $PSGC_STANDBY ]; do sleep 0.02; done; }}
end() {{ {CHECKPOINT}; {summary("interrupted")}; exit 138; }}
trap end USR1
{{ cat run.yaml; echo 'faults: {{restore: {{after: 0.2}}}}'; }} > new; mv new out/config.yaml
printf '{LOST.format(1)}' > out/lost.csv
case "$*" in *--resume) {summary("done")}; exit 0;; esac
while :; do sleep 0.05; done
"""


def test_the_run_is_started_again_from_its_checkpoint(mpirun, capfd):
    mpirun(ONCE)
    assert launch("run.yaml", 2) == 0
    first, again = Path("started").read_text().splitlines()
    assert first.endswith("train run.yaml")
    assert again.startswith(f"2 {Path('out').absolute()} -n 2 ")
    assert again.partition("-m ")[2] == "psgc train run.yaml --resume"
    assert "-x PSGC_RESTORED" in again, "for the ranks on other hosts"
    line = "psgc launch: worker 1 gone for 0.2 s: the run starts again from here, with 2 ranks (faults.restore)\n"
    assert capfd.readouterr().err == line


def test_ranks_that_cannot_begin_are_started_again(mpirun, capfd):
    fails = 'case "$*" in *--resume) {}exit 213;; esac\nend() {{'
    mpirun(ONCE.replace("end() {", fails.format("[ $(wc -l < started) -eq 2 ] && ")))
    assert launch("run.yaml", 2) == 0
    assert len(Path("started").read_text().splitlines()) == 3
    assert capfd.readouterr().err.splitlines()[1:] == ["psgc launch: the run has not begun; trying again"]
    Path("started").unlink()
    mpirun(ONCE.replace("end() {", fails.format("")))
    assert launch("run.yaml", 2) == 1
    assert len(Path("started").read_text().splitlines()) == 5
    *_, why, how = capfd.readouterr().err.splitlines()
    assert why == "psgc launch: the run failed: mpirun exited with 213"
    assert how == "psgc launch: to resume from the last checkpoint: psgc launch run.yaml -n 2 --resume"


def test_ranks_of_another_number_that_cannot_begin_are_started_again_for_their_trial(mpirun):
    """They make it unless they are as many as before, and those that did not begin have not made it."""
    Path("train.npz").touch()
    Path("hosts").write_text("a slots=2\n")
    fails = """case "$*" in *--resume) [ $(wc -l < started) -eq 2 ] && exit 213;; esac\nend() {"""
    more_slots = f"printf '{LOST.format(1)}' > out/lost.csv", "echo a slots=3 > hosts"
    mpirun(ONCE.replace("end() {", fails).replace(*more_slots))
    program, placement = Program("run.yaml"), Placement(2, hostfile="hosts")
    assert launching.launch(program, placement) == 0
    _, *again = (line.split() for line in Path("started").read_text().splitlines())
    assert [(before, ranks) for before, _, _, ranks, *_ in again] == [("2", "3"), ("2", "3")]


def test_ranks_that_end_with_a_users_mistake_are_not_started_again(mpirun):
    mpirun(ONCE.replace("end() {", 'case "$*" in *--resume) exit 2;; esac\nend() {'))
    assert launch("run.yaml", 2) == 2
    assert len(Path("started").read_text().splitlines()) == 2


@pytest.mark.parametrize("is_link", [False, True])
def test_a_run_that_finds_several_wrong_steps_goes_back_to_before_the_first(tmp_path, monkeypatch, is_link):
    out = tmp_path / "out"
    out.symlink_to(tmp_path) if is_link else out.mkdir()
    monkeypatch.setenv("PSGC_LAUNCHED", "1")
    monkeypatch.setattr("os.kill", lambda *_: None)
    for step in (5, 3, 4):
        assert undo(out, lambda step: step, step)
    assert (out / UNDO).read_text() == "3"


UNDOES = f"""
echo "$*" >> started
cp run.yaml new; mv new out/config.yaml
{CHECKPOINT}
[ $(wc -l < started) -gt TIMES ] && {{ {summary("done")}; exit 0; }}
touch out/.undo; echo '{{"status": "interrupted", "starts_again": true}}' > out/summary.json; exit 138
"""


@pytest.mark.parametrize(("times", "code", "is_link"), [(1, 0, False), (7, 1, False), (7, 1, True)])
def test_a_run_that_undoes_a_step_is_started_again_from_its_checkpoint_but_not_for_ever(
    mpirun, capfd, times, code, is_link
):
    if is_link:
        Path("out").rename("scratch")
        Path("out").symlink_to("scratch")
    mpirun(UNDOES.replace("TIMES", str(times)))
    assert launch("run.yaml", 2) == code
    first, *again = Path("started").read_text().splitlines()
    assert not first.endswith("--resume")
    assert [line.endswith("--resume") for line in again] == [True] * min(times, 6)
    said = capfd.readouterr().err.splitlines()
    assert said[: len(again)] == ["psgc launch: the run starts again from its checkpoint, to undo the step"] * len(
        again
    )
    often = "it was started again 6 times in the last hour (faults.restore.per_hour)"
    if code:
        end = f"psgc launch: the run does not go on without the wrong step, since {often}"
        assert [line.partition(": psgc launch run.yaml")[0] for line in said[-2:]] == [
            *(end, "psgc launch: to resume from the last checkpoint"),
        ]
        assert json.loads(Path("out/summary.json").read_text()) == {"status": "interrupted"}
    assert not Path("out/.undo").exists()


def told_by(monkeypatch, value):
    monkeypatch.setenv("PSGC_SETTINGS", value)
    return settings_of_the_start()


def test_long_settings_reach_the_new_ranks_and_longer_ones_are_refused(monkeypatch):
    written = yaml.safe_dump({"problem": {"options": {"ids": [*range(30_000)]}}})
    (value,) = with_settings(written).values()
    assert len(value) < 131_000 < len(written)
    assert told_by(monkeypatch, value) == written
    assert "PSGC_SETTINGS" not in os.environ, "the ranks of other runs do not get it"
    rng = random.Random(0)
    with pytest.raises(UserError, match="the settings are too long to hand to new ranks; expected long lists in files"):
        with_settings(yaml.safe_dump([rng.random() for _ in range(12_000)]))


@pytest.mark.parametrize("edit", ["echo seed: 5 >> run.yaml", "echo seed: many >> run.yaml", ": > run.yaml"])
def test_a_run_is_started_again_with_the_settings_with_which_it_began(mpirun, edit, monkeypatch):
    """Also those of --set, whatever the user has made of the YAML. `auto` and defaults are left to the new ranks."""
    told = """printf '%s\\n' "$PSGC_SETTINGS" >> told"""
    undoes = UNDOES.replace("TIMES", "1").replace("touch out/.undo", f"{edit}; touch out/.undo")
    mpirun(f"{told}; {undoes}")
    began_with = load("run.yaml", ["seed=7"])
    assert launch("run.yaml", 2, ["seed=7"]) == 0
    first, again = Path("told").read_text().splitlines()
    assert (first, from_yaml_text(told_by(monkeypatch, again))) == ("", began_with)
    assert "-x PSGC_SETTINGS" in Path("started").read_text().splitlines()[1], "for the ranks on other hosts"


@pytest.mark.parametrize("resume", [False, True])
def test_a_script_that_is_started_again_goes_on_with_what_this_launch_has_begun_alone(mpirun, resume):
    """Its later runs may find those of last week in their directories."""
    Path("train.py").touch()
    Path("answer").write_text(Found.now(Path("out").absolute()).text())
    told = """printf '%s\\n' "$PSGC_RESUME" "$PSGC_JOB" >> told"""
    mpirun(f"{told}; {NAMED}{UNDOES.replace('TIMES', '1')}")
    for _ in range(2):
        Path("started").unlink(missing_ok=True)
        assert launch("train.py", 2, resume=resume) == 0
    first, job, again, same, _, other, *_ = Path("told").read_text().splitlines()
    assert (first, again) == (("1", "1") if resume else ("", "job")), "the user may have said so"
    assert job == same != other


COUNTS = "ls -A folders | wc -l >> counted"
FAILS = f"""
{COUNTS}
[ -z "$PSGC_STANDBY" ] || exit 1
{NAMED} {CHECKPOINT}
{{ cat run.yaml; echo 'faults: {{restore: {{after: 0.02}}}}'; }} > new; mv new out/config.yaml
printf '{LOST.format(1)}' > out/lost.csv
MEANWHILE
{summary("done")}
"""


@pytest.mark.parametrize(
    ("body", "starts", "most"),
    [
        (FAILS.replace("MEANWHILE", "while [ $(wc -l < counted) -lt 4 ]; do sleep 0.05; done"), 4, 2),
        (FAILS.replace("MEANWHILE", f"echo '(' > train.py; sleep 2; {COUNTS}"), 2, 1),
        (f"{COUNTS}; {NAMED}{UNDOES.replace('TIMES', '3')}", 4, 2),
    ],
    ids=["ranks that fail", "a script that is broken now", "runs that end"],
)
def test_starts_of_a_script_that_are_over_leave_no_folder(mpirun, monkeypatch, body, starts, most):
    """There is that of the run, and that of the ranks that begin."""
    Path("folders").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(Path("folders").absolute()))
    Path("train.py").touch()
    Path("answer").write_text(Found.now(Path("out").absolute()).text())
    mpirun(body)
    assert launch("train.py", 2) == 0
    counted = [int(line) for line in Path("counted").read_text().splitlines()]
    assert len(counted) == starts
    assert max(counted) <= most
    assert not [*Path("folders").iterdir()]


def test_a_run_that_fails_while_it_is_to_end_is_not_started_again(mpirun):
    mpirun(ONCE.replace('"interrupted"', '"failed"'))
    assert launch("run.yaml", 2) == 1
    assert len(Path("started").read_text().splitlines()) == 2, "with the ranks that were ready"
    assert not Path("out", READY).exists()


def test_the_run_says_what_it_has_cost(tmp_path, monkeypatch):
    def recorder(resume_at=None, is_restored=True):
        about = tmp_path, "seed: 1\n", BOTH_HOLD_ALL, 1, (2, 1), 10
        return Recorder(*about, resume_at, is_restored=is_restored)

    def restores():
        return (tmp_path / "restores.csv").read_text().splitlines()[1:]

    first = recorder()
    first.event(WorkerEvent(1, 2, "n1", "lost", "its process died"))
    for iteration in range(5):
        first.iteration(IterationRow(iteration, seconds=1.0))
    os.utime(tmp_path / "iterations.csv", (0, time.time() - 7))
    recorder(5, is_restored=False).iteration(IterationRow(5, seconds=1.0))
    assert not (tmp_path / "restores.csv").exists(), "by hand"
    os.utime(tmp_path / "iterations.csv", (0, time.time() - 7))
    behind = time.time() - 100
    monkeypatch.setattr(time, "time", lambda: behind)  # of this host; the files have their server's
    again = recorder(3)
    again.iteration(IterationRow(3, seconds=1.0))
    again.iteration(IterationRow(4, seconds=1.0))
    (row,) = restores()
    iteration, seconds, repeated = row.split(",")
    assert (iteration, repeated, 7 <= float(seconds) < 9) == ("3", "3", True)
    recorder(5).iteration(IterationRow(5, seconds=1.0))
    assert restores()[0] == row
    assert len(restores()) == 2
