"""Catalogue: the flags of a large organisation, drawn from a seed, the same for ever.

Of ten flags six are on or off for all, three are rollouts, and one has five rules of two conditions
each, as W3 has, with constants of its own. Rules come in four orders, so there are four shapes of
them. Keys are `product.team.feature`, as in `checkout.risk.smart-upsell-v2`: of a million, they are
of 32.2 characters in the mean and 62 at most. A rollout's salt is its flag's key. There are no
owners, descriptions or tags, for no evaluation reads them.

Drawn with `random()` alone, whose numbers no version of Python may change; a test holds a digest.
"""

import functools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from msgspec import Struct

from benchmarks.workloads import FLAGS
from flagkit._core.model import EVERYWHERE, decode, encode, packing
from flagkit._core.model.changes import DIGEST_MODULUS, PolicyState, Tip, build_state
from flagkit._core.snapshot import Record, SnapshotFile, build_arena
from flagkit.client.client import Client

Document: TypeAlias = dict[str, Any]
T = TypeVar("T")

SEED: Final = 20261122
PLAIN, ROLLOUT, RULES = "plain", "rollout", "rules"
KINDS: Final = (
    *(PLAIN, ROLLOUT, PLAIN, RULES, PLAIN),
    *(ROLLOUT, PLAIN, PLAIN, ROLLOUT, PLAIN),
)
"""The kinds of ten successive flags."""
ENVIRONMENT: Final = "benchmark"

PRODUCTS: Final = (
    *("checkout", "search", "billing", "catalog", "identity", "messaging", "analytics", "mobile"),
    *("web", "payments", "shipping", "returns", "loyalty", "pricing", "inventory", "support"),
    *("onboarding", "notifications", "recommendations", "ads", "media", "docs", "calendar"),
    *("drive", "maps", "travel", "insurance", "lending", "cards", "wallet", "marketplace"),
    *("partners", "admin", "reporting", "compliance", "fraud", "storefront", "delivery", "social"),
    *("gaming",),
)
TEAMS: Final = (
    *("core", "growth", "platform", "risk", "experience", "api", "infra", "data", "mobile-ios"),
    *("mobile-android", "frontend", "backend", "ml", "ops", "trust", "content", "i18n", "sre"),
    *("quality", "design", "commerce", "discovery", "retention", "enterprise", "labs"),
)
MANNERS: Final = (
    *("new", "fast", "smart", "lazy", "async", "inline", "compact", "dark", "guest", "express"),
    *("live", "instant", "unified", "legacy", "hybrid", "bulk", "batched", "cached", "secure"),
    *("adaptive", "guided", "one-click", "two-step", "multi-region", "realtime", "offline"),
    *("optional", "strict", "verified", "ranked", "grouped", "pinned", "shared", "nested"),
    *("streaming", "parallel", "weighted", "localized", "personalized", "sponsored", "trending"),
    *("related", "recent", "saved", "archived", "scheduled", "automatic", "manual", "limited"),
    *("extended",),
)
THINGS: Final = (
    *("checkout", "search", "banner", "upsell", "cart", "login", "signup", "profile", "pay"),
    *("invoice", "receipt", "refund", "coupon", "discount", "ranking", "filters", "facets"),
    *("suggestions", "autocomplete", "previews", "thumbnails", "uploads", "downloads", "exports"),
    *("imports", "reports", "dashboard", "charts", "alerts", "digest", "inbox", "threads"),
    *("reactions", "mentions", "presence", "sharing", "permissions", "roles", "audit-log"),
    *("sessions", "tokens", "webhooks", "retries", "timeouts", "caching", "prefetch"),
    *("compression", "pagination", "infinite-scroll", "navigation", "sidebar", "footer"),
    *("onboarding", "tour", "tooltips", "surveys", "ratings", "reviews", "wishlist", "gift-cards"),
)
ENDINGS: Final = ("", "", "", "", "", "", "", "-v2", "-v3", "-beta")
# Without a common factor with their product, so that each index has a flag of its own.
_STEP, _START = 1_834_567, 271_828
_KEY_COUNT: Final = len(PRODUCTS) * len(TEAMS) * len(MANNERS) * len(THINGS)

COUNTRIES: Final = (
    *("AE", "AR", "AT", "AU", "BE", "BG", "BR", "CA", "CH", "CL", "CN", "CO", "CZ", "DE", "DK"),
    *("EE", "EG", "ES", "FI", "FR", "GB", "GR", "HK", "HR", "HU", "ID", "IE", "IL", "IN", "IS"),
    *("IT", "JP", "KE", "KR", "LT", "LU", "LV", "MA", "MX", "MY", "NG", "NL", "NO", "NZ", "PE"),
    *("PH", "PL", "PT", "RO", "SA", "SE", "SG", "SI", "SK", "TH", "TR", "TW", "UA", "US", "VN"),
)
PLANS: Final = ("free", "team", "business", "enterprise", "education")
SHARES: Final = (1, 2, 5, 10, 20, 25, 30, 40, 50, 60, 75, 80, 90, 95, 99)
AGES: Final = (13, 16, 18, 21, 25, 30, 40, 50, 60, 65)
ON_SHARE: Final = 0.7
"""How many of the plain flags are on."""


def iter_documents(count: int, seed: int = SEED) -> Iterator[Document]:
    """Yield the policy documents of a catalogue, lazily; a shorter one is a longer one's beginning.

    Raises:
        ValueError: there are no so many keys.
    """
    if count > _KEY_COUNT:
        raise ValueError(f"a catalogue has at most {_KEY_COUNT} flags, not {count}")
    chance = Random(seed)
    return (_build_document(i, chance) for i in range(count))


def _build_document(index: int, chance: Random) -> Document:
    key = _build_key(index, chance)
    body: Document = {"serve": "on" if chance.random() < ON_SHARE else "off"}
    rules: list[Document] = []
    kind = KINDS[index % len(KINDS)]
    if kind == ROLLOUT:
        body = {"rollout": _choose_one(SHARES, chance)}
    elif kind == RULES:
        body = {"serve": "off"}
        rules = _build_rules(chance)
    document: Document = {"key": key, "variants": {"on": True, "off": False}, "off": "off"}
    return document | ({"rules": rules} if rules else {}) | {"fallthrough": body}


def _build_key(index: int, chance: Random) -> str:
    rest = (index * _STEP + _START) % _KEY_COUNT
    rest, product = divmod(rest, len(PRODUCTS))
    rest, team = divmod(rest, len(TEAMS))
    thing, manner = divmod(rest, len(MANNERS))
    feature = f"{MANNERS[manner]}-{THINGS[thing]}{_choose_one(ENDINGS, chance)}"
    return f"{PRODUCTS[product]}.{TEAMS[team]}.{feature}"


def _build_rules(chance: Random) -> list[Document]:
    conditions: list[tuple[str, Document]] = [
        (
            "launch",
            {"country": {"$in": _choose_some(COUNTRIES, 10, chance)}}
            | _build_version_condition(chance),
        ),
        ("upgraded", _build_version_condition(chance) | {"plan": _choose_one(PLANS, chance)}),
        (
            "seniors",
            {"country": {"$in": _choose_some(COUNTRIES, 10, chance)}}
            | _build_age_condition(chance),
        ),
        ("trial", {"plan": _choose_one(PLANS, chance)} | _build_version_condition(chance)),
    ]
    turn = int(chance.random() * len(conditions))
    rules: list[Document] = [
        {"name": name, "when": condition, "serve": "on"}
        for name, condition in (*conditions[turn:], *conditions[:turn])
    ]
    last = {"country": {"$in": _choose_some(COUNTRIES, 10, chance)}} | _build_age_condition(chance)
    return [*rules, {"name": "rest", "when": last, "rollout": _choose_one(SHARES, chance)}]


def _build_version_condition(chance: Random) -> Document:
    major, minor, patch = (int(chance.random() * end) for end in (9, 30, 10))
    return {"app_version": {"$semver": {"$gte": f"{major}.{minor}.{patch}"}}}


def _build_age_condition(chance: Random) -> Document:
    return {"age": {"$gte": _choose_one(AGES, chance)}}


def _choose_one(of: Sequence[T], chance: Random) -> T:
    return of[int(chance.random() * len(of))]


def _choose_some(of: Sequence[T], count: int, chance: Random) -> list[T]:
    rest = list(of)
    return [rest.pop(int(chance.random() * len(rest))) for _ in range(count)]


class StoredCatalogue(Struct, frozen=True):
    """A catalogue and the flags of W1 to W3 in a snapshot file."""

    path: Path
    count: int

    def create_client(self) -> Client:
        """Return a client that serves them from the mapped file, which is verified first."""
        snapshot = SnapshotFile(self.path, ENVIRONMENT, EVERYWHERE).read()
        assert snapshot is not None, "it was written"
        return Client.from_snapshot(snapshot)

    @property
    def tip(self) -> Tip:
        """Where their environment stands."""
        header = SnapshotFile(self.path, ENVIRONMENT, EVERYWHERE).read_header()
        assert header is not None, "it was written"
        return header.tip


@functools.cache
def store_catalogue(count: int) -> StoredCatalogue:
    """Return a catalogue of so many flags, written once a process and removed with it."""
    file = SnapshotFile(Path(_create_directory().name, f"{count}.flagkit"), ENVIRONMENT, EVERYWHERE)
    records = [build_entry(document).record for document in chain(FLAGS, iter_documents(count))]
    with file.claim() as mine:
        assert mine, "nobody else knows the directory"
        file.write(build_arena(build_tip(record.hash for record in records), records))
    return StoredCatalogue(file.path, count)


def build_tip(hashes: Iterable[int]) -> Tip:
    """Return where an environment stands in which flags are whose states have some hashes."""
    digests = {EVERYWHERE: sum(hashes) % DIGEST_MODULUS}
    return Tip(ENVIRONMENT, "catalogue", 1, "", datetime(2026, 11, 22, tzinfo=UTC), digests)


class CatalogueEntry(NamedTuple):
    """A flag as it is stored: its policy document, its state, and what clients keep of it."""

    policy: Document
    state: PolicyState
    record: Record


def build_entry(document: Mapping[str, Any], version: int = 1) -> CatalogueEntry:
    """Return a flag of a catalogue as it is stored at a version."""
    key = document["key"]
    rest = {name: part for name, part in document.items() if name != "key"}
    # Nine of ten flags are alike but for their keys, and need not be checked one by one.
    policy, body = (_encode_body if "rules" in rest else _encode_body_once)(key, json.dumps(rest))
    policy = {**policy, "key": key}
    state = build_state(key, EVERYWHERE, version, policy)
    return CatalogueEntry(policy, state, Record(EVERYWHERE, key, version, state.hash, body))


def _encode_body(key: str, rest: str) -> tuple[Document, bytes]:
    flag = decode({"key": key, **json.loads(rest)})
    return encode(flag), packing.pack(flag)


_encoded_bodies: dict[str, tuple[Document, bytes]] = {}


def _encode_body_once(key: str, rest: str) -> tuple[Document, bytes]:
    """Return what `_checked` does, of a flag whose body does not have its key."""
    made = _encoded_bodies.get(rest)
    if made is None:
        made = _encoded_bodies[rest] = _encode_body(key, rest)
    return made


def iter_keys(kind: str, count: int) -> Iterator[str]:
    """Yield the keys of all flags of a kind in a catalogue."""
    kinds = (KINDS[i % len(KINDS)] for i in range(count))
    return (
        document["key"]
        for document, found in zip(iter_documents(count), kinds, strict=True)
        if found == kind
    )


def iter_lines(flags: Iterable[Document]) -> Iterator[bytes]:
    """Yield documents as lines of JSON, the form that the catalogue's digest is of."""
    return (f"{json.dumps(flag)}\n".encode() for flag in flags)


@functools.cache
def _create_directory() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="flagkit-benchmarks-")
