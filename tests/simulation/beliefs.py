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
    assert not it.bare
    assert it.workers.keys() == set(membership.live)
    for chunk in it.chunks:
        assert chunk.committed == watch.is_done_with(chunk.number)
        takers = {worker for worker in it.workers.values() if chunk in worker.told or chunk in worker.piece}
        assert set(chunk.takers) == takers
    for rank, worker in it.workers.items():
        does = {*worker.told, *worker.piece}
        assert worker.running is (worker.piece[0] if worker.piece else None)
        numbers = {chunk.number for chunk in does}
        assert numbers <= {*membership.held(rank)}
        assert not any(chunk.committed for chunk in worker.told)
        assert worker.running is not None or worker.is_delayed or not worker.told, "rests, but was told something"
        assert not (worker.running and worker.is_delayed)
        assert not worker.chosen or len(worker.told) == 1
        if watch.is_calm:
            assert all(worker in it.chunks[chunk].doers for w, chunk, _ in watch.heard if w == rank)
        _check_nothing_lost(world, rank, numbers)


def check_nobody_rests(world: Any) -> None:
    """While the schedule waits for reports that will not come, each worker that is well has done all that it can."""
    watch, coordinator = world.watch, world.watch.it
    if not isinstance(watch.schedule, DynamicSchedule) or coordinator.phase not in ("working", "redoing"):
        return
    napping = world.napping()
    for worker in coordinator.membership.live:
        node = world.nodes[worker]
        if worker in napping or not _is_up_to_date(world, worker) or node.work is not None or node.is_elsewhere:
            continue
        done = {chunk for w, chunk, n in watch.heard if w == worker and n == watch.attempts[chunk]}
        left = [chunk for chunk in coordinator.membership.held(worker) if not watch.is_done_with(chunk)]
        assert done.issuperset(left), f"worker {worker} rests, and could do {left}"


def _is_up_to_date(world: Any, worker: int) -> bool:
    """Whether it has begun the iteration, and nothing is on its way to it or from it."""
    node, links = world.nodes[worker], (world.links[0, worker], world.links[worker, 0])
    on_its_way = not all(link.is_empty for link in links) or worker in world.server.links.outbox.orders
    return not (node.dead or on_its_way or node.has_vectors or node.state.iteration < world.iteration)


def _check_nothing_lost(world: Any, worker: int, counted_on: set[int]) -> None:
    watch, node = world.watch, world.nodes[worker]
    if not _is_up_to_date(world, worker):
        return
    will = node.state.will_do
    if node.work is not None and node.work.iteration == world.iteration and not node.work.is_check:
        will.update(node.work.piece)
    counted_on = {chunk for chunk in counted_on if not watch.is_done_with(chunk)}
    assert counted_on <= will, "lost"
    assert not watch.is_calm or len(will - counted_on) <= 1, "does more than the one chunk that an order crossed"
