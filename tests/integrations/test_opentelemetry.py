"""Telemetry: where clients stand, as OpenTelemetry's own SDK reads it."""

import gc
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Sum

from flagkit import Client, CountingClient
from flagkit.errors import StoreUnavailableError
from flagkit.integrations.opentelemetry import PROPAGATION_BOUNDS, instrument
from flagkit.testing import ManualClock, MemoryHistory, client_from
from flagkit.writer import Writer
from tests.support.forked import ForkedChild, poll_until

pytestmark = pytest.mark.every_python

PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"
THEME: dict[str, Any] = {
    "key": "shop.theme",
    "variants": {"dark": "dark"},
    "fallthrough": {"serve": "dark"},
}


class Point(NamedTuple):
    """A value, None of a histogram, and the attributes beside environment and region."""

    value: float | None
    more: dict[str, Any]


class Meters:
    """What is measured, as it would be exported."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def metrics(self) -> dict[str, Any]:
        """Return the metrics that have data, by name."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        found = [
            scope.metrics for resource in data.resource_metrics for scope in resource.scope_metrics
        ]
        return {metric.name: metric for metrics in found for metric in metrics}

    def points(self, name: str, region: str = "*") -> list[Point]:
        """Return the points of an instrument and region."""
        metric = self.metrics().get(name)
        found = []
        for point in () if metric is None else metric.data.data_points:
            more = dict(point.attributes)
            more.pop("flagkit.environment", None)
            if more.pop("flagkit.region") == region:
                found.append(Point(getattr(point, "value", None), more))
        return found

    def value(self, name: str, region: str = "*") -> float | None:
        """Return the one value of an instrument, None where it has none."""
        points = self.points(name, region)
        assert len(points) <= 1
        return points[0].value if points else None

    def delays(self) -> HistogramDataPoint | None:
        """Return the histogram of delays, None before there is one."""
        metric = self.metrics().get("flagkit.propagation.duration")
        if metric is None:
            return None
        [point] = metric.data.data_points
        assert isinstance(point, HistogramDataPoint)
        return point


@pytest.fixture
def meters() -> Iterator[Meters]:
    meters = Meters()
    yield meters
    meters.provider.shutdown()


def current(client: Client) -> bool:
    return poll_until(lambda: client.status().staleness < 60, bool)


def test_what_status_says_is_measured(meters: Meters) -> None:
    history = MemoryHistory()
    history.commit(THEME)
    with CountingClient.from_source(history.create_source) as client:
        instrument(client, meters.provider)
        client.wait_ready()
        current(client)
        for _ in range(3):
            client.evaluate("shop.theme")
        assert meters.value("flagkit.revision") == 1
        assert meters.value("flagkit.head.revision") == 1
        staleness = meters.value("flagkit.staleness")
        assert staleness is not None
        assert 0 <= staleness < 60
        assert meters.value("flagkit.stale") == 0
        assert meters.value("flagkit.errors") == 0
        counted = [meters.value(f"flagkit.{name}") for name in ("evaluations", "hits", "misses")]
        assert counted == [3, 2, 1]
        states = {
            point.more["flagkit.state"]: point.value for point in meters.points("flagkit.state")
        }
        assert states.pop("watching") == 1
        assert set(states.values()) == {0}
        closed = [
            point.more for point in meters.points("flagkit.breaker.state") if point.value == 1
        ]
        assert {point["flagkit.breaker"] for point in closed} == {"near", "primary", "head"}
        assert {point["flagkit.breaker.state"] for point in closed} == {"closed"}


def test_the_page_on_telemetry_has_every_instrument(meters: Meters) -> None:
    history = MemoryHistory()
    history.commit(THEME)
    with CountingClient.from_source(history.create_source) as client:
        instrument(client, meters.provider)
        client.wait_ready()
        current(client)
        client.wait_for(history.commit(THEME).revision)
        poll_until(meters.delays, lambda found: found is not None)
        metrics = meters.metrics()
    rows = re.findall(
        r"^\| `(flagkit\.\S+)` \| (\w+) \| `(\S+)` \|", PAGE.read_text(), re.MULTILINE
    )
    kinds = {
        name: "counter"
        if isinstance(metric.data, Sum) and metric.data.is_monotonic
        else type(metric.data).__name__.lower()
        for name, metric in metrics.items()
    }
    assert {(name, kind, unit) for name, kind, unit in rows} == {
        (name, kinds[name], metric.unit) for name, metric in metrics.items()
    }


def test_what_is_not_known_is_not_measured(meters: Meters) -> None:
    client = Client("mongodb://user:secret@127.0.0.1:1/", environment="production")
    instrument(client, meters.provider)
    assert meters.value("flagkit.revision") == 0
    for name in ("head.revision", "staleness", "state", "breaker.state", "evaluations"):
        assert meters.points(f"flagkit.{name}") == [], name
    assert "secret" not in str(meters.metrics())


def test_errors_are_counted(meters: Meters) -> None:
    history = MemoryHistory()
    history.fault = StoreUnavailableError("no member answers")
    with Client.from_source(history.create_source) as client:
        instrument(client, meters.provider)
        poll_until(lambda: meters.value("flagkit.errors"), lambda found: (found or 0) >= 2)


def test_the_delay_of_a_change_is_from_its_time_to_its_application(meters: Meters) -> None:
    clock = ManualClock(datetime.now(UTC) - timedelta(seconds=20))
    history = MemoryHistory(now=clock)
    history.commit(THEME)
    with Client.from_source(history.create_source) as client:
        instrument(client, meters.provider)
        client.wait_ready()
        current(client)
        assert meters.delays() is None, "a load is no delay"
        history.commit(THEME)
        history.commit(THEME)
        point = poll_until(meters.delays, lambda found: found is not None and found.count == 2)
    assert point is not None
    assert 40 <= point.sum < 80
    assert point.explicit_bounds == PROPAGATION_BOUNDS
    assert point.attributes == {"flagkit.environment": "test", "flagkit.region": "*"}


def test_a_clock_that_is_behind_makes_no_delay_negative(meters: Meters) -> None:
    history = MemoryHistory(now=ManualClock(datetime.now(UTC) + timedelta(hours=1)))
    history.commit(THEME)
    with Client.from_source(history.create_source) as client:
        instrument(client, meters.provider)
        client.wait_ready()
        current(client)
        history.commit(THEME)
        point = poll_until(meters.delays, lambda found: found is not None)
    assert point is not None
    assert (point.count, point.sum) == (1, 0)


def test_clients_share_the_instruments_and_are_told_apart_by_region(meters: Meters) -> None:
    central, european = (
        client_from([THEME]),
        client_from([THEME, THEME | {"key": "shop.more"}], region="eu"),
    )
    for client in (central, european, central):
        instrument(client, meters.provider)
    assert meters.value("flagkit.revision") == 1
    assert meters.value("flagkit.revision", "eu") == 1
    del client, european
    gc.collect()
    assert meters.value("flagkit.revision") == 1
    assert meters.points("flagkit.revision", "eu") == []


# 3.12 on: forking with threads is what this is about.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_records_delays_once_it_is_instrumented_itself(meters: Meters) -> None:
    history = MemoryHistory()
    history.commit(THEME)
    with Client.from_source(history.create_source) as client:
        instrument(client, meters.provider)
        client.wait_ready()
        current(client)

        def follow(says: Connection) -> None:
            client.wait_for(history.commit(THEME).revision)
            says.send((meters.value("flagkit.revision"), meters.delays()))
            instrument(client, meters.provider)
            history.commit(THEME)
            says.send(poll_until(meters.delays, lambda found: found is not None) is not None)

        with ForkedChild(follow) as child:
            assert child.says() == (2, None)
            assert child.says()


def test_without_a_provider_nothing_is_measured_and_nothing_fails() -> None:
    first, second = client_from([THEME]), client_from([THEME])
    instrument(first)
    instrument(second)
    assert first.value("shop.theme", default="none") == "dark"


def test_flagkit_alone_loads_nothing_of_it() -> None:
    code = "import sys, flagkit; print([name for name in sys.modules if 'telemetry' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.mongo
def test_changes_of_a_database_are_measured(
    mongo_uri: str, database: str, writer: Writer, meters: Meters
) -> None:
    writer.create(THEME)
    with Client(mongo_uri, environment="production", database=database) as client:
        instrument(client, meters.provider)
        client.wait_ready()
        current(client)
        client.wait_for(writer.pause("shop.theme", reason="incident 7").revision)
        point = poll_until(meters.delays, lambda found: found is not None)
        assert point is not None
        # The server's clock is this machine's.
        assert (point.count, point.sum < 60) == (1, True)
        assert meters.value("flagkit.revision") == 2
