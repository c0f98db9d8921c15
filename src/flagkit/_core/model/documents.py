"""The shape of policy documents, field by field, for msgspec.

`flags.decode` checks that the fields make sense together.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeAlias

from msgspec import Struct

State: TypeAlias = Literal["active", "paused", "archived"]
WhenStale: TypeAlias = Literal["hold", "off"]
VariantType: TypeAlias = Literal["boolean", "string", "integer", "float", "object"]
EVERYWHERE = "*"
TARGETING_KEY = "targeting_key"


class PrerequisiteDocument(Struct, forbid_unknown_fields=True):
    """A member of `prerequisites`."""

    flag: str
    variants: list[str]


class RolloutDocument(Struct, forbid_unknown_fields=True):
    """`rollout`, written out."""

    weights: dict[str, Any]
    by: str = TARGETING_KEY
    salt: str | None = None
    intervals: list[tuple[int, str]] | None = None


class StepDocument(Struct, forbid_unknown_fields=True):
    """A member of `steps`."""

    at: datetime
    percent: int | float


class RampDocument(Struct, forbid_unknown_fields=True, rename={"first": "from", "last": "to"}):
    """`ramp`."""

    variant: str
    otherwise: str
    first: int | float | None = None
    last: int | float | None = None
    start: datetime | None = None
    end: datetime | None = None
    steps: list[StepDocument] | None = None
    by: str = TARGETING_KEY
    salt: str | None = None


class ServesDocument(Struct, forbid_unknown_fields=True):
    """What a rule or the fallthrough serves: one of the three."""

    serve: str | None = None
    rollout: RolloutDocument | int | float | None = None
    ramp: RampDocument | None = None


class HoursDocument(Struct, forbid_unknown_fields=True, rename={"start": "from", "end": "until"}):
    """`hours`."""

    start: str
    end: str


class WindowDocument(Struct, forbid_unknown_fields=True, rename={"start": "from", "end": "until"}):
    """`during`."""

    start: datetime | None = None
    end: datetime | None = None
    days: list[str] | None = None
    hours: HoursDocument | None = None
    zone: str | None = None


class RuleDocument(ServesDocument, kw_only=True, forbid_unknown_fields=True):
    """A member of `rules`."""

    name: str
    when: dict[str, Any] = {}
    during: WindowDocument | None = None


class FlagDocument(Struct, kw_only=True, forbid_unknown_fields=True):
    """A flag."""

    key: str
    environment: str | None = None
    region: str = EVERYWHERE
    state: State = "active"
    variants: dict[str, Any]
    sensitive: list[str] = []
    off: str | None = None
    prerequisites: list[PrerequisiteDocument] = []
    rules: list[RuleDocument] = []
    fallthrough: ServesDocument
    when_stale: WhenStale = "hold"
    owner: str | None = None
    description: str | None = None
    tags: list[str] | None = None
    expires: datetime | None = None


class MembersDocument(Struct, forbid_unknown_fields=True):
    """Keys of members as the writer stores them: hashed, in parts named by their SHA-256."""

    count: int
    parts: list[str]


class SegmentDocument(Struct, kw_only=True, forbid_unknown_fields=True):
    """A segment."""

    key: str
    environment: str | None = None
    when: dict[str, Any] | None = None
    by: str = TARGETING_KEY
    seed: str | None = None
    included: list[str | int] | MembersDocument = []
    excluded: list[str | int] | MembersDocument = []
    owner: str | None = None
    description: str | None = None
    tags: list[str] | None = None


METADATA = ("owner", "description", "tags", "expires")
"""The fields that are for people. Evaluation never reads them."""
DOCUMENTS: Mapping[str, type[Struct]] = {
    "rules": RuleDocument,
    "during": WindowDocument,
    "hours": HoursDocument,
    "rollout": RolloutDocument,
    "ramp": RampDocument,
    "steps": StepDocument,
    "fallthrough": ServesDocument,
    "prerequisites": PrerequisiteDocument,
}
"""The shapes of parts, by the names of the fields that hold them."""
