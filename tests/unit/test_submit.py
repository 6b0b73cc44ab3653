"""`psgc submit`: the script that it writes, what it refuses, and the examples, which are such scripts."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from psgc.config import load
from psgc.errors import UserError
from psgc.launching.points import sweep_points
from psgc.launching.scheduler import Job
from psgc.launching.schedulers import SCHEDULERS
from tests.unit.fake_mpirun import wait_for

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "scripts/jobs").glob("*"))
RUN = """\
problem: {kind: logistic}
data: {path: data/train.npz, test: t.npz}
optimizer: {kind: sgd, lr: 0.1}
iterations: 3
output: runs/a
"""
DATA = ("data/train.npz", "t.npz", "my test.npz", "y.npy")
PLAIN = ("run.yaml", "--nodes", "2", "--ranks-per-node", "3", "--time", "2:00:00")


@pytest.fixture
def submit(tmp_path, monkeypatch, psgc_command):
    """`psgc submit` in a folder with run.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    Path("data").mkdir()
    for name in DATA:
        Path(name).touch()
    return partial(psgc_command, "submit")


@pytest.fixture(autouse=True)
def of_slurm(monkeypatch):
    """Whatever commands this machine has."""
    monkeypatch.setattr("psgc.cli.submit.usual", lambda: "slurm")


def written(submit, *arguments, to="runs/a.sbatch"):
    """The lines of the script."""
    code, out, err = submit(*PLAIN, *arguments)
    assert (code, err) == (0, "")
    assert out.endswith(f"; submit it with: sbatch {shlex.quote(to)}\n")
    return Path(to).read_text().splitlines()


def directives(lines):
    """The options of sbatch."""
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert len({option.partition("=")[0] for option in options}) == len(options)
    return options


FAKES = (
    'sbcast() { echo -n "sbcast $*|"; }',
    'srun() { echo "srun $*"; }',
    """psgc() { echo -n ran; printf '\\0%s' psgc "$@"; }""",  # of a script that does not end with exec
)


def executed(lines, **environ):
    """The words of the last command when bash runs the script, what sbcast was called with, and the environment."""
    last = lines[-1].replace("exec ", "echo -n ran; printf '\\0%s' ", 1)
    after = "echo -e '\\0'\necho -n $PATH/$OMP_NUM_THREADS/$OPENBLAS_NUM_THREADS/$MKL_NUM_THREADS"
    script = "\n".join([*FAKES, *lines[:-1], last, after])
    environ = {"PATH": os.environ["PATH"], **environ}
    finished = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environ, timeout=20)
    assert finished.stderr == ""
    before, *words, after = finished.stdout.split("\0")
    return words, before.removesuffix("ran"), after.strip()


# the script


def test_the_script_of_a_run(submit):
    lines = written(submit)
    assert lines[:2] == ["#!/bin/bash", f"# Written by: psgc submit {' '.join(PLAIN)}"]
    assert " ".join(directives(lines)) == (
        "--job-name=run --nodes=2 --ntasks-per-node=3 --cpus-per-task=1 --time=2:00:00 --output=%x-%j.log "
        "--open-mode=append --signal=B:USR1@60 --requeue"
    )
    assert executed(lines)[2].endswith("/1/1/1")


def test_what_a_job_asks_for(submit):
    asked = ["--cpus-per-rank", "4", "--gpus-per-rank", "2", "--partition", "gpu", "--account", "a-1", "--name", "n"]
    lines = written(submit, *asked, "--warning", "120", "--option=--qos=long", "--option=--exclusive")
    assert " ".join(directives(lines)) == (
        "--job-name=n --nodes=2 --ntasks-per-node=3 --cpus-per-task=4 --time=2:00:00 --gpus-per-node=6 --partition=gpu "
        "--account=a-1 --output=%x-%j.log --open-mode=append --signal=B:USR1@120 --requeue --qos=long --exclusive"
    )
    words, _, after = executed(lines)
    assert words[-2:] == ["--requeue", "120"]
    assert after.endswith("/4/4/4")


NASTY = ["output=o $(touch hacked); `touch hacked` 'x' \"y\" #", "coding={parts: 2, replication: 3}", "seed=2"]
SETTINGS = [word for text in NASTY for word in ("--set", text)]
AFTER = ["--", "--map-by", "core", "-x", "A=$(touch hacked) 'b'"]
OPTION = "--mpirun=-x 'A=b c'"
EVIL = "my $(touch hacked) run.yaml"


@pytest.mark.parametrize(
    ("program", "given", "before", "after"),
    [
        ("run.yaml", [], [], []),
        (EVIL, SETTINGS, SETTINGS, []),
        ("run.yaml", AFTER, [], AFTER),
        ("train.py", [OPTION, *AFTER[:1], "--name", "$(touch hacked) x"], [],
         [OPTION, "--", "--name", "$(touch hacked) x"]),
    ],
)  # fmt: skip
def test_the_command_of_the_job(submit, program, given, before, after):
    """No text of the user's is read by the shell. Whether a restarted job goes on is for `psgc launch` to say."""
    Path(EVIL).write_text(RUN)
    Path("train.py").touch()

    def words(*more, **environ):
        code, out, err = submit(program, *PLAIN[1:], *more, "--output", "s", *given)
        assert (code, err) == (0, "")
        assert out == "s: a run on 2 x 3 ranks; submit it with: sbatch s\n"
        return executed(Path("s").read_text().splitlines(), **environ)[0]

    begin = ["psgc", "launch", program, "-n", "6", *before, "--requeue", "60"]
    assert words() == words(SLURM_RESTART_COUNT="1") == [*begin, *after]
    assert words("--resume") == [*begin, "--resume", *after]
    assert not Path("hacked").exists()


def test_a_line_break_in_the_command_cannot_add_an_option(submit):
    lines = written(submit, "--set", "seed=1\n#SBATCH --uid=0")
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert "--uid=0" not in directives(lines[:first_command])


def test_a_name_that_is_no_utf_8_is_written_as_it_is(submit):
    name = os.fsdecode(b"caf\xe9.yaml")
    Path("run.yaml").rename(name)
    code, _, err = submit(name, *PLAIN[1:])
    assert (code, err) == (0, "")
    *_, last = Path("runs/a.sbatch").read_bytes().splitlines()
    assert last.startswith(b"exec psgc launch 'caf\xe9.yaml' -n 6")


# sweeps


def test_a_sweep_is_an_array_of_every_combination(submit):
    output = ["--output", "deep/er/s.sbatch"]
    sweeps = ["--sweep", "optimizer.lr=0.1, 0.3", "--sweep", "coding={parts: 2},{parts: 1, chunks_per_worker: auto}"]
    lines = written(submit, *sweeps, "--set", "seed=4", *output, to=output[1])
    assert {"--array=0-3", "--output=%x-%A_%a.log"} < set(directives(lines))
    runs = []
    for index in range(4):
        words = executed(lines, SLURM_ARRAY_TASK_ID=str(index))[0]
        overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        config = load("run.yaml", overrides)
        assert config.seed == 4
        runs.append((config.optimizer.lr, config.coding.parts, config.output))
    assert [run[:2] for run in runs] == [(0.1, 2), (0.1, 1), (0.3, 2), (0.3, 1)]
    assert len({run[2] for run in runs}) == 4
    assert runs[2][2] == "runs/a/2_optimizer.lr=0.3_coding=_parts_2_"


def test_a_key_that_only_the_sweep_gives(submit):
    Path("run.yaml").write_text(RUN.replace(", lr: 0.1", ""))
    assert written(submit, "--sweep", "optimizer.lr=0.1,0.3")


def test_values_are_taken_apart_as_yaml():
    points = sweep_points(["a=1,[2, 3], {b: 4, c: 5},'6,7',"], "o")
    assert [point[0] for point in points] == ["a=1", "a=[2, 3]", "a={b: 4, c: 5}", "a='6,7'"]


# refusals

LONG = 300 * "a"  # longer than a name can be
ARABIC = "\u0662:\u0660\u0660:\u0660\u0660"
MISSING = (
    "no such file or directory; if only the nodes have it, submit from one of them, in SLURM: srun psgc submit ..."
)
SCRIPT = "for runs of a YAML file, train.py is a script"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.py"], "none.py: no such file or directory"),
        (
            ["train.py", "--set", "seed=1"],
            "--set seed=1: train.py is no YAML file; its own arguments come after --",
        ),
        (["train.py", "--sweep", "seed=1,2"], f"--sweep: {SCRIPT}"),
        (["train.py", "--local-dir", "/tmp"], f"--local-dir: {SCRIPT}"),
        (["train.py", "--", "--bind-to", "core"], "-- --bind-to: what follows -- goes to train.py; for mpirun: "),
        (["--set", "iterations=0"], "--set iterations=0: expected a whole number >= 1, got 0"),
        (["--sweep", "coding.replication=2,7"], "coding.replication=7 output=runs/a/1_coding.replication=7: "),
        (["--sweep", "seed=1", "--sweep", "seed=2"], "--sweep seed=2: seed: given twice"),
        (["--set", "data.path=nowhere"], f"data.path: nowhere: {MISSING}"),
        (["--set", "stragglers={kind: trace, path: nowhere}"], f"stragglers.path: nowhere: {MISSING}"),
        *((["--sweep", none], "--sweep seed") for none in ("seed", "seed=", "seed=1],[2", "seed=1,,2", "seed=1\n,2")),
        (["--sweep", "output=a,b"], "--sweep output=a,b: output: each run of a sweep has its own"),
        (["--", "-np", "4"], "-np: the number of ranks cannot be given among mpirun's own options"),
        (["--nodes", "0"], "--nodes 0: expected a whole number from 1 to 65535"),
        (
            ["--nodes", "1", "--ranks-per-node", "1", "--dedicated-server"],
            "dedicated_server: expected at least 2 ranks, a server and a worker, but there is 1",
        ),
        (["--warning", "5"], "--warning 5: expected a whole number from 15"),
        (["--time", "1:00"], "--time 1:00: expected more than the 60 seconds of --warning"),
        (["--time", ARABIC], f"--time {ARABIC}: expected hours:minutes:seconds"),
        (["--partition", "a\n#SBATCH --uid=0"], "--partition a\\n#SBATCH --uid=0: expected letters"),
        (["--option", "qos=long"], "--option qos=long: expected sbatch's, such as --qos=long"),
        (["--option=--parti=x"], "--option --parti=x: --partition is set by psgc submit, see psgc submit --help"),
        (["--option=--comment=a b"], "--option --comment=a b: expected sbatch's"),
        (["--local-dir", "/tmp/$(id)"], "--local-dir /tmp/$(id): expected a path without blanks, such as $TMPDIR"),
        (["--local-dir", "/tmp", "--sweep", "data.path=t.npz,y.npy"], "the data of all runs must be the same"),
        (["--local-dir", "/tmp", "--set", "problem={python: 'a:b'}", "--set", "data=null"], "the YAML has no data"),
        (["--local-dir", "/tmp", "--set", "data={python: 'a:b'}"], "--local-dir: copies the files of data.path, but "),
        (["--set", "initial=nowhere.npy"], f"initial: nowhere.npy: {MISSING}"),
        (["--set", f"initial={LONG}"], f"initial: {LONG}: file name too long"),
        (["--output", "run.yaml/x"], "run.yaml/x: cannot be written: "),
        (["--scheduler", "pbs", "--local-dir", "/tmp"], "--local-dir: copies with SLURM's sbcast; with other "),
        (
            ["--scheduler", "pbs", "--option=-lmem=2"],
            "--option -lmem=2: expected qsub's, such as '-l place=scatter:excl'",
        ),
        (
            ["--scheduler", "lsf", "--time", "1:30", "--warning", "70"],
            "expected more than the 120 seconds of --warning",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(submit, arguments, said):
    Path("train.py").touch()
    program = arguments if arguments[0].endswith(".py") else ["run.yaml", *arguments]
    code, out, err = submit(program[0], *PLAIN[1:], *program[1:])
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("usage: ") or err.count("\n") == 1
    assert {path.name for path in Path().iterdir()} == {"run.yaml", "train.py", "data", *DATA[1:]}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("90:30", 5430), ("2:00:05", 7205), ("1-12", 129600), ("1-00:30", 88200), ("1-02:03:04", 93784)],
)
def test_times_are_read_as_slurm_reads_them(text, seconds):
    assert Job(SCHEDULERS["pbs"], nodes=1, ranks_per_node=2, time=text, name="x").seconds() == seconds


# local copies


def test_data_is_copied_to_every_node_first(submit):
    Path("run.yaml").write_text(RUN.replace("t.npz", "my test.npz"))
    lines = written(submit, "--local-dir", "${TMPDIR}/x", "--set", "data.labels=y.npy")
    words, before, _ = executed(lines, TMPDIR="/local disk", SLURM_JOB_ID="7")
    copies = {
        "data.path": "/local disk/x/psgc-7-data-path.npz",
        "data.labels": "/local disk/x/psgc-7-data-labels.npy",
        "data.test": "/local disk/x/psgc-7-data-test.npz",
    }
    assert before.split("|")[:-1] == [
        f"sbcast --force {source} {copy}"
        for source, copy in zip(["data/train.npz", "y.npy", "my test.npz"], copies.values(), strict=True)
    ]
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    data = load("run.yaml", overrides).data.model_dump(exclude={"index_base"})
    assert {f"data.{key}": value for key, value in data.items() if value} == copies


def test_the_copies_are_removed_when_the_run_has_ended(submit):
    lines = written(submit, "--local-dir", "/local")
    _, _, after = executed(lines, SLURM_JOB_ID="7")
    removes = "rm -f /local/psgc-7-data-path.npz /local/psgc-7-data-test.npz"
    srun = f"srun --immediate=60 --nodes=2 --ntasks=2 --ntasks-per-node=1 {removes}"
    assert after.endswith(srun)
    assert not any("exec " in line for line in lines)
    cut_off = ["sbcast() { return 3; }", *FAKES[1:], "srun() { return 1; }", 'rm() { echo "rm $*"; }', *lines]
    run = partial(subprocess.run, capture_output=True, text=True, env=os.environ | {"SLURM_JOB_ID": "7"}, timeout=20)
    ended = run(["bash", "-c", "\n".join(cut_off)])
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, f"{removes}\n", "")


def has_traps(pid):
    """Whether the script at `pid` has all its traps: the last one is for SIGUSR1, which it ignores before."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM", "USR1"])
def test_a_script_that_removes_copies_passes_signals_on_and_ends_as_psgc_launch_does(submit, name):
    lines = written(submit, "--local-dir", "/local")
    code = (
        "import signal, sys, time; heard = []\n"
        f"signal.signal(signal.SIG{name}, lambda *_: heard.append(0)); print('begun', flush=True)\n"
        "for _ in range(500): heard or time.sleep(0.01)\n"
        "time.sleep(0.3); print('told' if heard else 'not told', flush=True); sys.exit(5)"
    )
    psgc = f"psgc() {{ exec {shlex.join([sys.executable, '-c', code])}; }}"
    command = ["bash", "-c", "\n".join([*FAKES[:2], psgc, *lines])]
    environ = os.environ | {"SLURM_JOB_ID": "7"}

    def usual() -> None:  # the tests may run in the background, where Ctrl-C is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, preexec_fn=usual) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.endswith("begun\n"):
                wait_for(lambda: has_traps(process.pid))
                process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.wait(20) == 5
    assert [line.split()[0] for line in said[1:]] == ["told", "srun"]


def test_no_option_of_the_script_can_be_given_again():
    asked = {"nodes": 2, "ranks_per_node": 3, "time": "2:00:00", "name": "n"}
    for scheduler in SCHEDULERS.values():
        job = Job(scheduler, **asked, gpus_per_rank=1, partition="p", account="a")
        for option in scheduler.directives(job, 4):
            if option == "-l place=scatter":  # a default
                continue
            with pytest.raises(UserError, match=" is set by psgc submit"):
                Job(scheduler, **asked, options=(option.replace('"', ""),))


# other schedulers

# What a directive of theirs may look like, as qsub(1B) of OpenPBS and the pages of bsub of LSF 10.1 say.
GRAMMAR = {
    "pbs": r"""-N [\w.+-]{1,236}|-l select=\d+(:(ncpus|mpiprocs|ngpus)=\d+)+|-l place=(scatter|pack|free)(:excl)?|
        -l walltime=\d+:\d\d:\d\d|-q \w+|-A \w+|-S /bin/bash|-j (oe|eo|n)|-o \S+|-r [yn]|
        -W tolerate_node_failures=(all|job_start|none)""",
    "lsf": r"""-J ([\w.+-]+|"[\w.+-]+\[\d+-\d+\]")|-n \d+|-R ("span\[ptile=\d+\]"|rusage\[mem=\w+\])|-W \d+:\d\d|
        -gpu "num=\d+"|-q \w+|-P \w+|-o \S+|-r|-wa [A-Z0-9]+|-wt \d+""",
}  # fmt: skip
IN_JOB = {
    "pbs": {"PBS_JOBID": "12[1].server", "PBS_ARRAY_INDEX": "1", "PBS_NODEFILE": "nodes", "PBS_O_WORKDIR": "."},
    "lsf": {"LSB_JOBID": "12", "LSB_JOBINDEX": "2", "LSB_DJOB_HOSTFILE": "nodes"},
}
BY_HAND = {"pbs": "qsub -J 0-2 runs/a.pbs", "lsf": "bsub < runs/a.lsf"}


@pytest.mark.parametrize("scheduler", GRAMMAR)
def test_the_script_for_another_scheduler(submit, scheduler):
    other = {"pbs": "--option=-l place=scatter:excl", "lsf": "--option=-R rusage[mem=8GB]"}[scheduler]
    asked = ["--cpus-per-rank", "2", "--gpus-per-rank", "1", "--queue", "main", "--account", "a", "--warning", "90"]
    sweep = ["--sweep", "seed=1,2,3"]
    code, out, err = submit(*PLAIN, "--scheduler", scheduler, other, *asked, *sweep)
    assert (code, err) == (0, "")
    assert out == f"runs/a.{scheduler}: 3 runs on 2 x 3 ranks; submit it with: {BY_HAND[scheduler]}\n"
    lines = Path(f"runs/a.{scheduler}").read_text().splitlines()
    prefix = {"pbs": "#PBS ", "lsf": "#BSUB "}[scheduler]
    found = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    assert all(re.fullmatch(re.sub(r"\n\s+", "", GRAMMAR[scheduler]), directive) for directive in found), found
    expected = {
        "pbs": {
            "-l select=2:ncpus=6:mpiprocs=3:ngpus=3",
            "-l walltime=2:00:00",
            "-r y",
            "-l place=scatter:excl",
            "-W tolerate_node_failures=all",
        },
        "lsf": {'-J "run[1-3]"', "-n 12", '-R "span[ptile=6]"', "-W 2:00", '-gpu "num=3"', "-wa USR1", "-wt 2", "-r"},
    }
    assert expected[scheduler] <= set(found)
    Path("nodes").write_text("n1\n" * 3 + "n2\n" * 3)

    def words(again="", **environ):
        here = [line for line in lines if line != 'exec >> "$log" 2>&1']
        here.insert(-1, "printenv PSGC_AGAIN")
        words, first_job, _ = executed(here, **IN_JOB[scheduler], **environ)
        assert first_job.strip() == again
        return words[words.index("psgc") :]

    output = ["--set", "seed=2", "--set", "output=runs/a/1_seed=2"]
    warning = {"pbs": "90", "lsf": "120"}[scheduler]
    begin = ["psgc", "launch", "run.yaml", "-n", "6", "--host", "n1:3,n2:3", *output, "--requeue", warning]
    assert words() == begin
    Path({"pbs": "run-12[1].log", "lsf": "run-12_2.log"}[scheduler]).touch()  # it has run before
    assert words({"pbs": "12[1].server", "lsf": "12"}[scheduler]) == begin
    if scheduler == "pbs":  # a job that another one has submitted
        assert " --signal=USR1 7110 psgc " in lines[-1]
        assert words("7[2].server", PSGC_AGAIN="7[2].server") == begin
        Path("run-12[1].log").unlink()
        assert "seed=3" in words("7[2].server", PSGC_AGAIN="7[2].server", PSGC_RUN="2")


def test_the_job_that_goes_on_in_pbs_runs_what_was_submitted(submit, tmp_path):
    """Another `psgc submit` may have written the script anew by then. PBS runs a copy of its own."""
    assert submit(*PLAIN, "--scheduler", "pbs", "--output", "my job.pbs")[0] == 0
    *lines, _ = Path("my job.pbs").read_text().splitlines()
    (tmp_path / "the spool").mkdir()
    copy = tmp_path / "the spool/12.server.SC"
    copy.write_text("\n".join([line for line in lines if not line.startswith("exec ")] + ['echo "$PSGC_SCRIPT"']))

    def script(*command, **of_process):
        environ = {"PATH": os.environ["PATH"], **IN_JOB["pbs"], "PBS_O_WORKDIR": str(tmp_path)}
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20, **of_process).stdout

    Path("nodes").touch()
    assert script("bash", str(copy), cwd="/") == f"{copy}\n"
    with copy.open() as stdin:  # other versions may let the shell read it so
        assert script("bash", stdin=stdin) == "my job.pbs\n"
    with copy.open() as stdin:
        assert script("-bash", executable=shutil.which("bash"), stdin=stdin) == "my job.pbs\n"


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_shellcheck_finds_nothing(submit, scheduler):
    local = [["--local-dir", "$TMPDIR"]] if scheduler == "slurm" else []
    for more in ([], ["--sweep", "seed=1,2"], *local):
        assert submit(*PLAIN, "--scheduler", scheduler, *more, "--output", "s")[0] == 0
        checked = subprocess.run(["shellcheck", "s"], capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stdout


def test_a_script_that_the_user_has_written_stays(submit):
    Path("train.py").touch()
    Path("train.sbatch").write_text("#!/bin/bash\n#SBATCH --time=1:00\n\n# Written by: psgc\nsrun python train.py\n")
    before = Path("train.sbatch").read_bytes()
    said = "would be replaced, and psgc has not written this file; give --output FILE"
    assert submit("train.py", *PLAIN[1:]) == (2, "", f"psgc: train.sbatch: {said}\n")
    assert Path("train.sbatch").read_bytes() == before
    assert submit("train.py", *PLAIN[1:], "--output", "train.sbatch")[0] == 0
    assert submit("train.py", *PLAIN[1:], "--name", "again")[0] == 0  # its own it writes anew
    assert "#SBATCH --job-name=again" in Path("train.sbatch").read_text()


# submitting


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("cp $1 submitted; echo Submitted batch job 12", 0,
         "job 12: a run on 2 x 3 ranks, script runs/a.sbatch, log run-12.log\n"),
        ("echo 'sbatch: error: Invalid qos' >&2; exit 1", 2, "psgc: SLURM refuses runs/a.sbatch: Invalid qos\n"),
        ("echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1", 1,
         "psgc: SLURM does not work: Unable to contact slurm controller\n"),
    ],
)  # fmt: skip
def test_go_submits_it(submit, tmp_path, monkeypatch, body, code, said):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (sbatch := tmp_path / "bin/sbatch").write_text(f"#!/bin/sh\n{body}\n")
    sbatch.chmod(0o755)
    assert submit(*PLAIN, "--go") == ((0, said, "") if code == 0 else (code, "", said))
    if code == 0:
        assert Path("submitted").read_text() == Path("runs/a.sbatch").read_text()
        _, out, _ = submit(*PLAIN, "--go", "--sweep", "seed=1,2")
        assert out == "job 12: 2 runs on 2 x 3 ranks, script runs/a.sbatch, log run-12_*.log\n"


# the examples


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_what_psgc_submit_writes(example, monkeypatch, psgc_command, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("scripts").symlink_to(ROOT / "scripts")
    Path("data").mkdir()
    for name in ("flights-train", "flights-test", "digits-train", "digits-test"):
        Path(f"data/{name}.npz").touch()
    monkeypatch.setattr("psgc.launching.scheduler.PROGRAM", Path(".venv/bin/psgc"))
    assert len(EXAMPLES) == 5
    text = example.read_text()
    arguments = shlex.split(text.splitlines()[1].removeprefix("# Written by: psgc "))
    place = arguments.index("--output") + 1
    assert arguments[place] == f"scripts/jobs/{example.name}"
    arguments[place] = str(tmp_path / "s")
    assert psgc_command(*arguments)[0] == 0
    written = (tmp_path / "s").read_text().replace(str(tmp_path / "s"), f"scripts/jobs/{example.name}")
    assert written.splitlines()[2:] == text.splitlines()[2:]
