"""`psgc launch train.py` under a real mpirun: scripts that end before psgc.torch.init, on one rank or on all."""

import os
import signal
from pathlib import Path

import pytest

from tests.ranks.mpirun import MpiRun, psgc, run
from tests.ranks.test_train import wait_until

# What psgc.torch.init does as far as other ranks notice it, without torch.
SCRIPT = """
import os, sys, threading, time
from pathlib import Path
import helper  # beside the script
from psgc.errors import RunFailed, UserError
from psgc.run import launched, meeting
from psgc.transport import Transport

rank, (how, ranks) = int(os.environ["OMPI_COMM_WORLD_RANK"]), sys.argv[1:]
if ranks == "all" or str(rank) in ranks:
    if how == "raise": raise helper.Strange("no\\ndata")
    if how == "refuse": raise UserError("chunks=0: expected more")
    if how == "exit": sys.exit(3)
    if how == "return": how = "over"
    if how == "kill": os.kill(os.getpid(), 9)
    if how == "wait": Path(f"waits{rank}").touch(); time.sleep(60)

def run():
    transport, code = None, 0
    try:
        transport = Transport()
        meeting.meet(transport)
        print(f"rank {rank} of {transport.size} trains", flush=True)
    except RunFailed as error:
        code = 1
        if rank == 0: print(f"psgc: {error}", file=sys.stderr, flush=True)
        if transport is None: os._exit(code if rank == 0 else 0)
        if not isinstance(error, meeting.NotAllCame): transport.leave(code if rank == 0 else 0)
    if rank == 0 and not code:
        Path(launched.name_directory(None), "summary.json").write_text('{"status": "done"}')
    transport.finalize()
    if code and rank == 0: time.sleep(0.2)
    transport.end(code if rank == 0 else 0)

if how != "over":
    launched.begin()
    threading.Thread(target=run).start()
"""
TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 11, in <module>\n'
EARLY = "psgc: the script of rank {} on {} ended before the others: "


def command(how, ranks, *options, size=3):
    return psgc("launch", "train.py", "-n", str(size), *options, "--", how, ranks)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("class Strange(Exception): pass\n")
    return tmp_path


CASES = [
    ("train", "all", 0, []),
    ("return", "all", 0, ["psgc launch: train.py has ended without a run: "]),
    ("exit", "all", 3, []),
    ("raise", "all", 1, ["\nhelper.Strange: no\ndata\n"]),
    ("refuse", "all", 2, ["psgc: chunks=0: expected more"]),
    ("return", "1", 1, [EARLY.format(1, "HOST") + "without an error"]),
    ("exit", "2", 1, [EARLY.format(2, "HOST") + "sys.exit(3)"]),
    ("raise", "2", 1, [EARLY.format(2, "HOST") + "Strange: no data (train.py:11)", "\nhelper.Strange: no\n"]),
    ("raise", "0", 1, [EARLY.format(0, "HOST") + "Strange: no data (train.py:11)", "\nhelper.Strange: no\n"]),
    ("refuse", "12", 1, ["psgc: the script of 2 ranks, first rank 1, ended before the others: chunks=0"]),
]
USUAL = [("exit", "all"), ("raise", "2")]


@pytest.mark.parametrize(
    ("how", "ranks", "code", "said", "options"),
    [
        *(pytest.param(*case, [], marks=[] if case[:2] in USUAL else pytest.mark.faults) for case in CASES),
        *(pytest.param(*case, ["--no-fault-tolerance"], marks=pytest.mark.faults) for case in CASES[6:9:2]),
    ],
)
def test_ends_before_init(folder, how, ranks, code, said, options):
    size = 2 if ranks == "all" else 3
    finished = run(command(how, ranks, *options, size=size), folder, timeout=30, code=code)
    for line in said:
        assert finished.stderr.count(line.replace("HOST", os.uname().nodename)) == 1, finished.said
    assert finished.stderr.count(TRACEBACK) == (how == "raise"), finished.said
    assert bool(finished.stderr) == bool(said), finished.said
    assert finished.stdout.count(f" of {size} trains\n") == (size if how == "train" else 0), finished.said


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_is_killed_before_init(folder, rank):
    finished = run(command("kill", str(rank)), folder, timeout=30, code=1)
    died = "psgc: rank 2 died while the run was being set up\n"
    lost = "psgc launch: the run failed: rank 0 or a host was lost: mpirun ended, but no rank 0 of the script has said"
    assert finished.stderr == died if rank else finished.stderr.startswith(lost), finished.said


@pytest.mark.faults
def test_a_script_that_is_stopped_before_init(folder):
    with MpiRun(command("wait", "2"), folder) as running:
        wait_until(lambda: Path(folder, "waits2").exists())
        os.kill(running.process.pid, signal.SIGINT)
        finished = running.wait(20, code=130)
    assert finished.stderr == "psgc launch: stopped by Ctrl-C (SIGINT); there is no checkpoint yet\n", finished.said


def test_ranks_on_named_hosts_have_their_share_of_the_cores(tmp_path):
    (tmp_path / "train.py").write_text('import os\nprint("threads", os.environ.get("MKL_NUM_THREADS"), flush=True)\n')
    share = max(1, min(os.cpu_count() // 2, len(os.sched_getaffinity(0))))
    finished = run(psgc("launch", "train.py", "-n", "2", "--host", "localhost:2"), tmp_path, timeout=30)
    assert finished.stdout.count(f"threads {share}\n") == 2, finished.said
