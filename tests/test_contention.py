"""Four writer processes at once, ten of them killed, and a client that follows: nothing breaks."""

import pytest

from tests.soak.writers import longest_spell, run


@pytest.mark.mongo
def test_a_thousand_revisions_by_writers_that_are_killed(mongo_uri: str) -> None:
    story, problems = run(mongo_uri, changes=1000, kills=10, writers=4, seed=1)
    assert problems == []
    assert len(story.kills) == 10
    assert len(story.acknowledged) >= 1000
    # Nobody waits for the dead: there is no spell in which a killed writer holds up the others.
    assert longest_spell(story) < 1
