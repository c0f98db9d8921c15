"""Where keys fall: a map that no version, process or platform may change."""

import json
import os
import subprocess
import sys
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagkit._core.evaluation.bucketing import (
    HASHES,
    compute_bucket,
    compute_seed,
    compute_threshold,
    hash_key,
)
from flagkit._core.model.keys import to_bucketing_key
from flagkit._core.model.rollouts import BUCKETS

GOLDEN = Path(__file__).parents[1] / "golden" / "buckets.json"


class Vector(TypedDict):
    """`hash` is a decimal number as text, since not every language has 64-bit numbers in JSON."""

    salt: str
    key: str
    hash: str
    bucket: int


VECTORS: list[Vector] = json.loads(GOLDEN.read_text("utf-8"))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["hash"])
def test_golden_vectors_never_change(vector: Vector) -> None:
    hash_seed = compute_seed(vector["salt"])
    assert hash_key(hash_seed, vector["key"]) == int(vector["hash"])
    assert compute_bucket(hash_seed, vector["key"]) == vector["bucket"]


def test_the_golden_vectors_hold_what_is_hard() -> None:
    keys = [vector["key"] for vector in VECTORS]
    assert len(VECTORS) >= 40
    assert {"", "\0", "é", "e\u0301", "😀", "\ud800"} <= set(keys)
    assert max(map(len, keys)) > 1000
    assert len({(vector["salt"], vector["key"]) for vector in VECTORS}) == len(VECTORS)


def test_a_lone_surrogate_hashes_as_the_bytes_that_utf_8_would_give_it() -> None:
    assert hash_key(compute_seed("s"), "\ud800") != hash_key(compute_seed("s"), "?")
    assert hash_key(compute_seed("s"), "\ud83d\ude00") != hash_key(compute_seed("s"), "😀")


@given(st.integers(0, BUCKETS - 1))
def test_a_hash_below_the_threshold_is_a_bucket_below_the_end(end: int) -> None:
    for hashed in (
        compute_threshold(end) - 1,
        compute_threshold(end),
        compute_threshold(end + 1) - 1,
    ):
        if 0 <= hashed < HASHES:
            assert (hashed < compute_threshold(end)) is (hashed * BUCKETS >> 64 < end)


@given(st.integers(0, HASHES - 1), st.integers(0, BUCKETS))
def test_a_threshold_says_the_same_as_the_bucket(hashed: int, end: int) -> None:
    assert (hashed < compute_threshold(end)) is (hashed * BUCKETS >> 64 < end)


def test_the_first_and_last_thresholds_hold_nothing_and_everything() -> None:
    assert compute_threshold(0) == 0
    assert compute_threshold(BUCKETS) == HASHES


def test_all_buckets_are_of_one_size_but_for_one_hash() -> None:
    ends = range(0, BUCKETS + 1, 97)
    sizes = {compute_threshold(end + 1) - compute_threshold(end) for end in ends if end < BUCKETS}
    assert sizes <= {HASHES // BUCKETS, HASHES // BUCKETS + 1}
    assert all(low < high for low, high in pairwise(map(compute_threshold, ends)))


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 for count in counts) / expected


def test_keys_fall_evenly() -> None:
    hash_seed = compute_seed("uniformity")
    counts = [0] * 100
    for i in range(1_000_000):
        counts[compute_bucket(hash_seed, f"user-{i}") // 1000] += 1
    # Of 99 degrees of freedom: 99 is the mean, and 148.2 is passed once in a thousand salts.
    assert chi_square(counts) < 148.2


def test_two_salts_are_independent() -> None:
    one, other = compute_seed("checkout.one"), compute_seed("checkout.two")
    counts = [0] * 100
    for i in range(1_000_000):
        key = f"user-{i}"
        counts[compute_bucket(one, key) // 10_000 * 10 + compute_bucket(other, key) // 10_000] += 1
    # Each pair of tenths alike; the bound as above.
    assert chi_square(counts) < 148.2


def test_similar_salts_have_unlike_seeds() -> None:
    assert (
        len({compute_seed(salt) for salt in ("", "a", "b", "aa", "A", "a ", "a\0", "é", "e\u0301")})
        == 9
    )


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_another_process_has_the_same_buckets(hash_seed: str) -> None:
    program = (
        "import json, sys\n"
        "from flagkit._core.evaluation.bucketing import compute_bucket, compute_seed\n"
        "vectors = json.load(sys.stdin)\n"
        "print([compute_bucket(compute_seed(v['salt']), v['key']) for v in vectors])\n"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    answer = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(VECTORS),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(answer.stdout) == [vector["bucket"] for vector in VECTORS]


class Plan(str, Enum):  # noqa: UP042 - what many have, and whose str() is not its content
    PRO = "pro"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("a", "a"),
        (" ", " "),
        (0, "0"),
        (-12, "-12"),
        (2**70, str(2**70)),
        ("7", "7"),
        (Plan.PRO, "pro"),
    ],
    ids=repr,
)
def test_strings_and_integers_are_keys(value: object, key: str) -> None:
    assert to_bucketing_key(value) == key


@pytest.mark.parametrize(
    "value", ["", None, True, False, 7.0, b"a", [], ["a"], {}, Ellipsis], ids=ascii
)
def test_nothing_else_is_a_key(value: object) -> None:
    assert to_bucketing_key(value) is None
