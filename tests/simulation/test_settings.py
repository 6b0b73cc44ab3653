"""The simulation's YAML: what stands in it, and one line for whatever is wrong."""

from pathlib import Path

import pytest

from psgc.errors import UserError
from psgc.simulation.settings import (
    BuiltAssignment,
    Exponential,
    NetworkSettings,
    Pareto,
    ShiftedExponential,
    SpeedsFile,
    Trace,
    TwoSpeed,
    load,
)

SIMULATION = """\
assignment: {kind: cyclic, chunks: 20, workers: 20, load: 8}
speeds:
  kind: exponential
  failed: load - parts
"""


@pytest.fixture
def sim_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("sim.yaml").write_text(SIMULATION)
    return "sim.yaml"


def test_defaults(sim_yaml):
    loaded = load(sim_yaml)
    assert loaded.assignment == BuiltAssignment(kind="cyclic", chunks=20, workers=20, load=8)
    assert loaded.speeds == Exponential(kind="exponential", mean=1.0, failed="load - parts")
    assert (loaded.parts, loaded.trials, loaded.deadlines, loaded.bound, loaded.seed) == ([1], 1000, [], False, 0)
    assert loaded.schedules == ["uncoded", "full", "static", "skipping", "dynamic"]
    assert loaded.clock is None
    assert loaded.known_speeds is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["per_host=3"], "8 workers are no whole hosts of 3"),
        (["per_host=2", "parts=[2]"], "with parts 1"),
        (["per_host=2", "programs=[server]"], "allreduce and coded_allreduce"),
        (["network.slow=2", "workers=[2048]"], "expected <= 1024 links when they differ"),
        (["network.slow=0.5"], "expected a number >= 1"),
    ],
)
def test_hosts_and_slow_links_that_cannot_be(tmp_path, changes, said):
    path = tmp_path / "network.yaml"
    path.write_text("network: {rate: 1, latency: 0, dim: 1, itemsize: 1}\nworkers: [8]\nprograms: [allreduce]\n")
    with pytest.raises(UserError, match=said):
        load(path, changes)


def test_passes_over_several_chunks_need_one_part(sim_yaml):
    with pytest.raises(UserError, match="several chunks are done in one pass with parts 1 alone"):
        load(sim_yaml, ["pass_cost=1", "parts=[2]"])


def test_known_speeds_need_a_schedule_that_uses_them(sim_yaml):
    with pytest.raises(UserError, match=r"known_speeds=0\.1: only the schedule dynamic uses it"):
        load(sim_yaml, ["schedules=[static, skipping]", "known_speeds=0.1"])


def test_the_example_in_scripts_is_valid():
    example = load(Path(__file__).parents[2] / "scripts/simulate.yaml")
    assert example.parts == [1, 2, 3]
    assert "dynamic" in example.schedules


def test_every_kind_of_speeds(sim_yaml):
    for speeds in (
        Pareto(kind="pareto", shape=1.5, minimum=1.0),
        TwoSpeed(kind="two_speed", fast=1.0, slow=10.0, slow_fraction=0.1, failed=2),
        ShiftedExponential(kind="shifted_exponential", shift=1.0, mean=2.0),
        Trace(kind="trace", path="t.npy"),
        SpeedsFile(kind="file", path="S.npy", failed="load"),
    ):
        said = ", ".join(f"{key}: {value}" for key, value in speeds.model_dump(exclude_defaults=True).items())
        assert load(sim_yaml, [f"speeds={{{said}}}"]).speeds == speeds


KINDS = "exponential, shifted_exponential, pareto, two_speed, trace, chunk_trace or file"
WHOLES = "a list of at least one whole number >= 1"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("parts=[]", f"expected {WHOLES}, got a list"),
        ("schedules=static", "expected a list of at least one schedule, got 'static'"),
        (
            "schedules=[dynamc]",
            "schedules.0: expected uncoded, full, random, static, skipping or dynamic, got 'dynamc'",
        ),
        ("speeds.kind=paretto", f"expected {KINDS}, got 'paretto'"),
        ("speeds.mean=-1", "expected a number > 0, got -1"),
        ("speeds={kind: pareto}", "speeds.shape: missing, expected a number >= 0.25, the smaller the heavier the tail"),
        ("speeds={kind: two_speed, slow: 2, slow_fraction: 1}", "expected a number >= 0 and < 1, got 1"),
        ("speeds.failed=-1", "expected a whole number >= 0, load, load - 1 or load - parts, got -1"),
        ("speeds.failed=load + 1", "expected a whole number >= 0, load, load - 1 or load - parts, got 'load + 1'"),
        ("assignment.kind=circle", "expected blocks, cyclic, fractional, graph or file, got 'circle'"),
        ("assignment={kind: file}", "assignment.path: missing, expected a .npy file with a 0/1 matrix"),
        ("clock=0", "expected a number > 0, got 0"),
        ("known_speeds=well", "expected a number >= 0, got 'well'"),
    ],
)
def test_refused_overrides(sim_yaml, override, said):
    with pytest.raises(UserError) as caught:
        load(sim_yaml, [override])
    text = str(caught.value)
    assert text.startswith(f"--set {override}: ")
    assert said in text
    assert len(text.splitlines()) == 1


def test_a_file_is_refused_with_its_line(sim_yaml):
    Path(sim_yaml).write_text(SIMULATION + "  men: 1\n")
    with pytest.raises(UserError, match=r"^sim\.yaml:5: speeds\.men: unknown key, did you mean 'mean'"):
        load(sim_yaml)


NETWORK = """\
network: {rate: 25e6, latency: 1e-4, dim: 1000000, itemsize: 4}
workers: [8, 64]
"""


@pytest.fixture
def network_yaml(sim_yaml) -> str:
    Path(sim_yaml).write_text(NETWORK)
    return sim_yaml


def test_defaults_of_a_network(network_yaml):
    loaded = load(network_yaml)
    assert isinstance(loaded, NetworkSettings)
    assert (loaded.network.rate, loaded.network.latency) == (25e6, 1e-4)
    assert (loaded.workers, loaded.programs) == ([8, 64], ["allreduce", "server", "coded_allreduce"])
    assert (loaded.parts, loaded.chunks_per_worker) == ([1], 8)


def test_the_network_in_scripts_is_valid():
    assert load(Path(__file__).parents[2] / "scripts/network.yaml").workers == [8, 64, 512, 4096]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("network.rat=1", "unknown key, did you mean 'rate'?"),
        ("network.rate=0", "expected a number > 0, got 0"),
        (
            "network=fast",
            "expected a mapping, for example {rate: 25e6, latency: 1e-4, dim: 1000000, itemsize: 4}, got 'fast'",
        ),
        ("network={rate: 1}", "network.latency: missing, expected seconds that a message takes besides"),
        ("workers=8", "expected a list of at least one whole number >= 1, got 8"),
        ("workers=[9, 200000]", "200000 workers x 8 chunks x 1 parts are 1600000 reports, expected <= 1000000"),
        ("network.itemsize=17", "expected a whole number >= 1 and <= 16, got 17"),
        ("programs=[ring]", "programs.0: expected allreduce, server or coded_allreduce, got 'ring'"),
        ("parts=[2, 9]", "9 parts need as many workers, got 8"),
        ("trials=3", "unknown key, expected one of network, workers, programs, parts, chunks_per_worker"),
    ],
)
def test_refused_overrides_of_a_network(network_yaml, override, said):
    with pytest.raises(UserError) as caught:
        load(network_yaml, [override])
    assert str(caught.value).startswith(f"--set {override}: ")
    assert said in str(caught.value)


def test_an_allreduce_does_not_care_for_parts(network_yaml):
    assert load(network_yaml, ["programs=[allreduce]", "parts=[9]"]).parts == [9]
