"""Packing: a checked flag as a compact MessagePack body, and the way back without another check.

A body is positional: [state, type, variants, off, fallthrough, rules, prerequisites, when_stale].
`when_stale` is absent if it is `hold`. Rules name variants by their positions. A body has no key,
region or metadata, and a salt that equals the flag's key is nil, so equal policies have equal
bodies. Conditions keep their written form, with numbers in place of the names of operators. The
body of an invalid document is a text that says what is wrong. The value of a sensitive variant is
its ciphertext.

docs/snapshot-format.md describes the layout. A change of the layout needs a new FORMAT.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeAlias, cast, get_args

import msgspec
import xxhash
from msgspec import Meta, Struct

from flagkit._core.interruptions import is_interruption
from flagkit._core.model.conditions import ALWAYS, KEYWORDS, parse_condition
from flagkit._core.model.documents import TARGETING_KEY, State, VariantType, WhenStale
from flagkit._core.model.flags import Flag, Prerequisite, Ramp, Rollout, Rule, Serve, Serves, decode
from flagkit._core.model.sensitive import EncryptedValue, VariantValue, encode_variant
from flagkit._core.model.values import DEPTH_MAX, Value
from flagkit._core.model.windows import Recurrence, Window, check_zone
from flagkit.errors import FlagkitError, InvalidDocumentError

FORMAT: Final = 1

_EXTENDED_JSON: Final = (
    *("$date", "$numberDecimal", "$numberDouble", "$numberInt", "$numberLong", "$uuid", "$binary"),
    "$oid",
)
KEYWORD_NUMBERS: Final[Mapping[str, int]] = {
    **{name: keyword.number for name, keyword in KEYWORDS.items()},
    **{name: number for number, name in enumerate(_EXTENDED_JSON, 25)},
}
"""Numbers that stand for the names of operators and of Extended JSON in conditions."""
_KEYWORD_NAMES: Final = {number: name for name, number in KEYWORD_NUMBERS.items()}

_STATES: Final[tuple[State, ...]] = get_args(State)
_WHEN_STALE: Final[tuple[WhenStale, ...]] = get_args(WhenStale)
_TYPES: Final[tuple[VariantType, ...]] = get_args(VariantType)
_CLASSES: Final[tuple[set[type], ...]] = ({bool}, {str}, {int}, {float}, {dict, list})
"""The Python types of the variants of each type. Evaluations do not check them again."""
_BY_KEY: Final = (TARGETING_KEY,)
_NO_VARIANT: Final = -1

FAULTS: Final = (FlagkitError, msgspec.MsgspecError, ValueError)
"""The errors that an invalid document raises; bad UTF-8 raises a ValueError.

RecursionError and MemoryError are not among them: valid documents raise these, too, where the
caller has used up the stack or the memory. See `is_document_fault`.
"""

NESTING_MAX: Final = 2 * DEPTH_MAX
"""No valid document is nested deeper than this, in any of its packed forms."""


# What counts from the end to Python is out of range here.
_Index: TypeAlias = Annotated[int, Meta(ge=0)]


class _Rollout(Struct, array_like=True, tag=0):
    """A rollout. `intervals` are ends and variants in turn; weights that they say are left out."""

    intervals: tuple[_Index, ...]
    salt: str | None = None
    by: tuple[str, ...] | None = None
    weights: dict[str, int] | None = None


class _Ramp(Struct, array_like=True, tag=1):
    variant: _Index
    otherwise: _Index
    points: tuple[tuple[float, int], ...]
    stepped: bool
    salt: str | None = None
    by: tuple[str, ...] | None = None


_Serves: TypeAlias = _Index | _Rollout | _Ramp


class _Window(Struct, array_like=True):
    start: float
    end: float
    zone: str | None = None
    days: tuple[Annotated[int, Meta(ge=0, le=6)], ...] = ()
    minutes: tuple[int, int] = (0, 0)


class _Rule(Struct, array_like=True):
    name: str
    serves: _Serves
    when: dict[str | int, Any] = {}
    during: _Window | None = None


class _Body(Struct, array_like=True):
    state: _Index
    type: _Index
    variants: dict[str, Any]
    off: Annotated[int, Meta(ge=_NO_VARIANT)]
    fallthrough: _Serves
    rules: tuple[_Rule, ...] = ()
    prerequisites: tuple[tuple[str, tuple[str, ...]], ...] = ()


class _StaleBody(_Body, array_like=True):
    """Later fields are written only if they are set, so that older bodies stay as they are."""

    when_stale: _Index = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(str | _StaleBody).decode


def pack(flag: Flag) -> bytes:
    """Return the body of a flag."""
    places = {name: place for place, name in enumerate(flag.variants)}

    def serves(served: Serves) -> _Serves:
        if isinstance(served, Serve):
            return places[served.variant]
        salt = served.salt if served.salt != flag.key else None
        by = served.by if served.by != _BY_KEY else None
        if isinstance(served, Ramp):
            return _Ramp(
                places[served.variant],
                places[served.otherwise],
                served.points,
                served.stepped,
                salt,
                by,
            )
        flat = tuple(item for end, name in served.intervals for item in (end, places[name]))
        names = (name for _, name in served.intervals)
        # They can be told from the intervals, unless some are 0 or in another order.
        weights = served.weights if [*dict.fromkeys(names)] != [*served.weights] else None
        return _Rollout(flat, salt, by, weights)

    body = _Body(
        _STATES.index(flag.state),
        _TYPES.index(flag.type),
        {name: _pack_variant(value, name) for name, value in flag.variants.items()}
        if flag.sensitive
        else flag.variants,
        _NO_VARIANT if flag.off is None else places[flag.off],
        serves(flag.fallthrough),
        tuple(
            _Rule(
                rule.name,
                serves(rule.serves),
                _number_operators(rule.when),
                _pack_window(rule.during),
            )
            for rule in flag.rules
        ),
        tuple((item.flag, item.variants) for item in flag.prerequisites),
    )
    when_stale = _WHEN_STALE.index(flag.when_stale)
    return _encode([*msgspec.structs.astuple(body), when_stale] if when_stale else body)


def _pack_variant(value: VariantValue, name: str) -> Any:
    return (
        value.ciphertext
        if isinstance(value, EncryptedValue)
        else encode_variant(value, f"variants.{name}")
    )


def pack_document(packed: bytes, flag: Flag | None = None) -> bytes:
    """Return the body of a flag's stored document, or of its fault if the document is malformed.

    A malformed document spoils its own flag only; all other flags keep working.

    Args:
        packed: The policy document in MessagePack.
        flag: The flag that the document decodes to, if the caller has it.
    """
    try:
        return pack(flag or decode(msgspec.msgpack.decode(packed), stored=True))
    except Exception as error:
        if not is_document_fault(packed, error):
            raise
        return pack_fault(error)


def compute_seal(key: str, version: int, state_hash: int, body: bytes) -> str:
    """Return 16 hexadecimal digits that bind a body to the state from which it was made.

    A reader that has the body without its document checks with it that both belong together.
    """
    seed = xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"), state_hash ^ version)
    return xxhash.xxh3_64_hexdigest(body, seed)


def pack_fault(error: Exception) -> bytes:
    """Return the body of a document that is no policy, for what it raised when it was read."""
    return _encode(str(error))


def unpack(key: str, region: str, body: bytes) -> Flag:
    """Return the flag of a body, without metadata.

    Raises:
        InvalidDocumentError: the document that it was made from was none, or the body is none.
    """
    try:
        return _unpack_flag(key, region, _decode(body))
    except InvalidDocumentError:
        raise
    except (*FAULTS, ArithmeticError, LookupError, TypeError, RecursionError) as error:
        if not is_document_fault(body, error):
            raise
        raise InvalidDocumentError("", f"is no body of a flag: {error}", "Load it anew") from None


def is_document_fault(packed: bytes, error: Exception) -> bool:
    """Tell whether reading a packed document failed because of the document.

    Otherwise it failed because of the circumstances of the caller: the stack or the memory was
    used up, or a signal handler raised the error. The next attempt may succeed, so such a failure
    must not be kept.
    """
    if isinstance(error, RecursionError):
        return _is_nested_deeper(packed, NESTING_MAX)
    return not isinstance(error, MemoryError) and not is_interruption(error)


def _is_nested_deeper(packed: bytes, most: int) -> bool:
    """Tell whether MessagePack has lists and documents in more than `most` levels.

    This does not recurse, so it answers on any stack. Bytes that are no MessagePack may get either
    answer.

    Source: https://github.com/msgpack/msgpack/blob/master/spec.md.
    """
    left: list[int] = []
    at = 0
    while at < len(packed):
        while left and left[-1] == 0:
            left.pop()
        if left:
            left[-1] -= 1
        first = packed[at]
        at += 1
        if first in _SIZED:
            width, is_container, each, more = _SIZED[first]
            count = int.from_bytes(packed[at : at + width]) * each + more
            at += width
        elif first in _FIXED:
            count, is_container = _FIXED[first]
        else:
            continue
        if not is_container:
            at += count
            continue
        left.append(count)
        if len(left) > most:
            return True
    return False


_SIZED: Final[dict[int, tuple[int, bool, int, int]]] = {
    **{0xC4 + i: (2**i, False, 1, 0) for i in range(3)},
    **{0xC7 + i: (2**i, False, 1, 1) for i in range(3)},
    **{0xD9 + i: (2**i, False, 1, 0) for i in range(3)},
    **{0xDC + i: (2 ** (i + 1), True, 1, 0) for i in range(2)},
    **{0xDE + i: (2 ** (i + 1), True, 2, 0) for i in range(2)},
}
"""The first bytes of binaries, extensions, texts, lists and documents whose length follows.

For each: the bytes of the length, whether items follow, how many bytes or items each unit of the
length stands for, and how many more there are.
"""
_FIXED: Final[dict[int, tuple[int, bool]]] = {
    **{0x80 + count: (2 * count, True) for count in range(16)},
    **{0x90 + count: (count, True) for count in range(16)},
    **{0xA0 + length: (length, False) for length in range(32)},
    **{0xCC + i: (2**i, False) for i in range(4)},
    **{0xD0 + i: (2**i, False) for i in range(4)},
    **{0xD4 + i: (1 + 2**i, False) for i in range(5)},
    0xCA: (4, False),
    0xCB: (8, False),
}
"""The first bytes that say the whole length: how much follows, and whether it is items."""


def _unpack_flag(key: str, region: str, wire: str | _StaleBody) -> Flag:
    if isinstance(wire, str):
        raise InvalidDocumentError("", wire, "Write the flag anew")
    variants: dict[str, Any] = wire.variants
    sensitive: tuple[str, ...] = ()
    if not _CLASSES[wire.type].issuperset(map(type, variants.values())):
        variants, sensitive = _unpack_variants(variants, _TYPES[wire.type])
    names = [*wire.variants]
    return Flag(
        key=key,
        region=region,
        state=_STATES[wire.state],
        type=_TYPES[wire.type],
        variants=variants,
        sensitive=sensitive,
        off=None if wire.off == _NO_VARIANT else names[wire.off],
        prerequisites=tuple([Prerequisite(*item) for item in wire.prerequisites]),
        rules=tuple([_unpack_rule(rule, key, names, i) for i, rule in enumerate(wire.rules)]),
        fallthrough=_unpack_serves(wire.fallthrough, key, names),
        when_stale=_WHEN_STALE[wire.when_stale],
        metadata={},
    )


def _unpack_variants(
    variants: dict[str, Any], kind: VariantType
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return variants with those that are encrypted as such, and their names."""
    sealed = {
        name: EncryptedValue(value, kind)
        for name, value in variants.items()
        if type(value) is bytes
    }
    others = [value for name, value in variants.items() if name not in sealed]
    if not _CLASSES[_TYPES.index(kind)].issuperset(map(type, others)):
        raise InvalidDocumentError("variants", f"are not all of type {kind}", "Load it anew")
    return variants | sealed, tuple(sealed)


def _unpack_serves(wire: _Serves, key: str, names: list[str]) -> Serves:
    if isinstance(wire, int):
        return Serve(names[wire])
    salt, by = wire.salt or key, wire.by or _BY_KEY
    if isinstance(wire, _Ramp):
        variant, otherwise = names[wire.variant], names[wire.otherwise]
        return Ramp(by, salt, variant, otherwise, wire.points, wire.stepped)
    # Written out, for a flag that was not asked for before waits for it.
    intervals: list[tuple[int, str]] = []
    weights: dict[str, int] = {}
    start, flat = 0, wire.intervals
    for at in range(0, len(flat), 2):
        end, name = flat[at], names[flat[at + 1]]
        intervals.append((end, name))
        weights[name] = weights.get(name, 0) + end - start
        start = end
    return Rollout(by, salt, wire.weights or weights, tuple(intervals))


def _unpack_rule(wire: _Rule, key: str, names: list[str], place: int) -> Rule:
    when: dict[str, Value] = _name_operators(wire.when)
    condition = parse_condition(when, f"rules[{place}].when") if when else ALWAYS
    serves = _unpack_serves(wire.serves, key, names)
    return Rule(wire.name, when, condition, _unpack_window(wire.during, place), serves)


def _number_operators(value: Any) -> Any:
    """Return a condition with numbers for the names of operators; no other names are numbers."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {
            KEYWORD_NUMBERS.get(name, name): _number_operators(item)
            for name, item in fields.items()
        }
    if isinstance(value, list):
        return [*map(_number_operators, value)]  # pyright: ignore[reportUnknownArgumentType]
    return value


def _name_operators(value: Any) -> Any:
    """Return a condition with the names of operators in the places of their numbers."""
    if isinstance(value, dict):
        fields = cast("dict[str | int, Any]", value)
        return {
            name if isinstance(name, str) else _KEYWORD_NAMES[name]: _name_operators(item)
            for name, item in fields.items()
        }
    if isinstance(value, list):
        return [*map(_name_operators, value)]  # pyright: ignore[reportUnknownArgumentType]
    return value


def _pack_window(window: Window | None) -> _Window | None:
    if window is None:
        return None
    again = window.recurrence
    if again is None:
        return _Window(window.start, window.end)
    return _Window(window.start, window.end, again.zone, again.days, (again.start, again.end))


def _unpack_window(wire: _Window | None, place: int) -> Window | None:
    if wire is None:
        return None
    if wire.zone is None:
        return Window(wire.start, wire.end, None)
    # What the writer's machine knows, this one may not.
    check_zone(wire.zone, f"rules[{place}].during.zone")
    return Window(wire.start, wire.end, Recurrence(wire.zone, wire.days, *wire.minutes))
