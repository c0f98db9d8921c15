"""History: evaluations as of a moment or a revision, and digests of them to be checked later."""

from flagkit.history.past_clients import client_at
from flagkit.history.replaying import Replayed, digest_of, replay

__all__ = ["Replayed", "client_at", "digest_of", "replay"]
