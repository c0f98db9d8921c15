"""The bucket of a key under a salt.

Stored rollouts depend on this function: a change would move users between variants. Golden vectors:
tests/golden/buckets.json.
"""

from collections.abc import Callable
from typing import TypeAlias

import xxhash

from flagkit._core.model.rollouts import BUCKETS

Clock: TypeAlias = Callable[[], float]
"""Gives the time in seconds since 1970 in UTC."""

HASHES = 2**64


def compute_seed(salt: str) -> int:
    """Return the 64-bit seed of a rollout from its salt."""
    return xxhash.xxh3_64_intdigest(salt.encode())


def compute_bucket(hash_seed: int, key: str) -> int:
    """Map `key` to a bucket, an integer in [0, BUCKETS). Never raises.

    Each rollout has its own seed, so rollouts are independent of each other. Lone surrogates, which
    UTF-8 cannot encode, hash as the three bytes that UTF-8 would give them.

    Source: XXH3-64 (https://xxhash.com); multiply-shift reduction after Lemire, "Fast random
    integer generation in an interval", 2019, section 4.
    """
    return hash_key(hash_seed, key) * BUCKETS >> 64


def hash_key(hash_seed: int, key: str) -> int:
    """Return the 64-bit hash of `key` under a seed. Never raises."""
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"), hash_seed)


def compute_threshold(end: int) -> int:
    """Return the least hash whose bucket is `end` or more, for `end` in [0, BUCKETS].

    `hash < compute_threshold(end)` is equivalent to `bucket < end`, without the reduction.
    """
    return -(-end * HASHES // BUCKETS)
