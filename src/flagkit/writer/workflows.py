"""Workflows: changes of a single operation, each as one call. What they share is `change`."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypedDict, Unpack

from flagkit.errors import InvalidDocumentError
from flagkit.model import EVERYWHERE
from flagkit.writer.drafts import Commit, Draft


class Asked(TypedDict, total=False):
    """Who asks for a change, why, and under which name.

    - `reason`: why, for the audit.
    - `actor`: who, for the audit; by default the writer's.
    - `idempotency_key`: names the request: sent again with the same key, and the same content, it
      returns the first Commit and changes nothing.
    """

    reason: str
    actor: str | None
    idempotency_key: str | None


class Workflows:
    """The changes of a single operation. Each takes what Asked has, by name."""

    def change(self, **asked: Unpack[Asked]) -> AbstractContextManager[Draft]:
        """Collect operations that are committed as one revision when the block ends."""
        raise NotImplementedError

    def create(self, flag: Mapping[str, Any], **asked: Unpack[Asked]) -> Commit:
        """Create a flag from its policy document. For errors see `change`."""
        with self.change(**asked) as change:
            change.create(flag)
        return _committed(change)

    def update(
        self,
        flag: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        reassign: bool = False,
        **asked: Unpack[Asked],
    ) -> Commit:
        """Replace a flag's policy document. For errors see `change`."""
        with self.change(**asked) as change:
            change.update(flag, expected_version=expected_version, reassign=reassign)
        return _committed(change)

    def set_rollout(
        self,
        key: str,
        weights: Mapping[str, float] | float,
        *,
        rule: str | None = None,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        reassign: bool = False,
        **asked: Unpack[Asked],
    ) -> Commit:
        """Change a rollout's weights, as Draft.set_rollout does. For errors see `change`."""
        with self.change(**asked) as change:
            change.set_rollout(
                key,
                weights,
                rule=rule,
                region=region,
                expected_version=expected_version,
                reassign=reassign,
            )
        return _committed(change)

    def edit(
        self,
        key: str,
        function: Callable[[dict[str, Any]], Mapping[str, Any]],
        *,
        region: str = EVERYWHERE,
        reassign: bool = False,
        **asked: Unpack[Asked],
    ) -> Commit:
        """Replace a flag's document by what a function makes of it, as Draft.edit does.

        With an idempotency key it is asked once: a resend does not call the function. For errors
        see `change`.
        """
        with self.change(**asked) as change:
            change.edit(key, function, region=region, reassign=reassign)
        return _committed(change)

    def pause(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        **asked: Unpack[Asked],
    ) -> Commit:
        """Pause a flag: it serves its `off` variant. For errors see `change`."""
        with self.change(**asked) as change:
            change.pause(key, region=region)
        return _committed(change)

    def resume(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        **asked: Unpack[Asked],
    ) -> Commit:
        """Make a paused flag active again. For errors see `change`."""
        with self.change(**asked) as change:
            change.resume(key, region=region)
        return _committed(change)

    def archive(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **asked: Unpack[Asked],
    ) -> Commit:
        """Archive a flag, as Draft.archive does. For errors see `change`."""
        with self.change(**asked) as change:
            change.archive(key, region=region, expected_version=expected_version)
        return _committed(change)

    def restore(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **asked: Unpack[Asked],
    ) -> Commit:
        """Make an archived flag a paused one. For errors see `change`."""
        with self.change(**asked) as change:
            change.restore(key, region=region, expected_version=expected_version)
        return _committed(change)

    def delete(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **asked: Unpack[Asked],
    ) -> Commit:
        """Delete an archived flag, as Draft.delete does. For errors see `change`."""
        with self.change(**asked) as change:
            change.delete(key, region=region, expected_version=expected_version)
        return _committed(change)

    def rollback(
        self,
        key: str | None = None,
        *,
        to: int,
        region: str = EVERYWHERE,
        **asked: Unpack[Asked],
    ) -> Commit:
        """Give a flag, or without a key the whole environment, the content of revision `to`.

        As one revision, with all that Draft.rollback and Draft.rollback_all say. For errors see
        `change`.
        """
        with self.change(**asked) as change:
            if key is not None:
                change.rollback(key, to=to, region=region)
            elif region == EVERYWHERE:
                change.rollback_all(to=to)
            else:
                raise InvalidDocumentError(
                    "region", "is given, and no key", "Name a flag, or leave the region out"
                )
        return _committed(change)

    def create_segment(self, segment: Mapping[str, Any], **asked: Unpack[Asked]) -> Commit:
        """Create a segment from its document. For errors see `change`."""
        with self.change(**asked) as change:
            change.create_segment(segment)
        return _committed(change)

    def update_segment(
        self,
        segment: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        **asked: Unpack[Asked],
    ) -> Commit:
        """Replace a segment's document, its keys included. For errors see `change`."""
        with self.change(**asked) as change:
            change.update_segment(segment, expected_version=expected_version)
        return _committed(change)

    def change_members(
        self,
        key: str,
        *,
        include: Iterable[str | int] = (),
        exclude: Iterable[str | int] = (),
        remove: Iterable[str | int] = (),
        expected_version: int | None = None,
        **asked: Unpack[Asked],
    ) -> Commit:
        """Move a segment's keys, as Draft.change_members does. For errors see `change`."""
        with self.change(**asked) as change:
            change.change_members(
                key,
                include=include,
                exclude=exclude,
                remove=remove,
                expected_version=expected_version,
            )
        return _committed(change)

    def rollback_segment(self, key: str, *, to: int, **asked: Unpack[Asked]) -> Commit:
        """Give a segment the content that it had at revision `to`. For errors see `change`."""
        with self.change(**asked) as change:
            change.rollback_segment(key, to=to)
        return _committed(change)

    def delete_segment(
        self, key: str, *, expected_version: int | None = None, **asked: Unpack[Asked]
    ) -> Commit:
        """Delete a segment that no flag refers to. For errors see `change`."""
        with self.change(**asked) as change:
            change.delete_segment(key, expected_version=expected_version)
        return _committed(change)


def _committed(change: Draft) -> Commit:
    assert change.commit is not None, "the block ended without error"
    return change.commit
