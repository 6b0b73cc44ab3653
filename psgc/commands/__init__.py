"""What the commands of `psgc` take, and what runs them.

A new command is a function in one of these modules, its name below, and an example in `psgc.cli`. Everything heavy is
imported by the functions that need it, since every rank of a run starts as `psgc train`.
"""

from psgc.commands import planning, results, training

ADD = (
    training.add_train,
    training.add_launch,
    training.add_sweep,
    training.add_submit,
    planning.add_doctor,
    results.add_report,
    results.add_compare,
    planning.add_simulate,
    results.add_replay,
    planning.add_order,
)
