"""The commands before a training: `psgc doctor`, `psgc simulate` and `psgc order`."""

from psgc.commands.parser import Commands, Options, hosts, settings


def add_doctor(commands: Commands) -> None:
    text = "test this machine: MPI, GPU, SLURM, disk, and what a run would survive"
    add = commands.add("doctor", doctor, text, [hosts("test these hosts")], limits_threads=False)
    add("output", nargs="?", default="runs", help="directory that runs will write to (default: runs)")
    add("-n", type=int, dest="ranks", metavar="RANKS", help="number of ranks of the planned run")


def doctor(options: Options) -> int:
    from psgc.diagnosis.doctor import doctor
    from psgc.launching.mpirun import Placement

    return doctor(options.output, options.ranks, Placement(options.host, options.hostfile))


def add_simulate(commands: Commands) -> None:
    simulation = settings("sim.yaml", "settings of the simulation, see scripts/simulate.yaml", "trials=100")
    text = "compare schedules on random, given or recorded speeds"
    add = commands.add("simulate", simulate, text, [simulation])
    add("--json", metavar="FILE", help="write the table to FILE as JSON")
    add("--plot", metavar="FILE", help="draw the table to FILE (.png, .pdf, .svg; needs matplotlib)")


def simulate(options: Options) -> int:
    from psgc.simulation.command import simulate

    return simulate(options.config, options.overrides, options.json, options.plot)


def add_order(commands: Commands) -> None:
    text = "order the queues of an assignment matrix; print Q_max and its lower bound"
    add = commands.add("order", order, text)
    add("assignment", metavar="assignment.npy", help="0/1 matrix, chunks x workers (.npy or sparse .npz)")
    add("--parts", type=int, metavar="L", help="number of parts to order for (default: every possible number)")
    add("--output", metavar="FILE", help="write the position of each chunk to FILE (.npy or sparse .npz)")


def order(options: Options) -> int:
    from psgc.ordering_command import order

    return order(options.assignment, options.parts, options.output)
