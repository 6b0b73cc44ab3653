from unittest import mock

import pytest

from psgc.cli import main
from tests.unit.computing import chunk_clock as chunk_clock
from tests.unit.computing import compute as compute
from tests.unit.fake_mpirun import mpirun as mpirun
from tests.unit.recording import recorder_in as recorder_in
from tests.unit.scripted_run import make_run as make_run
from tests.unit.served_run import folder as folder
from tests.unit.watched import run_before as run_before


@pytest.fixture
def psgc_command(capsys):
    """The command `psgc` in this process: exit code, stdout, stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([*map(str, arguments)])
        return caught.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def one_process(monkeypatch):
    """Runs of psgc.torch have this process alone, and tests end them: what looks at the end of each."""
    from psgc.run import launched
    from psgc.torch import begin

    for name in (*launched.RANKS, launched.RESUME):
        monkeypatch.delenv(name, raising=False)
    endings = []
    monkeypatch.setattr(begin, "ScriptEnding", lambda: endings.append(mock.Mock()) or endings[-1])
    return endings
