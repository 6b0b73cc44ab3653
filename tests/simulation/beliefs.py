"""What the schedule `dynamic` believes of its workers: without contradictions, and what they are going to do."""

from typing import Any

from psgc.schedules.dynamic import DynamicSchedule


def check_beliefs(world: Any) -> None:
    """Nothing to check with another schedule, or when nothing is left to do."""
    watch, coordinator = world.watch, world.watch.it
    it = watch.schedule
    if not isinstance(it, DynamicSchedule) or coordinator.phase not in ("working", "redoing"):
        return
    membership = coordinator.membership
    assert not it._bare
    assert it._own.keys() == set(membership.live)
    for chunk, holders in enumerate(membership.holders):
        assert it._committed[chunk] == watch.is_done_with(chunk)
        if watch.is_calm:
            assert it._started[chunk] == sum(chunk in it._taken[worker] for worker in holders)
    for worker in membership.live:
        told, taken, running = it._told[worker], it._taken[worker], it._running[worker]
        assert {*told, *taken} <= {*membership.held(worker)}
        assert not taken & told.keys()
        assert not any(it._committed[chunk] for chunk in told)
        assert running is None or running in taken or watch.attempts[running]
        assert running is not None or not told, "rests, but was told something"
        assert worker not in it._chosen or len(told) == 1
        if watch.is_calm:
            assert {chunk for w, chunk, _ in watch.heard if w == worker} <= taken
        _check_nothing_lost(world, worker, {chunk for chunk in (running, *told) if chunk is not None})


def _check_nothing_lost(world: Any, worker: int, counted_on: set[int]) -> None:
    watch, node = world.watch, world.nodes[worker]
    end = node.end
    on_its_way = end.params or end.control or end.sent or end.vectors or world.server._links.outbox.waits(worker)
    if node.dead or on_its_way or node.state.iteration < world.iteration:
        return
    will = {*node.state._queue}
    if node.work is not None and node.work.iteration == world.iteration:
        will.add(node.work.chunk)
    counted_on = {chunk for chunk in counted_on if not watch.is_done_with(chunk)}
    assert counted_on <= will, "lost"
    assert not watch.is_calm or len(will - counted_on) <= 1, "does more than the one chunk that an order crossed"
