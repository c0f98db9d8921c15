"""OpenTelemetry instruments for the state of clients. Needs only the API package.

`import flagkit` does not load this module. Attributes are the environment and the region, and never
the key of a flag, because their number has no bound.
"""

import functools
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from flagkit import Client, Status, __version__
from flagkit._core.model.changes import Change
from flagkit._core.snapshot import Snapshot
from flagkit.client.refresher import BreakerState, RefreshState

PROPAGATION_BOUNDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""The histogram's bounds, in seconds: for change streams, for polling, and for outages."""

Measurements: TypeAlias = Iterable[tuple[float, dict[str, str]]]
StatusReader: TypeAlias = Callable[[Status], Measurements]
"""Returns the values of an instrument for a client, with attributes of their own."""


def instrument(client: Client, meter_provider: MeterProvider | None = None) -> None:
    """Measure a client, for as long as it lives. Repeated calls are harmless; forks need a new one.

    Several clients share the instruments; their environment and region distinguish them. A forked
    child records no delays until it calls this itself.

    Args:
        client: The client to measure. Only a client that counts evaluations reports their number.
        meter_provider: The provider of the meter; by default OpenTelemetry's own, even if it is
            set later.
    """
    with _lock:
        instruments = (
            _global_instruments
            if meter_provider is None
            else _instruments_by_provider.get(meter_provider)
        )
        if instruments is None:
            provider = meter_provider or metrics.get_meter_provider()
            instruments = _Instruments(provider.get_meter("flagkit", __version__))
            _store_instruments(instruments, meter_provider)
        instruments.add(client)


class _Instruments:
    """All instruments of one meter. A meter takes the callbacks of a name but once."""

    def __init__(self, meter: Meter) -> None:
        self._clients: tuple[weakref.ref[Client], ...] = ()
        self._pid = 0
        self._propagation = meter.create_histogram(
            "flagkit.propagation.duration",
            unit="s",
            description="From a change's commit, by the server's clock, to its application here.",
            explicit_bucket_boundaries_advisory=PROPAGATION_BOUNDS,
        )
        for name, unit, description, read in _GAUGES:
            observe = functools.partial(self._observe, read)
            meter.create_observable_gauge(name, [observe], unit, description)
        for name, unit, description, read in _COUNTERS:
            observe = functools.partial(self._observe, read)
            meter.create_observable_counter(name, [observe], unit, description)
        for name, unit, description, read in _SUMS:
            observe = functools.partial(self._observe, read)
            meter.create_observable_up_down_counter(name, [observe], unit, description)

    def add(self, client: Client) -> None:
        """Measure a client from now on, in this process, unless it is measured already."""
        self._pid = os.getpid()
        living = tuple(known for known in self._clients if known() is not None)
        if all(known() is not client for known in living):
            known = weakref.ref(client)
            client.on_publish(functools.partial(self._on_publish, known))
            living += (known,)
        self._clients = living

    def _observe(self, read: StatusReader, _: CallbackOptions) -> Iterator[Observation]:
        for known in self._clients:
            client = known()
            if client is not None:
                status = client.status()
                own = _build_attributes(status.environment, status.region)
                for value, more in read(status):
                    yield Observation(value, own | more)

    def _on_publish(
        self, known: weakref.ref[Client], snapshot: Snapshot, changes: Sequence[Change] | None
    ) -> None:
        # The child of a fork may inherit a locked lock of the SDK, which would block its thread.
        client = known() if os.getpid() == self._pid else None
        # Until the client is current for the first time, the delay would be that of its start.
        if client is None or client.staleness == math.inf:
            return
        now = time.time()
        own = _build_attributes(snapshot.tip.environment, snapshot.region)
        for change in changes or ():
            # This clock may be slower than the server's.
            self._propagation.record(max(now - change.tip.time.timestamp(), 0.0), own)


_lock = threading.Lock()
_instruments_by_provider: weakref.WeakKeyDictionary[MeterProvider, _Instruments] = (
    weakref.WeakKeyDictionary()
)
_global_instruments: _Instruments | None = None


def _store_instruments(instruments: _Instruments, meter_provider: MeterProvider | None) -> None:
    global _global_instruments  # noqa: PLW0603 - as OpenTelemetry has its provider
    if meter_provider is None:
        _global_instruments = instruments
    else:
        _instruments_by_provider[meter_provider] = instruments


def _build_attributes(environment: str, region: str) -> dict[str, str]:
    # Before any flags are there, whose they will be is not known.
    named = {"flagkit.environment": environment} if environment else {}
    return named | {"flagkit.region": region}


def _measure_revision(status: Status) -> Measurements:
    yield status.revision, {}


def _measure_head(status: Status) -> Measurements:
    if status.head is not None:
        yield status.head, {}


def _measure_staleness(status: Status) -> Measurements:
    if status.staleness < math.inf:
        yield status.staleness, {}


def _measure_stale(status: Status) -> Measurements:
    yield int(status.is_stale), {}


def _measure_states(status: Status) -> Measurements:
    if status.state is not None:
        for state in RefreshState:
            yield int(state is status.state), {"flagkit.state": state.value}


def _measure_breakers(status: Status) -> Measurements:
    for breaker, circuit in status.breakers.items():
        for known in BreakerState:
            more = {"flagkit.breaker": breaker, "flagkit.breaker.state": known.value}
            yield int(known is circuit), more


def _measure_errors(status: Status) -> Measurements:
    yield status.error_count, {}


def _measure_evaluations(status: Status) -> Measurements:
    if status.counts is not None:
        yield status.counts.evaluations, {}


def _measure_hits(status: Status) -> Measurements:
    if status.counts is not None:
        yield status.counts.hits, {}


def _measure_misses(status: Status) -> Measurements:
    if status.counts is not None:
        yield status.counts.misses, {}


_Row: TypeAlias = tuple[str, str, str, StatusReader]

_GAUGES: Final[tuple[_Row, ...]] = (
    ("flagkit.revision", "{revision}", "What evaluations answer from.", _measure_revision),
    ("flagkit.head.revision", "{revision}", "The newest that the primary told.", _measure_head),
    ("flagkit.staleness", "s", "Since flags were known to be the database's.", _measure_staleness),
)
_COUNTERS: Final[tuple[_Row, ...]] = (
    ("flagkit.evaluations", "{evaluation}", "Flags evaluated.", _measure_evaluations),
    ("flagkit.hits", "{evaluation}", "Those of a flag that was compiled already.", _measure_hits),
    ("flagkit.misses", "{evaluation}", "All other evaluations.", _measure_misses),
    ("flagkit.errors", "{error}", "What kept a client from being current.", _measure_errors),
)
# Sums of ones and zeros: over a fleet, the number of clients.
_SUMS: Final[tuple[_Row, ...]] = (
    ("flagkit.state", "{client}", "1 for the state that a client is in, else 0.", _measure_states),
    ("flagkit.stale", "{client}", "1 if older than `max_staleness`, else 0.", _measure_stale),
    (
        "flagkit.breaker.state",
        "{breaker}",
        "1 for the state of a breaker, else 0.",
        _measure_breakers,
    ),
)
