"""How ranks meet: whether their scripts have ended, and whether all have the same."""

import pytest

from psgc.run import meeting


class Gathered:
    def __init__(self, *texts):
        self.texts, self.hosts = list(texts), ["a", "b", "c"]

    def gather(self, text, doing="starting"):
        assert text in self.texts
        return self.texts


def test_ranks_that_meet():
    assert meeting.meet(Gathered("", "", "")) == ["", "", ""]
    assert meeting.meet(Gathered("ended 0 x", "ended 2 y"), "2 y") == ["0 x", "2 y"]
    one = "^the script of rank 1 on b ended before the others: ValueError: no$"
    for ended in ("", "1 ValueError: no"):
        with pytest.raises(meeting.NotAllCame, match=one):
            meeting.meet(Gathered("", "ended 1 ValueError: no", ""), ended)
    with pytest.raises(meeting.NotAllCame, match=r"^the script of 2 ranks, first rank 0, ended before .*: x$"):
        meeting.meet(Gathered("ended 0 x", "", "ended 1 y"))
