"""What both sides of a run open: the tags that vectors need."""

import pytest

from psgc.config import from_yaml_text
from psgc.messages import QUEUE_COUNTS
from psgc.plan import make_plan
from psgc.training.inputs import first_role, tags

RUN = "problem: {python: 'm:M'}\noptimizer: {kind: sgd, lr: 1}\niterations: 1\noutput: out\n"


@pytest.mark.parametrize("workers", [4, 20])
@pytest.mark.parametrize("verify", ["", "verify: {every: 2}\n"])
def test_whatever_stands_in_the_place_of_a_chunk_has_a_tag_of_its_own(workers, verify):
    config = from_yaml_text(RUN + verify)
    plan = make_plan(config.coding, config.schedule, workers, 0)
    limit, first = tags(config, plan), first_role(config, plan)
    roles = range(first + 1, first + workers + 1)
    assert limit > max(*roles, plan.num_chunks - 1, QUEUE_COUNTS - 1)
    assert not verify or roles[0] > plan.num_chunks - 1  # coded gradients of checked chunks come as well
