"""Replaying: the digest of an evaluation is made, and checked against what the ledger has.

Nothing of it is paid for by evaluations: all that a digest binds is known, or computed, when one is
asked for.
"""

import math
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn

import msgspec
from msgspec import Struct

from flagkit.answers import Answers
from flagkit.arguments import instance
from flagkit.changes import Tip
from flagkit.core.contexts import ContextLike
from flagkit.core.evaluation import ErrorCode, Evaluation
from flagkit.core.freshness import Freshness
from flagkit.errors import DigestError, InvalidArgumentError
from flagkit.history.digests import HASH_BYTES, Digest, context_hash, read, written
from flagkit.history.past_clients import reading_of
from flagkit.settings import settings_from
from flagkit.snapshot import Snapshot, arena_of
from flagkit.storage.rebuilding import snapshot_at, tip_at
from flagkit.unsealing import Unread, Unsealing
from flagkit.view import View

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)


class _Odd:
    """The default of a caller whose default is of no type that a variant can have."""


_DEFAULTS: Final[dict[str, Any]] = {
    kind.__name__: kind() for kind in (bool, int, float, str, dict, list)
}
"""By the name of their type, defaults that stand for a caller's."""


class Replayed(Struct, frozen=True, kw_only=True):
    """What came of a replay.

    `key`, `environment`, `region`, `revision` and `time` are those of the digest, `variant` what it
    says was served. `evaluation` is what the flag answers, as of then, to the context that was
    given. `differences` has a sentence for each thing that is not as the digest says.
    """

    environment: str
    region: str
    key: str
    revision: int
    time: datetime
    variant: str | None
    evaluation: Evaluation[Any]
    differences: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether the same context got the same answer, from the same history."""
        return not self.differences


def digest_of(
    client: Answers,
    evaluation: Evaluation[Any],
    context: ContextLike = None,
    *,
    secret: str | bytes | None = None,
) -> str:
    """Return a short text that stands for an evaluation, to be logged, and replayed later.

    It holds no attributes: of the context there is a hash. Anybody who has it, and guesses the
    context, can find that the guess is right, unless the hash is keyed by a secret. Without one, a
    digest can be forged, too: it proves something to those who trust the log that it comes from.

    Args:
        client: The one that answered.
        evaluation: Its answer.
        context: Who asked.
        secret: A key of the hashes, needed again for the replay; or FLAGKIT_DIGEST_SECRET, or none.

    Raises:
        InvalidContextError: it is none of the forms of a context, or an attribute misbehaves.
    """
    key = _secret(secret)
    instance(client, Answers, "client", "pass the client that answered")
    instance(evaluation, Evaluation, "evaluation", "pass what client.evaluate returned")
    view = client.view
    hashed = context_hash(context, key)
    snapshot = None if view is None else view.snapshot
    moment = datetime.now(UTC) if view is None else _moment(view, evaluation, context)
    unfit = evaluation.error_code is ErrorCode.TYPE_MISMATCH
    digest = Digest(
        environment="" if snapshot is None else snapshot.tip.environment,
        region="" if snapshot is None else snapshot.region,
        namespaces=() if snapshot is None else snapshot.namespaces,
        key=evaluation.flag_key,
        revision=evaluation.revision,
        anchor=0 if snapshot is None else snapshot.tip.revision,
        hash=b"" if snapshot is None else _short(snapshot.tip.hash),
        moment=(moment - _EPOCH) // _TICK,
        context=hashed,
        variant=evaluation.variant,
        reason=evaluation.reason,
        error_code=evaluation.error_code,
        default=type(evaluation.value).__name__ if unfit else "",
    )
    return written(digest, key)


def replay(
    uri: str | None,
    digest: str,
    context: ContextLike = None,
    *,
    database: str | None = None,
    secret: str | bytes | None = None,
) -> Replayed:
    """Evaluate once more what a digest is of, at its revision and moment, and compare.

    Args:
        uri: A MongoDB connection string of a replica set; or FLAGKIT_URI.
        digest: As `digest_of` returned it.
        context: Who asked, with the same attributes.
        database: Where flagkit's collections are.
        secret: As it was given to `digest_of`.

    Raises:
        DigestError: it is no digest, was altered, was made with another secret, or is of an answer
            that came from no revision.
        InvalidContextError: the context is none.
        EnvironmentNotFoundError, RevisionNotFoundError, HistoryLostError, StoreError: as
            `client_at` does.
    """
    key = _secret(secret)
    instance(digest, str, "digest", "pass the text that digest_of returned")
    said = read(digest, key)
    if not said.revision or not said.hash:
        raise DigestError(
            "this digest is of an answer that came from no revision of a database: there were no"
            " flags yet, or the flags were documents or a bootstrap file"
        )
    hashed = context_hash(context, key)
    settings = settings_from(
        uri, environment=said.environment, region=said.region, database=database
    )
    with reading_of(settings) as reading:
        snapshot = snapshot_at(reading, said.revision, said.region)
        anchored = said.anchor == said.revision
        anchor = snapshot.tip if anchored else tip_at(reading, said.anchor)
    found = _answer(_narrowed(snapshot, said.namespaces), said, context)
    return Replayed(
        environment=said.environment,
        region=said.region,
        key=said.key,
        revision=said.revision,
        time=_EPOCH + said.moment * _TICK,
        variant=said.variant,
        evaluation=found,
        differences=tuple(_differences(said, anchor, hashed, found)),
    )


def _differences(
    said: Digest, anchor: Tip | None, hashed: bytes, found: Evaluation[Any]
) -> Iterator[str]:
    """Yield a sentence for each thing that is not as a digest says."""
    if anchor is None or _short(anchor.hash) != said.hash:
        yield f"the history is another: revision {said.anchor} is not the one that was then"
    if hashed != said.context:
        yield "the context is another: its hash is not the one of then"
    if not _is_as(said, found):
        then = _told(said.variant, said.reason, said.error_code)
        now = _told(found.variant, found.reason, found.error_code)
        yield f"the answer is another: then {then}, now {now}"


def _moment(view: View, evaluation: Evaluation[Any], context: ContextLike) -> datetime:
    """Return a moment at which the answer was what it was: now, or one before it changed."""
    now, until = datetime.fromtimestamp(view.now(), UTC), evaluation.valid_until
    if until is None or now < until:
        return now
    # It may have changed since, and it may not have: `until` comes early, and before the answer.
    before = until - _TICK
    if view.snapshot.tip.revision == evaluation.revision:
        default = evaluation.value if evaluation.variant is None else None
        for moment in (before, until + _TICK):
            then = _view(view.snapshot, moment, Freshness())
            found = then.evaluate(evaluation.flag_key, context, default)
            if (found.variant, found.reason) == (evaluation.variant, evaluation.reason):
                return moment
    return before


def _answer(snapshot: Snapshot, said: Digest, context: ContextLike) -> Evaluation[Any]:
    """Return what a flag answers as of a digest: as it says, if a client of any age can."""
    first: Evaluation[Any] | None = None
    for found in _answers(snapshot, said, context):
        if _is_as(said, found):
            return found
        first = found if first is None else first
    assert first is not None, "one at least is asked"
    return first


def _answers(snapshot: Snapshot, said: Digest, context: ContextLike) -> Iterator[Evaluation[Any]]:
    """Yield the answers of a client that is fresh, of one that is stale, and of one by a call."""
    default = _DEFAULTS.get(said.default, _Odd()) if said.default else None
    moment = _EPOCH + said.moment * _TICK
    # Which variant a client with keys served takes none to tell; another had not got any, or yet.
    unsealings: list[Unsealing] = [Unread()]
    if said.error_code in (ErrorCode.PARSE_ERROR, ErrorCode.PROVIDER_NOT_READY):
        unsealings += [Unsealing(), Unsealing(_never)]
    for unsealing in unsealings:
        # A past client is older than anything: its age is infinite.
        for stale_after, max_staleness in ((math.inf, None), (0.0, None), (math.inf, 0.0)):
            view = _view(snapshot, moment, Freshness(stale_after), unsealing)
            yield view.evaluate(said.key, context, default, max_staleness)


def _view(
    snapshot: Snapshot, moment: datetime, freshness: Freshness, unsealing: Unsealing | None = None
) -> View:
    seconds = moment.timestamp()
    return View(snapshot, lambda: seconds, freshness, unsealing or Unread())


def _never() -> NoReturn:
    raise AssertionError("no keys are fetched for a replay")


def _is_as(said: Digest, found: Evaluation[Any]) -> bool:
    answer = found.variant, str(found.reason), found.error_code
    return answer == (said.variant, said.reason, said.error_code)


def _told(variant: str | None, reason: str, error_code: str | None) -> str:
    served = "the caller's default" if variant is None else repr(variant)
    return f"{served} ({', '.join(filter(None, (reason, error_code)))})"


def _narrowed(snapshot: Snapshot, namespaces: tuple[str, ...]) -> Snapshot:
    """Return a snapshot as a client has it that keeps some namespaces only."""
    if not namespaces:
        return snapshot
    narrow = msgspec.structs.replace(snapshot, namespaces=namespaces)
    kept = (record for record in snapshot.records() if narrow.keeps(record.id))
    return msgspec.structs.replace(narrow, base=arena_of(snapshot.tip, kept), overlay={})


def _short(tip_hash: str) -> bytes:
    return bytes.fromhex(tip_hash)[:HASH_BYTES]


def _secret(given: str | bytes | None) -> bytes:
    if given is not None and not isinstance(given, str | bytes):  # pyright: ignore[reportUnnecessaryIsInstance] - not all callers check types
        raise InvalidArgumentError(
            f"secret is of the type {type(given).__name__}: pass text or bytes, or None"
        )
    found = given or os.environ.get("FLAGKIT_DIGEST_SECRET") or b""
    try:
        return found.encode() if isinstance(found, str) else found
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            "secret holds a lone surrogate, which UTF-8 cannot carry: pass bytes, or other text"
        ) from None
