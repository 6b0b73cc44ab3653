"""The schedule `dynamic`, small enough to follow by hand, and what comes of reports."""

from psgc.schedules.dynamic import DynamicSchedule
from psgc.schedules.schedule import Pass


def holders_of(own, backups):
    """By chunk; own, backups: by worker, all that it holds."""
    chunks = {worker: {*own[worker], *backups[worker]} for worker in own}
    return [[w for w in chunks if i in chunks[w]] for i in sorted(set().union(*chunks.values()))]


def dynamic(own, backups, estimates=(), lag=0.0, **arguments):
    schedule = DynamicSchedule(own, backups, holders_of(own, backups), **arguments)
    schedule.estimates.update(estimates)
    schedule.learning.lag = lag
    return schedule


def done(schedule, worker, chunk, now, seconds=1.0, others=(), late=0.0):
    """What comes of a report that is alone, when one copy is enough; others: who has not reported the chunk."""
    assert list(schedule.counts(worker, chunk)) == [chunk]
    orders = schedule.committed(chunk, others) + schedule.freed(Pass(worker, (chunk,), now, seconds, late=late))
    return orders + (schedule.tick(now) if schedule.wake <= now else [])
