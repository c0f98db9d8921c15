"""`flagkit demo`: the whole cycle on real parts, step by step, with computed numbers.

It works on any policy file: it widens the first rollout and pauses the first kill switch that it
finds. It checks what it claims, and exits with code 3 if a claim does not hold.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click

from flagkit import Client, Context, Evaluation
from flagkit._core.model import EVERYWHERE, Flag, Rollout
from flagkit._core.model.rollouts import BUCKETS, to_percent
from flagkit.cli.output import Printer
from flagkit.errors import ConfigurationError
from flagkit.policy_files.reader import PolicyFile
from flagkit.testing.embedded import EmbeddedMongo
from flagkit.writer import Commit, Writer

_SEED = 2026
_CITIES = {
    "DE": ("Berlin", "Hamburg", "Cologne"),
    "AT": ("Vienna", "Graz"),
    "CH": ("Zurich", "Basel"),
    "FR": ("Paris", "Lyon", "Lille"),
    "US": ("Boston", "Denver"),
}
_COUNTRY_WEIGHTS = (50, 12, 8, 20, 10)
_PLANS = ("free", "plus", "business")
_PLAN_WEIGHTS = (70, 22, 8)


def build_users(count: int) -> list[Context]:
    """Return `count` customers of a shop, as contexts: keys "u-00000" and up, and attributes.

    Users do not depend on the count.
    """
    draw = random.Random(_SEED)  # noqa: S311 - invented people, no secrets
    return [_build_user(number, draw) for number in range(count)]


def _build_user(number: int, draw: random.Random) -> Context:
    country = draw.choices(tuple(_CITIES), _COUNTRY_WEIGHTS)[0]
    plan = draw.choices(_PLANS, _PLAN_WEIGHTS)[0]
    staff = draw.random() < 0.01  # noqa: PLR2004 - one in a hundred
    key = f"u-{number:05}"
    attributes: dict[str, Any] = {
        "country": country,
        "city": draw.choice(_CITIES[country]),
        "plan": plan,
        "staff": staff,
        "email": f"{key}@{'shop' if staff else 'mail'}.example",
        "age": draw.randint(16, 90),
        "orders": int(draw.expovariate(0.4)),
        "app_build": draw.randint(2000, 2600),
    }
    if draw.random() < 0.03:  # noqa: PLR2004 - three in a hundred
        attributes["risk"] = "high"
    if plan == "business":
        contract = "legacy" if draw.random() < 0.2 else "standard"  # noqa: PLR2004 - one in five
        attributes["company"] = {"id": f"c-{draw.randrange(200):03}", "contract": contract}
    return Context(key, attributes)


ENVIRONMENT = "production"
REGION = "eu-west-1"
USERS_COUNT = 10_000
_STEPS_PERCENT = (25, 50)
_KILL_SWITCH = "kill-switch"
_ACTIONS_SHOWN_MAX = 2
_HASH_SHOWN_LENGTH = 8


class CheckFailedError(click.ClickException):
    """The result of a step of the demo was not the one that flagkit promises."""

    exit_code = 3


def resolve_shop_file() -> Path:
    """Return the policy file of the example shop: the wheel's copy, or the clone's own.

    Raises:
        ConfigurationError: neither is there.
    """
    packaged = Path(__file__).with_name("shop.yaml")
    cloned = Path(__file__).parents[4] / "examples" / "shop" / "flags.yaml"
    for place in (packaged, cloned):
        if place.is_file():
            return place
    raise ConfigurationError(
        f"the example's policy file is missing (looked for {packaged} and {cloned}):"
        " name one with --file"
    )


def run(file: Path) -> None:
    """Run the demo on a policy file, in at most some seconds.

    Raises:
        FlagkitError: a part is missing or the file is not valid; nothing stays running.
        CheckFailedError: the result of a step is not the expected one.
    """
    start = time.perf_counter()
    policies = PolicyFile(file, ENVIRONMENT)
    if not _select_visible_flags(policies):
        raise ConfigurationError(f"the policy file {file} has no flags for region {REGION}")
    printer = Printer()
    printer.start_step("A MongoDB server of its own")
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedMongo())
        member = server.members[0]
        printer.print_paragraph(
            f"mongod runs as process {member.pid} on port {member.port}, with its data in"
            f" {server.path}, after {time.perf_counter() - start:.1f} s."
        )
        writer = stack.enter_context(Writer(server.uri, ENVIRONMENT, actor="demo"))
        client = Client(server.uri, environment=ENVIRONMENT, region=REGION)
        stack.callback(client.close)
        demo = _Demo(printer, policies, writer, client)
        demo.load()
        demo.evaluate()
        demo.widen()
        demo.pause_and_roll_back()
        demo.show_ledger()
    printer.start_step("The end")
    if server.path.exists():
        raise CheckFailedError(f"the server's directory {server.path} is still there")
    printer.print_paragraph(
        f"The server has stopped and its data is removed. All of it took"
        f" {time.perf_counter() - start:.1f} s."
    )


class _TimedCommit(NamedTuple):
    """A commit and its times, in seconds from the start of the writer's call."""

    commit: Commit
    returned_after: float
    visible_after: float


class _Demo:
    """The steps, in order, on one writer, one client and the same users."""

    def __init__(self, printer: Printer, file: PolicyFile, writer: Writer, client: Client) -> None:
        self._printer = printer
        self._file = file
        self._writer = writer
        self._client = client
        self._users = build_users(USERS_COUNT)
        self._flags = _select_visible_flags(file)

    def load(self) -> None:
        """Write all flags as one revision, and start the client."""
        self._printer.start_step("The policy file becomes revision 1")
        self._writer.create_environment()
        start = time.perf_counter()
        with (
            self._file.locate_errors(),
            self._writer.change(reason=f"Load {self._file.path.name}") as change,
        ):
            for segment in self._file.segments:
                change.create_segment(segment.document)
            for policy in self._file.policies:
                change.create(policy.document)
        written = time.perf_counter()
        self._client.wait_ready()
        ready = time.perf_counter()
        self._printer.print_paragraph(
            f"{self._file.path.name} holds flags: {len(self._file.policies)}. The writer"
            f" checked and committed them together, in {_format_milliseconds(written - start)}."
            " Each change to an environment makes the next revision, which is seen whole or not"
            " at all."
        )
        self._printer.print_paragraph(
            f"A client in region {REGION} had its snapshot of revision {self._client.revision} in"
            f" {_format_milliseconds(ready - written)}. From here on it answers from memory; a"
            " change stream brings it each new revision."
        )

    def evaluate(self) -> None:
        """Evaluate each flag for each user."""
        self._printer.start_step(f"Every flag for {USERS_COUNT:,} users")
        rows: list[tuple[object, ...]] = []
        seconds = 0.0
        for key, flag in self._flags.items():
            start = time.perf_counter()
            evaluations = self._evaluate_users(key)
            seconds += time.perf_counter() - start
            answers = Counter(
                (_format_variant(it), _format_reason(it), it.rule or "") for it in evaluations
            )
            for i, ((variant, reason, rule), users_count) in enumerate(answers.most_common()):
                name, kind = ("", "") if i else (key, flag.type)
                rows.append((name, kind, variant, f"{users_count:,}", reason, rule))
        columns = ("flag", "type", "variant", "users", "reason", "rule")
        self._printer.print_table(columns, rows, ["users"])
        count = len(self._flags) * USERS_COUNT
        self._printer.print_paragraph(
            f"{count:,} evaluations, {count / seconds:,.0f} a second in one thread: each is a"
            " function call, without a query and without a lock."
        )
        self._printer.print_paragraph(
            "The reasons: STATIC, the flag says the same to all; TARGETING_MATCH, the rule decided;"
            " DEFAULT, no rule did; DISABLED, the flag is paused or a prerequisite is not met;"
            " SPLIT, a rollout decided. A rollout hashes flag and user into one of"
            f" {BUCKETS:,} buckets, each of which belongs to a variant. So a user has the same"
            " variant on every machine, and nothing is stored about anyone."
        )

    def widen(self) -> None:
        """Raise the share of a rollout step by step, and count who came in and who fell out."""
        found = [
            (flag, share)
            for flag in self._flags.values()
            if (share := _find_share(flag)) is not None
        ]
        if not found:
            self._printer.start_step("A rollout is widened")
            self._printer.print_paragraph(
                "No boolean flag has a fallthrough with a rollout to widen: left out."
            )
            return
        flag, share = found[0]
        steps = [step for step in _STEPS_PERCENT if step > share] or [100]
        self._printer.start_step(f"{flag.key} goes from {share} % to {steps[-1]} %")
        inside = self._find_enabled_users(flag.key)
        rows: list[tuple[object, ...]] = [(self._client.revision, f"{share} %", f"{len(inside):,}")]
        first, gone = inside, 0
        for step in steps:
            landing = self._time_change(
                partial(
                    self._writer.set_rollout,
                    flag.key,
                    step,
                    region=flag.region,
                    reason=f"Widen to {step} %",
                )
            )
            before, inside = inside, self._find_enabled_users(flag.key)
            came, left = len(inside - before), len(before - inside)
            gone += left
            rows.append(
                (
                    landing.commit.revision,
                    f"{step} %",
                    f"{len(inside):,}",
                    f"+{came:,}",
                    left,
                    _format_milliseconds(landing.visible_after),
                    _format_milliseconds(landing.returned_after),
                )
            )
        columns = ("revision", "share", "users on", "came in", "taken out", "visible", "returned")
        self._printer.print_table(columns, rows, columns)
        self._printer.print_paragraph(
            f"{len(inside - first):,} users came in, {gone:,} were taken out: the true variant took"
            " over buckets and gave none away. The times run from the start of the writer's call:"
            " `visible` until the watching client answered from the revision, `returned` until the"
            " call ended. The commit lies within the call, so that commit to visible took less"
            " than `visible` says."
        )
        if gone:
            raise CheckFailedError(f"widening {flag.key} took {gone} users out")

    def pause_and_roll_back(self) -> None:
        """Pause a flag, show the answers of it and its dependents, and roll back."""
        flag = self._find_kill_switch()
        if flag is None:
            self._printer.start_step("A flag is paused")
            self._printer.print_paragraph(
                "No active flag has an `off` variant to serve while paused: left out."
            )
            return
        self._printer.start_step(f"{flag.key} is paused, and rolled back")
        keys = [flag.key] + [
            other.key
            for other in self._flags.values()
            if any(item.flag == flag.key for item in other.prerequisites)
        ]
        good = self._client.revision
        before = [self._evaluate_users(key) for key in keys]
        paused = self._time_change(
            lambda: self._writer.pause(flag.key, region=flag.region, reason="Fire drill")
        )
        during = [self._evaluate_users(key) for key in keys]
        restored = self._time_change(
            lambda: self._writer.rollback(
                flag.key, to=good, region=flag.region, reason="End of the drill"
            )
        )
        after = [self._evaluate_users(key) for key in keys]
        self._printer.print_table(
            (
                "flag",
                f"revision {good}",
                f"{paused.commit.revision}: paused",
                f"{restored.commit.revision}: rolled back",
            ),
            zip(
                keys,
                map(_format_variant_counts, before),
                map(_format_variant_counts, during),
                map(_format_variant_counts, after),
                strict=True,
            ),
        )
        differing = sum(map(_count_differing, before, after))
        self._printer.print_paragraph(
            "A paused flag serves its `off` variant, and so does a flag that has it as a"
            f" prerequisite. This was visible {_format_milliseconds(paused.visible_after)} after"
            f" the call began. Rolling back to revision {good} made revision"
            f" {restored.commit.revision}, for history is only ever added to; it was visible after"
            f" {_format_milliseconds(restored.visible_after)}, and {differing:,} answers differ"
            " from before."
        )
        if differing or any(answer.variant != flag.off for answer in during[0]):
            raise CheckFailedError(f"{flag.key} was not paused, or not as before when rolled back")

    def show_ledger(self) -> None:
        """Verify the ledger and print it."""
        self._printer.start_step("The ledger")
        problems = self._writer.reader.verify()
        if problems:
            raise CheckFailedError(f"the ledger does not verify: {'; '.join(problems)}")
        rows = [
            (
                entry.revision,
                entry.time.strftime("%H:%M:%S"),
                entry.actor,
                entry.reason,
                _shorten_actions(entry.actions),
                entry.hash[:_HASH_SHOWN_LENGTH],
            )
            for entry in self._writer.reader.entries()
        ]
        columns = ("rev.", "UTC", "actor", "reason", "actions", "hash")
        self._printer.print_table(columns, rows, ["rev."])
        self._printer.print_paragraph(
            f"Verified: revisions 1 to {len(rows)} without a gap, each hash over the one before,"
            " and the flags in the database are those that the last one left."
        )

    def _find_kill_switch(self) -> Flag | None:
        """Return the flag to pause: a kill switch if there is one, else any that can be paused."""
        able = [
            flag for flag in self._flags.values() if flag.state == "active" and flag.off is not None
        ]
        marked = [flag for flag in able if _KILL_SWITCH in _get_tags(flag)]
        return next(iter(marked + able), None)

    def _evaluate_users(self, key: str) -> list[Evaluation[Any]]:
        evaluate = self._client.evaluate
        return [evaluate(key, user) for user in self._users]

    def _find_enabled_users(self, key: str) -> set[int]:
        """Return the places of the users for whom a boolean flag is on."""
        is_enabled = self._client.is_enabled
        return {place for place, user in enumerate(self._users) if is_enabled(key, user)}

    def _time_change(self, write: Callable[[], Commit]) -> _TimedCommit:
        """Make a change, and take the times of its return and of the client's serving it.

        Another thread waits for the client, since that may have a revision before the call returns.
        """
        expected = self._client.revision + 1

        def seen() -> float:
            self._client.wait_for(expected)
            return time.perf_counter()

        with ThreadPoolExecutor(1) as pool:
            visible = pool.submit(seen)
            start = time.perf_counter()
            commit = write()
            returned = time.perf_counter()
            return _TimedCommit(commit, returned - start, visible.result() - start)


def _select_visible_flags(file: PolicyFile) -> dict[str, Flag]:
    """Return the flags that the client's region sees: an override hides the flag for all."""
    flags = [policy.flag for policy in file.policies]
    return {
        flag.key: flag for region in (EVERYWHERE, REGION) for flag in flags if flag.region == region
    }


def _find_share(flag: Flag) -> float | None:
    """Return the percentage that a flag's fallthrough rolls out, None if that cannot be widened."""
    rollout = flag.fallthrough
    on = {name for name, value in flag.variants.items() if value is True}
    off = {name for name, value in flag.variants.items() if value is False}
    if flag.state != "active" or not isinstance(rollout, Rollout) or (len(on), len(off)) != (1, 1):
        return None
    share = sum(rollout.weights.get(variant, 0) for variant in on)
    return to_percent(share) if share < BUCKETS else None


def _get_tags(flag: Flag) -> list[Any]:
    tags = flag.metadata.get("tags")
    return tags if isinstance(tags, list) else []


def _format_variant(evaluation: Evaluation[Any]) -> str:
    return evaluation.variant if evaluation.variant is not None else "(caller's default)"


def _format_reason(evaluation: Evaluation[Any]) -> str:
    return " ".join(word for word in (evaluation.reason, evaluation.error_code) if word)


def _format_variant_counts(evaluations: Sequence[Evaluation[Any]]) -> str:
    """Return how often each variant was served, most often first."""
    counts = Counter(map(_format_variant, evaluations))
    return ", ".join(f"{variant} {count:,}" for variant, count in counts.most_common())


def _count_differing(before: Sequence[Evaluation[Any]], after: Sequence[Evaluation[Any]]) -> int:
    return sum(
        (one.variant, one.reason, one.rule) != (two.variant, two.reason, two.rule)
        for one, two in zip(before, after, strict=True)
    )


def _shorten_actions(actions: Sequence[str]) -> list[str]:
    shown = list(actions[:_ACTIONS_SHOWN_MAX])
    if len(actions) > len(shown):
        shown.append(f"and {len(actions) - len(shown)} more")
    return shown


def _format_milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
