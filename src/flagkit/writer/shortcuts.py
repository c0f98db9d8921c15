"""Changes of a single flag or segment, each as one call. Each opens `change` for one operation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Generic, TypedDict, TypeVar, Unpack

from flagkit._core.arguments import refuse_unknown_in_methods
from flagkit._core.model import EVERYWHERE
from flagkit.errors import InvalidArgumentError
from flagkit.writer.draft import Draft
from flagkit.writer.operations import VariantName

ResultT = TypeVar("ResultT")


class ChangeOptions(TypedDict, total=False):
    """Options of each change: who requests it, why, and under which name.

    - `reason`: The reason, for the audit.
    - `actor`: The person or service that requests the change; by default the writer's actor.
    - `idempotency_key`: Names the request. A second request with the same key and the same content
      changes nothing and returns the first Commit.
    - `skip_unchanged`: If True, a change that leaves everything as it is makes no revision. The
      Commit then has the newest revision, and `changed` is False. The audit has no such request.
    """

    reason: str
    actor: str | None
    idempotency_key: str | None
    skip_unchanged: bool


@refuse_unknown_in_methods
class ChangeShortcuts(ABC, Generic[ResultT]):
    """Changes of a single flag or segment. Each takes the options of ChangeOptions by name.

    A Writer returns a Commit from each, a TransactionWriter a PendingChange.
    """

    @abstractmethod
    def change(self, **options: Unpack[ChangeOptions]) -> AbstractContextManager[Draft]:
        """Collect operations that become one revision together."""

    @abstractmethod
    def _get_result(self, draft: Draft) -> ResultT:
        """Return the result of a draft whose block has ended without an error."""

    def create(self, flag: Mapping[str, Any], **options: Unpack[ChangeOptions]) -> ResultT:
        """Create a flag from its policy document. For errors see `change`."""
        return self._change_once(options, lambda draft: draft.create(flag))

    def update(
        self,
        flag: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        reassign: bool = False,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Replace a flag's policy document. For errors see `change`."""
        return self._change_once(
            options,
            lambda draft: draft.update(flag, expected_version=expected_version, reassign=reassign),
        )

    def set_rollout(
        self,
        key: str,
        weights: Mapping[str, float] | float,
        *,
        rule: str | None = None,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        reassign: bool = False,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Change a rollout's weights, as Draft.set_rollout does. For errors see `change`."""
        return self._change_once(
            options,
            lambda draft: draft.set_rollout(
                key,
                weights,
                rule=rule,
                region=region,
                expected_version=expected_version,
                reassign=reassign,
            ),
        )

    def serve(
        self,
        key: str,
        variant: VariantName,
        *,
        rule: str | None = None,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Serve another variant to all, as Draft.serve does. For errors see `change`."""
        return self._change_once(
            options,
            lambda draft: draft.serve(
                key, variant, rule=rule, region=region, expected_version=expected_version
            ),
        )

    def pause(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Pause a flag: it serves its `off` variant. For errors see `change`."""
        return self._change_once(
            options,
            lambda draft: draft.pause(key, region=region, expected_version=expected_version),
        )

    def resume(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Make a paused flag active again. For errors see `change`."""
        return self._change_once(
            options,
            lambda draft: draft.resume(key, region=region, expected_version=expected_version),
        )

    def archive(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Archive a flag, as Draft.archive does. For errors see `change`."""
        return self._change_once(
            options,
            lambda draft: draft.archive(key, region=region, expected_version=expected_version),
        )

    def restore(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Make an archived flag a paused one. For errors see `change`."""
        return self._change_once(
            options,
            lambda draft: draft.restore(key, region=region, expected_version=expected_version),
        )

    def delete(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Delete an archived flag, as Draft.delete does. For errors see `change`."""
        return self._change_once(
            options,
            lambda draft: draft.delete(key, region=region, expected_version=expected_version),
        )

    def rollback(
        self,
        key: str | None = None,
        *,
        to: int,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Give a flag, or without a key the whole environment, the content of revision `to`.

        Either is one revision. See Draft.rollback and Draft.rollback_all. For errors see `change`.
        """

        def collect(draft: Draft) -> None:
            if key is not None:
                draft.rollback(key, to=to, region=region, expected_version=expected_version)
            elif region != EVERYWHERE or expected_version is not None:
                name = "region" if region != EVERYWHERE else "expected_version"
                raise InvalidArgumentError(
                    f"{name} is given without a key: name a flag, or leave {name} out"
                )
            else:
                draft.rollback_all(to=to)

        return self._change_once(options, collect)

    def create_segment(
        self, segment: Mapping[str, Any], **options: Unpack[ChangeOptions]
    ) -> ResultT:
        """Create a segment from its document. For errors see `change`."""
        return self._change_once(options, lambda draft: draft.create_segment(segment))

    def update_segment(
        self,
        segment: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Replace a segment's document, its keys included. For errors see `change`."""
        return self._change_once(
            options,
            lambda draft: draft.update_segment(segment, expected_version=expected_version),
        )

    def change_members(
        self,
        key: str,
        *,
        include: Iterable[str | int] = (),
        exclude: Iterable[str | int] = (),
        remove: Iterable[str | int] = (),
        expected_version: int | None = None,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Move a segment's keys, as Draft.change_members does. For errors see `change`."""
        return self._change_once(
            options,
            lambda draft: draft.change_members(
                key,
                include=include,
                exclude=exclude,
                remove=remove,
                expected_version=expected_version,
            ),
        )

    def rollback_segment(
        self,
        key: str,
        *,
        to: int,
        expected_version: int | None = None,
        **options: Unpack[ChangeOptions],
    ) -> ResultT:
        """Give a segment the content that it had at revision `to`. For errors see `change`."""
        return self._change_once(
            options,
            lambda draft: draft.rollback_segment(key, to=to, expected_version=expected_version),
        )

    def delete_segment(
        self, key: str, *, expected_version: int | None = None, **options: Unpack[ChangeOptions]
    ) -> ResultT:
        """Delete a segment that no flag refers to. For errors see `change`."""
        return self._change_once(
            options, lambda draft: draft.delete_segment(key, expected_version=expected_version)
        )

    def _change_once(self, options: ChangeOptions, collect: Callable[[Draft], None]) -> ResultT:
        with self.change(**options) as draft:
            collect(draft)
        return self._get_result(draft)
