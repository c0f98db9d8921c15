"""Past answers: evaluate flags as of a revision, and prove an answer later.

An evaluation digest covers the answer and everything it follows from: environment, revision and its
hash, region, key, moment, and a hash of the context. It leaves out the value, which follows from
the variant and the revision; a hash of a secret that can be guessed would reveal it.

An evaluation costs nothing extra: a digest uses what is known, or computes it on request.
"""

import base64
import binascii
import hashlib
import hmac
import math
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn, cast

import msgspec
from msgspec import Struct

from flagkit._core.arguments import check_instance
from flagkit._core.evaluation.context import ContextLike, get_attributes
from flagkit._core.evaluation.evaluator import Evaluator, Staleness
from flagkit._core.evaluation.result import ErrorCode, Evaluation
from flagkit._core.interruptions import is_interruption
from flagkit._core.model.changes import Tip
from flagkit._core.model.foreign import to_native
from flagkit._core.model.values import (
    BINARY,
    BOOLEAN,
    DATE,
    DOCUMENT,
    LIST,
    NUMBER,
    OBJECT_ID,
    TEXT,
    get_kind,
    to_identity,
)
from flagkit._core.secrets import Encryption, PlaceholderDecrypter, VariantDecrypter
from flagkit._core.snapshot import Snapshot, build_arena
from flagkit._core.storage.ledger import find_tip, load_historical_snapshot, load_revision_snapshot
from flagkit._core.storage.reader import EnvironmentReader
from flagkit._core.storage.store import Store
from flagkit.client.client import Client
from flagkit.client.sources import build_decrypter
from flagkit.config import Settings, resolve_settings
from flagkit.errors import EvaluationDigestError, InvalidArgumentError, InvalidContextError


def client_at(
    uri: str | None = None,
    environment: str | None = None,
    *,
    at: datetime | int | None = None,
    region: str | None = None,
    database: str | None = None,
    encryption: Encryption | None = None,
) -> Client:
    """Return a client that evaluates a past state of an environment, with the clock of that moment.

    Flags, segments and prerequisites are of one revision. Windows, ramps, and `valid_until` of
    evaluations are as of the moment. The connection is closed before this returns. Arguments that
    are not given come from the environment variables of flagkit.config.Options.

    Args:
        uri: A MongoDB connection string of a replica set.
        environment: The environment whose flags to evaluate.
        at: A moment with a time zone: it selects the last revision up to it, by the server's time,
            and the clock shows that moment. Or a revision: the clock shows the revision's time.
            Without it, the newest revision, and the server's current time.
        region: The region whose overrides to apply.
        database: The database with flagkit's collections.
        encryption: The encryption of sensitive variants. If it does not work, that is logged, and
            callers get their defaults for these variants.

    Raises:
        ConfigurationError: an argument is not valid, such as a moment without a time zone, or one
            in the future.
        EnvironmentNotFoundError: there is no such environment.
        RevisionNotFoundError: there is no such revision, or none existed at that moment.
        HistoryLostError: the ledger does not reach back so far, or its data was altered or is
            missing.
        StoreError: the database did not answer, or refused.
    """
    settings = resolve_settings(
        uri, environment=environment, region=region, database=database, encryption=encryption
    )
    with open_settings_reader(settings) as reading:
        snapshot, moment = load_historical_snapshot(reading, at, settings.region)
    seconds = moment.timestamp()
    decrypter = build_decrypter(settings)
    decrypter.fetch_or_warn()
    return Client.from_snapshot(snapshot, lambda: seconds, decrypter)


@contextmanager
def open_settings_reader(settings: Settings) -> "Generator[EnvironmentReader]":
    """Give a reading of an environment, for the block."""
    place = {"environment": settings.environment, "database": settings.database}
    with Store(settings.uri, **place) as store, store.open_reader() as reading:
        yield reading


PREFIX: Final = "fk1."
"""The prefix of digests, which names their format."""
HASH_BYTES: Final = 16
_SEAL_BYTES: Final = 12
_CODES: Final = {BOOLEAN: 6, DATE: 7, OBJECT_ID: 8}
"""The numbers of kinds in hashes, if they differ from their order: old digests stay valid."""


class EvaluationDigest(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The fields of a digest, in the order of its encoding.

    `moment` is in microseconds since 1970. `anchor` is a revision of the history at or after
    `revision`, and `hash` the beginning of its hash, which identifies the history. `context` is a
    hash. `default` names the type of the caller's default if the default did not fit the flag.
    """

    environment: str
    region: str
    namespaces: tuple[str, ...]
    key: str
    revision: int
    anchor: int
    hash: bytes
    moment: int
    context: bytes
    variant: str | None
    reason: str
    error_code: str | None
    default: str


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(EvaluationDigest)


def encode_digest(digest: EvaluationDigest, secret: bytes) -> str:
    """Return a digest as text, sealed with a secret, or with none if that is empty."""
    payload = _encode(digest)
    return _format_base64(payload + _compute_seal(payload, secret))


def decode_digest(text: str, secret: bytes) -> EvaluationDigest:
    """Return what a text says.

    Raises:
        EvaluationDigestError: it is no digest, was altered, or was sealed with another secret.
    """
    try:
        content = base64.urlsafe_b64decode(text.removeprefix(PREFIX) + "==")
    except (binascii.Error, ValueError):
        content = b""
    payload, seal = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    # Base64 ignores unused bits of the last letter and foreign letters, so compare the encoding.
    if not payload or _format_base64(content) != text:
        raise EvaluationDigestError("this is no digest, or not all of one: one begins with fk1.")
    if not hmac.compare_digest(seal, _compute_seal(payload, secret)):
        raise EvaluationDigestError(
            "this digest was altered, or was made with another secret than the one given here"
        )
    try:
        return _decoder.decode(payload)
    except msgspec.MsgspecError:
        raise EvaluationDigestError("this digest says what no digest says: it was forged") from None


def hash_context(context: ContextLike, secret: bytes) -> bytes:
    """Return the hash of a context, keyed by a secret unless that is empty.

    Contexts that conditions or rollouts can distinguish have different hashes; others may have. The
    order of attributes does not count, that of fields within documents does.

    Raises:
        InvalidContextError: it is none of the forms of a context, or an attribute misbehaves.
    """
    try:
        attributes = get_attributes(context).items()
        pairs = sorted(
            (_encode_name(name), _encode(_to_plain(value))) for name, value in attributes
        )
    except InvalidContextError:
        raise
    except Exception as error:
        if is_interruption(error):
            raise
        raise InvalidContextError(
            f"the context cannot be hashed: an attribute raised {type(error).__name__}"
        ) from None
    return _compute_hash(_encode(pairs), secret, HASH_BYTES, b"flagkit.context")


def _to_plain(value: object) -> Any:  # noqa: PLR0911 - one for each kind
    """Return a value with its kind, for MessagePack: dates to the millisecond, as BSON has them.

    Values that BSON lacks differ only by their type, as they match nothing.
    """
    value = to_native(value)
    place = get_kind(value)
    match place:
        case None:
            return type(value).__name__
        case _ if place == TEXT:
            return [place, _encode_name(value)]
        case _ if place == DOCUMENT:
            items: Any = value
            return [place, [[_encode_name(name), _to_plain(item)] for name, item in items.items()]]
        case _ if place == LIST:
            elements: Any = value
            return [place, [_to_plain(item) for item in elements]]
        case _ if place == NUMBER:
            return [place, *_encode_number(value)]
        case _ if place in (DATE, BINARY, OBJECT_ID):
            _, *parts = cast("tuple[Any, ...]", to_identity(value))
            return [_CODES.get(place, place), *parts]
        case _:
            return [_CODES.get(place, place), value]


def _encode_number(value: Any) -> tuple[str, str]:
    """Return a number's type, which conditions may ask for, and its text."""
    if isinstance(value, int):
        # Hexadecimal has no limit of length: Python refuses to write long integers in decimal.
        return "integer", f"{int(value):x}"
    if isinstance(value, float):
        return "float", float(value).hex()
    return "decimal", str(value)


def _encode_name(name: object) -> bytes:
    """Return a text in UTF-8, lone surrogates included; for other objects, their type."""
    if isinstance(name, str):
        return str.encode(name, "utf-8", "surrogatepass")
    return b"\0" + type(name).__name__.encode()


def _format_base64(content: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(content).decode().rstrip("=")


def _compute_seal(payload: bytes, secret: bytes) -> bytes:
    return _compute_hash(PREFIX.encode() + payload, secret, _SEAL_BYTES, b"flagkit.digest")


def _compute_hash(content: bytes, secret: bytes, size: int, purpose: bytes) -> bytes:
    # A key of BLAKE2b has 64 bytes at most, and a secret may be longer.
    key = hashlib.blake2b(secret).digest() if secret else b""
    return hashlib.blake2b(content, digest_size=size, key=key, person=purpose).digest()


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)


class _UnsupportedDefault:
    """The default of a caller whose default is of no type that a variant can have."""


_DEFAULTS: Final[dict[str, Any]] = {
    kind.__name__: kind() for kind in (bool, int, float, str, dict, list)
}
"""Defaults that replace a caller's, by the name of their type."""


class ReplayResult(Struct, frozen=True, kw_only=True):
    """The result of a replay.

    `key`, `environment`, `region`, `revision`, `time` and `variant`, the one that was served, are
    those of the digest. `evaluation` is the answer of the flag, as of then, to the given context.
    `differences` has a sentence for each difference from the digest.
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
        """True if the same context got the same answer, from the same history."""
        return not self.differences


def digest_of(
    client: Client,
    evaluation: Evaluation[Any],
    context: ContextLike = None,
    *,
    secret: str | bytes | None = None,
) -> str:
    """Return a short text that identifies an evaluation, to be logged, and replayed later.

    It has a hash of the context instead of its attributes. Unless a secret keys the hash, anybody
    who has the digest can check a guess of the context. Without a secret, a digest can be forged,
    too: it proves something only to those who trust the log that it comes from.

    Args:
        client: The client that answered.
        evaluation: Its answer.
        context: The context of the evaluation.
        secret: A key of the hashes, needed again for the replay; or FLAGKIT_DIGEST_SECRET, or none.

    Raises:
        InvalidContextError: it is none of the forms of a context, or an attribute misbehaves.
    """
    key = _read_secret(secret)
    check_instance(client, Client, "client", "pass the client that answered")
    check_instance(evaluation, Evaluation, "evaluation", "pass what client.evaluate returned")
    view = client.evaluator
    hashed = hash_context(context, key)
    snapshot = None if view is None else view.snapshot
    moment = datetime.now(UTC) if view is None else _find_moment(view, evaluation, context)
    unfit = evaluation.error_code is ErrorCode.TYPE_MISMATCH
    digest = EvaluationDigest(
        environment="" if snapshot is None else snapshot.tip.environment,
        region="" if snapshot is None else snapshot.region,
        namespaces=() if snapshot is None else snapshot.namespaces,
        key=evaluation.flag_key,
        revision=evaluation.revision,
        anchor=0 if snapshot is None else snapshot.tip.revision,
        hash=b"" if snapshot is None else _shorten_hash(snapshot.tip.hash),
        moment=(moment - _EPOCH) // _TICK,
        context=hashed,
        variant=evaluation.variant,
        reason=evaluation.reason,
        error_code=evaluation.error_code,
        default=type(evaluation.value).__name__ if unfit else "",
    )
    return encode_digest(digest, key)


def replay(
    uri: str | None,
    digest: str,
    context: ContextLike = None,
    *,
    database: str | None = None,
    secret: str | bytes | None = None,
) -> ReplayResult:
    """Repeat the evaluation of a digest, at its revision and moment, and compare the answers.

    Args:
        uri: A MongoDB connection string of a replica set; or FLAGKIT_URI.
        digest: The text that `digest_of` returned.
        context: The context of the evaluation, with the same attributes.
        database: The database with flagkit's collections.
        secret: The secret that was given to `digest_of`.

    Raises:
        EvaluationDigestError: the digest is malformed or was altered, another secret made it, or
            its answer came from no revision.
        InvalidContextError: the context is none.
        EnvironmentNotFoundError, RevisionNotFoundError, HistoryLostError, StoreError: as
            `client_at` does.
    """
    key = _read_secret(secret)
    check_instance(digest, str, "digest", "pass the text that digest_of returned")
    recorded = decode_digest(digest, key)
    if not recorded.revision or not recorded.hash:
        raise EvaluationDigestError(
            "this digest is of an answer that came from no revision of a database: there were no"
            " flags yet, or the flags were documents or a bootstrap file"
        )
    hashed = hash_context(context, key)
    settings = resolve_settings(
        uri, environment=recorded.environment, region=recorded.region, database=database
    )
    with open_settings_reader(settings) as reading:
        snapshot = load_revision_snapshot(reading, recorded.revision, recorded.region)
        anchored = recorded.anchor == recorded.revision
        anchor = snapshot.tip if anchored else find_tip(reading, recorded.anchor)
    found = _find_answer(_narrow_snapshot(snapshot, recorded.namespaces), recorded, context)
    return ReplayResult(
        environment=recorded.environment,
        region=recorded.region,
        key=recorded.key,
        revision=recorded.revision,
        time=_EPOCH + recorded.moment * _TICK,
        variant=recorded.variant,
        evaluation=found,
        differences=tuple(_iter_differences(recorded, anchor, hashed, found)),
    )


def _iter_differences(
    digest: EvaluationDigest, anchor: Tip | None, hashed: bytes, found: Evaluation[Any]
) -> Iterator[str]:
    """Yield a sentence for each difference from a digest."""
    if anchor is None or _shorten_hash(anchor.hash) != digest.hash:
        yield f"the history is another: revision {digest.anchor} is not the one that was then"
    if hashed != digest.context:
        yield "the context is another: its hash is not the one of then"
    if not _matches(digest, found):
        then = _format_answer(digest.variant, digest.reason, digest.error_code)
        now = _format_answer(found.variant, found.reason, found.error_code)
        yield f"the answer is another: then {then}, now {now}"


def _find_moment(
    evaluator: Evaluator, evaluation: Evaluation[Any], context: ContextLike
) -> datetime:
    """Return a moment at which the flag gave the same answer: now, or before it changed."""
    now, until = datetime.fromtimestamp(evaluator.now(), UTC), evaluation.valid_until
    if until is None or now < until:
        return now
    # The answer may have changed since, or not: `until` may be too early, even before the answer.
    before = until - _TICK
    if evaluator.snapshot.tip.revision == evaluation.revision:
        default = evaluation.value if evaluation.variant is None else None
        for moment in (before, until + _TICK):
            then = _build_evaluator(evaluator.snapshot, moment, Staleness())
            found = then.evaluate(evaluation.flag_key, context, default)
            if (found.variant, found.reason) == (evaluation.variant, evaluation.reason):
                return moment
    return before


def _find_answer(
    snapshot: Snapshot, digest: EvaluationDigest, context: ContextLike
) -> Evaluation[Any]:
    """Return the answer of a flag as of a digest: the digest's, if a client of any age gives it."""
    first: Evaluation[Any] | None = None
    for found in _iter_answers(snapshot, digest, context):
        if _matches(digest, found):
            return found
        first = found if first is None else first
    assert first is not None, "one at least is asked"
    return first


def _iter_answers(
    snapshot: Snapshot, digest: EvaluationDigest, context: ContextLike
) -> Iterator[Evaluation[Any]]:
    """Yield the answers of a fresh client, a stale client, and a call with `max_staleness`."""
    default = _DEFAULTS.get(digest.default, _UnsupportedDefault()) if digest.default else None
    moment = _EPOCH + digest.moment * _TICK
    # The variant that a client with keys served is known without keys. Another client had no keys,
    # or had not fetched them yet.
    decrypters: list[VariantDecrypter] = [PlaceholderDecrypter()]
    if digest.error_code in (ErrorCode.PARSE_ERROR, ErrorCode.PROVIDER_NOT_READY):
        decrypters += [VariantDecrypter(), VariantDecrypter(_raise_never)]
    for decrypter in decrypters:
        # A past client is older than anything: its age is infinite.
        for stale_after, max_staleness in ((math.inf, None), (0.0, None), (math.inf, 0.0)):
            view = _build_evaluator(snapshot, moment, Staleness(stale_after), decrypter)
            yield view.evaluate(digest.key, context, default, max_staleness)


def _build_evaluator(
    snapshot: Snapshot,
    moment: datetime,
    staleness: Staleness,
    decrypter: VariantDecrypter | None = None,
) -> Evaluator:
    seconds = moment.timestamp()
    return Evaluator(snapshot, lambda: seconds, staleness, decrypter or PlaceholderDecrypter())


def _raise_never() -> NoReturn:
    raise AssertionError("no keys are fetched for a replay")


def _matches(digest: EvaluationDigest, found: Evaluation[Any]) -> bool:
    answer = found.variant, str(found.reason), found.error_code
    return answer == (digest.variant, digest.reason, digest.error_code)


def _format_answer(variant: str | None, reason: str, error_code: str | None) -> str:
    served = "the caller's default" if variant is None else repr(variant)
    return f"{served} ({', '.join(filter(None, (reason, error_code)))})"


def _narrow_snapshot(snapshot: Snapshot, namespaces: tuple[str, ...]) -> Snapshot:
    """Return a snapshot with some namespaces only, as a client with these namespaces has it."""
    if not namespaces:
        return snapshot
    narrow = msgspec.structs.replace(snapshot, namespaces=namespaces)
    records = (record for record in snapshot.iter_records() if narrow.is_in_scope(record.id))
    return msgspec.structs.replace(narrow, base=build_arena(snapshot.tip, records), overlay={})


def _shorten_hash(tip_hash: str) -> bytes:
    return bytes.fromhex(tip_hash)[:HASH_BYTES]


def _read_secret(given: str | bytes | None) -> bytes:
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


__all__ = ["ReplayResult", "client_at", "digest_of", "replay"]
