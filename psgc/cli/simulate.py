"""`psgc simulate`: compare schedules in simulation."""

from psgc.cli import Options, Parser, add_json, add_plot, add_settings
from psgc.simulation.command import simulate


def add_arguments(parser: Parser) -> None:
    add_settings(parser, "sim.yaml", "settings of the simulation, see scripts/simulate.yaml", "trials=100")
    add_json(parser)
    add_plot(parser, "table")


def run(options: Options) -> int:
    return simulate(options.config, options.overrides, options.json, options.plot)
