"""Policy documents as checked values. Pure, and without knowledge of a database."""

from flagkit._core.model.documents import EVERYWHERE, TARGETING_KEY
from flagkit._core.model.flags import (
    Flag,
    Prerequisite,
    Ramp,
    Rollout,
    Rule,
    Serve,
    Serves,
    decode,
    encode,
)

__all__ = [
    "EVERYWHERE",
    "TARGETING_KEY",
    "Flag",
    "Prerequisite",
    "Ramp",
    "Rollout",
    "Rule",
    "Serve",
    "Serves",
    "decode",
    "encode",
]
