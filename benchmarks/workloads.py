"""Cases: the flags that are evaluated, and the same logic written by hand.

W1 is a flag that is on for all; W2 a rollout of 50 % by targeting key; W3 five rules of two
conditions each (a list of 10, a semantic version, a number, an equality), of which the fifth holds
and leads to a rollout of 30 %. What is written by hand is what a careful engineer writes for these
three flags and no others: one plain function each, with the flag's data in a table by its key,
bucketing by the same hash, missing attributes at home, the version parsed once a call. It knows the
types of its attributes, and that versions are three numbers; flagkit has to ask.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Struct
from xxhash import xxh3_64_intdigest

Check: TypeAlias = Callable[[str, dict[str, Any], bool], bool]

ASIA = ["JP", "KR", "SG", "TH", "VN", "MY", "ID", "PH", "TW", "HK"]
NORTH = ["DE", "DK", "NO", "SE", "FI", "IS", "NL", "BE", "EE", "LV"]
EUROZONE = ["AT", "BE", "DE", "ES", "FI", "FR", "IE", "IT", "NL", "PT"]

W1, W2, W3 = "checkout.express-pay", "search.new-ranking", "pricing.seat-bundles"
VARIANTS = {"on": True, "off": False}
FLAGS: Final[Sequence[Mapping[str, Any]]] = (
    {"key": W1, "variants": VARIANTS, "fallthrough": {"serve": "on"}},
    {"key": W2, "variants": VARIANTS, "fallthrough": {"rollout": 50}},
    {
        "key": W3,
        "variants": VARIANTS,
        "rules": [
            {
                "name": "launch",
                "when": {"country": {"$in": ASIA}, "app_version": {"$semver": {"$gte": "3.2.0"}}},
                "serve": "on",
            },
            {
                "name": "enterprise",
                "when": {"app_version": {"$semver": {"$gte": "4.0.0"}}, "plan": "enterprise"},
                "serve": "on",
            },
            {
                "name": "seniors",
                "when": {"country": {"$in": NORTH}, "age": {"$gte": 65}},
                "serve": "on",
            },
            {
                "name": "trial",
                "when": {"plan": "free", "app_version": {"$semver": {"$gte": "2.6.0"}}},
                "serve": "on",
            },
            {
                "name": "adults",
                "when": {"country": {"$in": EUROZONE}, "age": {"$gte": 18}},
                "rollout": 30,
            },
        ],
        "fallthrough": {"serve": "off"},
    },
)
CONTEXT: Final[dict[str, Any]] = {
    "targeting_key": "user-20417",
    "country": "DE",
    "plan": "team",
    "app_version": "4.12.0",
    "age": 34,
    "language": "de",
}

HASHES: Final = 2**64
_SWITCHES = {W1: True}
_ROLLOUTS = {
    W2: (xxh3_64_intdigest(W2.encode()), 50 * HASHES // 100),
    W3: (xxh3_64_intdigest(W3.encode()), -(-30 * HASHES // 100)),
}
_NO_VERSION: tuple[int, ...] = ()
_ASIA, _NORTH, _EUROZONE = frozenset(ASIA), frozenset(NORTH), frozenset(EUROZONE)


def check_w1_by_hand(key: str, _context: dict[str, Any], default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as the client's
    """Answer for W1."""
    return _SWITCHES.get(key, default)


def check_w2_by_hand(key: str, context: dict[str, Any], default: bool = False) -> bool:  # noqa: FBT001, FBT002 - as the client's
    """Answer for W2."""
    rollout = _ROLLOUTS.get(key)
    user = context.get("targeting_key")
    if rollout is None or user is None:
        return default
    seed, share = rollout
    return xxh3_64_intdigest(user.encode(), seed) < share


def check_w3_by_hand(key: str, context: dict[str, Any], default: bool = False) -> bool:  # noqa: FBT001, FBT002, PLR0911 - as the client's; rule by rule
    """Answer for W3."""
    rollout = _ROLLOUTS.get(key)
    if rollout is None:
        return default
    country = context.get("country")
    text = context.get("app_version")
    version = _NO_VERSION if text is None else tuple(map(int, text.split(".")))
    if country in _ASIA and version >= (3, 2, 0):
        return True
    plan = context.get("plan")
    if version >= (4, 0, 0) and plan == "enterprise":
        return True
    age = context.get("age", 0)
    if country in _NORTH and age >= 65:
        return True
    if plan == "free" and version >= (2, 6, 0):
        return True
    if country in _EUROZONE and age >= 18:
        user = context.get("targeting_key")
        if user is None:
            return default
        seed, share = rollout
        return xxh3_64_intdigest(user.encode(), seed) < share
    return False


class Workload(Struct, frozen=True):
    """A flag, the function that does the same by hand, and how often its cost flagkit may take."""

    name: str
    key: str
    by_hand: Check
    bound: float


WORKLOADS: Final = (
    Workload("W1", W1, check_w1_by_hand, 1.5),
    Workload("W2", W2, check_w2_by_hand, 1.4),
    Workload("W3", W3, check_w3_by_hand, 0.8),
)
