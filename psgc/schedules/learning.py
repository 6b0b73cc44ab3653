"""What `dynamic` learns from reports: how fast workers are, how late reports are, and whether paces last."""

from collections.abc import Collection

from psgc.schedules.progress import Worker

TRUSTED = 0.08  # surprise up to which the paces of one iteration are used in the next
LEARNING_RATE = 0.25  # weight of a worker's newest chunk in its pace
RISE, FALL = 0.25, 0.02  # weight of a chunk in the spread, when it took longer and when not
LAG_RATE = 0.25  # weight of the newest report in the lag
LAG_STEP = 1e-4  # seconds; a report counts as at most this late, or as twice the lag


class Learning:
    """Lasts from one iteration to the next. The paces themselves are with the workers.

    lag: seconds from the end of a chunk until the server handles its report, smoothed.
    spread: how many times as long as expected the longest chunks take, of workers that are no slower than before.
    """

    def __init__(self) -> None:
        self.lag = 0.0
        self.spread = 1.0
        self._surprise = 0.0  # how far paces are from those of the iteration before, as a share; a weighted mean

    def trusts_paces(self, workers: Collection[Worker], seconds: float) -> bool:
        """Whether the paces of the iteration that is over are a guide for the next; seconds: until its last report."""
        for worker in workers:
            before = worker.mean
            if worker.reports:  # the mean: single chunks of a worker that shares its processor differ much
                worker.mean = worker.sum / worker.reports
            elif before is not None and before < seconds:  # it was expected to report
                worker.mean = seconds
            if before is not None and worker.mean is not None:  # less than the lag is no difference
                change = max(0.0, abs(worker.mean - before) - self.lag) / max(worker.mean, before, 1e-300)
                self._surprise += (change - self._surprise) / len(workers)
        return self._surprise <= TRUSTED

    def learn(self, worker: Worker, pace: float, late: float) -> float:
        """`worker` took `pace` seconds per average chunk, and its report was `late` seconds late: its new pace."""
        if worker.reports and worker.pace:
            times = min(pace / worker.pace, 2 * self.spread)  # once is no rule
            self.spread += (RISE if times > self.spread else FALL) * (max(1.0, times) - self.spread)
        worker.sum += pace
        old = pace if worker.pace is None else worker.pace
        worker.pace = old + LEARNING_RATE * (pace - old)
        # a single worker whose reports take long says nothing about the server
        self.lag += LAG_RATE * (min(late, max(2 * self.lag, LAG_STEP)) - self.lag)
        return worker.pace
