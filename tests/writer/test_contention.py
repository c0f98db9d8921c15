"""Four writer processes at once, twelve of them killed, and a client that follows."""

import pytest

from tests.soak.writers import measure_longest_gap, run


@pytest.mark.mongo
def test_five_hundred_revisions_by_writers_that_are_killed(mongo_uri: str) -> None:
    story, problems = run(mongo_uri, changes=500, kills=12, between=3, writers=4, flags=12, seed=1)
    assert problems == []
    assert story.kills >= 12
    assert story.between >= 3
    assert len(story.acknowledged) >= 500
    # Nobody waits for the dead: there is no spell in which a killed writer holds up the others.
    assert measure_longest_gap(story) < 1
