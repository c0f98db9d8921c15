"""Feature flags and rollouts, evaluated in process and kept in MongoDB.

    import flagkit

    flagkit.configure("mongodb://localhost/?replicaSet=rs0", environment="production")
    if flagkit.is_enabled("checkout.express-pay", {"targeting_key": user.id, "country": "DE"}):
        ...

The module's functions ask one default client, which `configure` sets up. Writing flags is
`flagkit.writer`, testing with them `flagkit.testing`.
"""

from typing import Unpack

from flagkit._core.arguments import refuse_unknown_arguments
from flagkit._core.evaluation.context import Context, use_context
from flagkit._core.evaluation.explanation import Explanation
from flagkit._core.evaluation.result import ErrorCode, Evaluation, Reason
from flagkit.client.client import BoundClient, Client, CountingClient, Status
from flagkit.client.counters import Counts
from flagkit.client.subscriptions import FlagChange, Subscription
from flagkit.config import Options, resolve_settings, should_count
from flagkit.errors import FlagkitError

__version__ = "0.1.0"

from flagkit._core.secrets import Encryption, local_encryption

__all__ = [
    "BoundClient",
    "Client",
    "Context",
    "CountingClient",
    "Counts",
    "Encryption",
    "ErrorCode",
    "Evaluation",
    "Explanation",
    "FlagChange",
    "FlagkitError",
    "Reason",
    "Status",
    "Subscription",
    "bind",
    "close",
    "configure",
    "counts",
    "evaluate",
    "evaluate_all",
    "explain",
    "is_enabled",
    "keys",
    "local_encryption",
    "on_change",
    "policy",
    "status",
    "use_context",
    "value",
    "wait_for",
    "wait_ready",
]

# Told by the environment, before anything is configured: a check is bound to it at import, and
# would otherwise have to ask each time whether it is to be counted.
_client = (CountingClient if should_count() else Client).from_source()


@refuse_unknown_arguments
def configure(uri: str | None = None, **options: Unpack[Options]) -> Client:
    """Set up the default client and start it; neither connects nor waits in this thread.

    Arguments are those of Client, environment variables included. Called again with equal settings,
    it does nothing. Called with others, it moves the default client to them: until their flags are
    there, callers get their defaults. Other threads may evaluate, wait and subscribe meanwhile.

    Raises:
        ConfigurationError: the URI or the environment is named nowhere, or an argument makes no
            sense.
        InvalidDocumentError: what is given as `bootstrap` is not valid.
    """
    return _client.follow_settings(resolve_settings(uri, **options))


# Bound methods, not functions around them: a wrapper would cost as much as the check itself.
close = _client.close
is_enabled = _client.is_enabled
value = _client.value
evaluate = _client.evaluate
evaluate_all = _client.evaluate_all
explain = _client.explain
keys = _client.keys
policy = _client.policy
counts = _client.counts
on_change = _client.on_change
status = _client.status
bind = _client.bind
wait_ready = _client.wait_ready
wait_for = _client.wait_for
