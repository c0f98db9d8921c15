"""The oracle at length: random conditions and documents, mongod's answers beside our two paths'."""

import functools
import random
import time
from collections.abc import Iterator

from benchmarks.report import Result
from flagkit._core.evaluation.matching import matches
from flagkit.testing.embedded import EmbeddedMongo
from tests.support.mongod_oracle import (
    CONDITION_COUNT,
    DOCUMENT_COUNT,
    compile_condition,
    iter_questions,
    open_attribute_collection,
)

ROUND_PAIRS = 1_000_000


def soak(pairs: int, seed: int) -> Iterator[Result]:
    """Compare in rounds of ROUND_PAIRS, each seeded by itself, until there were `pairs`."""
    with EmbeddedMongo() as server:
        for done in range(0, pairs, ROUND_PAIRS):
            started = time.monotonic()
            count = min(ROUND_PAIRS, pairs - done)
            differences = 0
            round_seed = f"{seed} {done}"
            with open_attribute_collection(server.uri) as collection:
                batch_count = -(-count // (DOCUMENT_COUNT * CONDITION_COUNT))
                for question in iter_questions(collection, random.Random(round_seed), batch_count):
                    matcher = functools.partial(matches, question.parsed)
                    for path in (matcher, compile_condition(question.parsed)):
                        difference = question.disagreement(path)
                        if difference is not None:
                            differences += 1
                            print(f"  round of seed {round_seed!r}: {difference}")
            yield Result(
                benchmark="oracle",
                case=f"differences, up to pair {done + count:,}",
                value=differences,
                unit="",
                bound=0,
                details={"seconds": round(time.monotonic() - started, 1)},
            )
