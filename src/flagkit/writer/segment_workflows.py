"""Segment workflows: changes of a single segment, each as one call."""

from collections.abc import Iterable, Mapping
from typing import Any, Unpack, overload

from flagkit.arguments import refusing_unknown_in_methods
from flagkit.writer.commits import Commit, PendingChange
from flagkit.writer.workflows import Anyhow, Asked, Within, Workflows, made


@refusing_unknown_in_methods
class SegmentWorkflows(Workflows):
    """The changes of a single segment, which take what those of flags do."""

    @overload
    def create_segment(self, segment: Mapping[str, Any], **asked: Unpack[Asked]) -> Commit: ...
    @overload
    def create_segment(
        self, segment: Mapping[str, Any], **asked: Unpack[Within]
    ) -> PendingChange: ...
    def create_segment(
        self, segment: Mapping[str, Any], **asked: Unpack[Anyhow]
    ) -> Commit | PendingChange:
        """Create a segment from its document. For errors see `change`."""
        with self.change(**asked) as change:
            change.create_segment(segment)
        return made(change)

    @overload
    def update_segment(
        self,
        segment: Mapping[str, Any],
        *,
        expected_version: int | None = ...,
        **asked: Unpack[Asked],
    ) -> Commit: ...
    @overload
    def update_segment(
        self,
        segment: Mapping[str, Any],
        *,
        expected_version: int | None = ...,
        **asked: Unpack[Within],
    ) -> PendingChange: ...
    def update_segment(
        self,
        segment: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        **asked: Unpack[Anyhow],
    ) -> Commit | PendingChange:
        """Replace a segment's document, its keys included. For errors see `change`."""
        with self.change(**asked) as change:
            change.update_segment(segment, expected_version=expected_version)
        return made(change)

    @overload
    def change_members(
        self,
        key: str,
        *,
        include: Iterable[str | int] = ...,
        exclude: Iterable[str | int] = ...,
        remove: Iterable[str | int] = ...,
        expected_version: int | None = ...,
        **asked: Unpack[Asked],
    ) -> Commit: ...
    @overload
    def change_members(
        self,
        key: str,
        *,
        include: Iterable[str | int] = ...,
        exclude: Iterable[str | int] = ...,
        remove: Iterable[str | int] = ...,
        expected_version: int | None = ...,
        **asked: Unpack[Within],
    ) -> PendingChange: ...
    def change_members(
        self,
        key: str,
        *,
        include: Iterable[str | int] = (),
        exclude: Iterable[str | int] = (),
        remove: Iterable[str | int] = (),
        expected_version: int | None = None,
        **asked: Unpack[Anyhow],
    ) -> Commit | PendingChange:
        """Move a segment's keys, as Draft.change_members does. For errors see `change`."""
        with self.change(**asked) as change:
            change.change_members(
                key,
                include=include,
                exclude=exclude,
                remove=remove,
                expected_version=expected_version,
            )
        return made(change)

    @overload
    def rollback_segment(
        self, key: str, *, to: int, expected_version: int | None = ..., **asked: Unpack[Asked]
    ) -> Commit: ...
    @overload
    def rollback_segment(
        self, key: str, *, to: int, expected_version: int | None = ..., **asked: Unpack[Within]
    ) -> PendingChange: ...
    def rollback_segment(
        self,
        key: str,
        *,
        to: int,
        expected_version: int | None = None,
        **asked: Unpack[Anyhow],
    ) -> Commit | PendingChange:
        """Give a segment the content that it had at revision `to`. For errors see `change`."""
        with self.change(**asked) as change:
            change.rollback_segment(key, to=to, expected_version=expected_version)
        return made(change)

    @overload
    def delete_segment(
        self, key: str, *, expected_version: int | None = ..., **asked: Unpack[Asked]
    ) -> Commit: ...
    @overload
    def delete_segment(
        self, key: str, *, expected_version: int | None = ..., **asked: Unpack[Within]
    ) -> PendingChange: ...
    def delete_segment(
        self, key: str, *, expected_version: int | None = None, **asked: Unpack[Anyhow]
    ) -> Commit | PendingChange:
        """Delete a segment that no flag refers to. For errors see `change`."""
        with self.change(**asked) as change:
            change.delete_segment(key, expected_version=expected_version)
        return made(change)
