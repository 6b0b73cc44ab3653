"""`psgc report` on run directories that claim to be huge: one line each, and no more memory than for a small run."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from psgc.run_rows import OUTCOMES, TIMELINE
from tests.unit.recorded_runs import record

ROWS = 10_000_000  # entries of the timeline, 290 MB of them
HOLE = 5 << 30  # bytes of files that take no room on the disk
REPORT = """
import re, resource, sys
from psgc.cli import main
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # in case it goes wrong
for directory in sys.argv[1:]:
    try:
        main(["report", directory])
    except SystemExit as ended:
        print(ended.code, flush=True)
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def compressed_timeline(run):
    one = {"worker": 1, "chunk": 0, "iteration": 0, "start": 0.0, "seconds": 0.1, "outcome": 0}
    dtypes = {"start": "<f8", "seconds": "<f8", "outcome": "|i1"}
    with zipfile.ZipFile(run / "timeline.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in TIMELINE:
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.full(ROWS, one[name], dtypes.get(name, "<i4")))
        with archive.open("outcomes.npy", "w") as member:
            np.lib.format.write_array(member, np.array(OUTCOMES))
    assert os.path.getsize(run / "timeline.npz") < 3_000_000


def many_workers(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"workers": 1_000_000}))


def long_timeline(run):
    (run / "timeline.raw").write_bytes(b'{"format": 1, "workers": 3, "chunks": 6}\n')
    os.truncate(run / "timeline.raw", HOLE)


def long_rows(run):
    os.truncate(run / "iterations.csv", HOLE)


def long_summary(run):
    os.truncate(run / "summary.json", HOLE)


def long_head(run):
    (run / "timeline.raw").touch()
    os.truncate(run / "timeline.raw", HOLE)


CLAIMS = {
    compressed_timeline: "timeline.npz: damaged, or of another version of psgc: it is compressed",
    many_workers: "damaged: 1000000 workers in 30 iterations do not go with",
    long_timeline: "timeline.raw: damaged, or of another version of psgc (ValueError: its first entry is damaged)",
    long_rows: "(Error: a line is longer than",
    long_summary: "summary.json: damaged, or of another version of psgc (JSONDecodeError",
    long_head: "timeline.raw: damaged, or of another version of psgc (JSONDecodeError",
}


def test_what_is_not_there_takes_no_memory(tmp_path):
    honest = record(tmp_path / "honest", workers=3, chunks_per_worker=2, iterations=30)
    directories = []
    for claim in CLAIMS:
        directories.append(shutil.copytree(honest, tmp_path / claim.__name__))
        claim(directories[-1])
    command = [sys.executable, "-c", REPORT, *map(str, [honest, *directories])]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100)
    codes = re.findall(r"^\d$", found.stdout, re.MULTILINE)
    assert codes == ["0", *"2" * len(CLAIMS)], found.stderr
    for line, directory, said in zip(found.stderr.splitlines(), directories, CLAIMS.values(), strict=True):
        assert line.startswith(f"psgc: {directory}")
        assert said in line
    peak = int(found.stdout.split("peak ")[1])
    assert peak < 300_000  # kB; 140,000 for the honest run alone, with matplotlib
