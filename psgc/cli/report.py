"""`psgc report`: figures and an HTML page about a run."""

from psgc.cli import Options, Parser, whole


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("directory", metavar="RUN_DIR", help="run directory, for example runs/quickstart")
    add("--iteration", type=whole, metavar="K", help="show iteration K in detail (default: the slowest)")
    add("--output", metavar="DIR", help="write to DIR (default: RUN_DIR/report)")
    add("--watch", action="store_true", help="write the page again while the run goes on, until it ends or Ctrl-C")
    add("--tensorboard", action="store_true", help="also write event files for TensorBoard")


def run(options: Options) -> int:
    from psgc.tools.report import report  # needs matplotlib, which the help can do without

    return report(options.directory, options.iteration, options.output, options.tensorboard, options.watch)
