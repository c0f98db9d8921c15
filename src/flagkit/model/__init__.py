"""The policy documents: what a flag may say, checked. Pure, and knows no database."""

from flagkit.model.decoding import decode
from flagkit.model.documents import EVERYWHERE, TARGETING_KEY
from flagkit.model.flags import (
    Flag,
    Prerequisite,
    Ramp,
    Rollout,
    Rule,
    Serve,
    Serves,
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
