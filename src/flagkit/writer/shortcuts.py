"""Changes of a single flag or segment, each as one call. All of them use `Writer.change`."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypedDict, Unpack, overload

from flagkit._core.arguments import refuse_unknown_in_methods
from flagkit._core.model import EVERYWHERE
from flagkit._core.storage.requests import Session
from flagkit.errors import InvalidArgumentError
from flagkit.writer.draft import Commit, Draft, PendingChange
from flagkit.writer.operations import VariantName


class ChangeOptions(TypedDict, total=False):
    """Who asks for a change, why, and under which name.

    - `reason`: why, for the audit.
    - `actor`: who, for the audit; by default the writer's.
    - `idempotency_key`: names the request: sent again with the same key, and the same content, it
      returns the first Commit and changes nothing.
    - `skip_unchanged`: whether a change that leaves everything as it is makes no revision. Then the
      Commit has the newest revision, and `changed` is False. Nothing is recorded of the request.
    """

    reason: str
    actor: str | None
    idempotency_key: str | None
    skip_unchanged: bool


class TransactionOptions(ChangeOptions):
    """What Asked has, and a session of the caller's own client, which is in a transaction.

    The change is asked for in that transaction, and made after it: what is returned is a
    PendingChange, whose `commit` returns the Commit.
    """

    session: Session


class OptionalTransactionOptions(ChangeOptions, total=False):
    """What Asked has, and perhaps a session."""

    session: Session | None


@refuse_unknown_in_methods
class FlagShortcuts:
    """The changes of a single flag. Each takes what Asked has, by name, and perhaps a session."""

    def change(self, **asked: Unpack[OptionalTransactionOptions]) -> AbstractContextManager[Draft]:
        """Collect operations that are committed as one revision when the block ends."""
        raise NotImplementedError

    @overload
    def create(self, flag: Mapping[str, Any], **asked: Unpack[ChangeOptions]) -> Commit: ...
    @overload
    def create(
        self, flag: Mapping[str, Any], **asked: Unpack[TransactionOptions]
    ) -> PendingChange: ...
    def create(
        self, flag: Mapping[str, Any], **asked: Unpack[OptionalTransactionOptions]
    ) -> Commit | PendingChange:
        """Create a flag from its policy document. For errors see `change`."""
        with self.change(**asked) as change:
            change.create(flag)
        return get_result(change)

    @overload
    def update(
        self,
        flag: Mapping[str, Any],
        *,
        expected_version: int | None = ...,
        reassign: bool = ...,
        **asked: Unpack[ChangeOptions],
    ) -> Commit: ...
    @overload
    def update(
        self,
        flag: Mapping[str, Any],
        *,
        expected_version: int | None = ...,
        reassign: bool = ...,
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def update(
        self,
        flag: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        reassign: bool = False,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
        """Replace a flag's policy document. For errors see `change`."""
        with self.change(**asked) as change:
            change.update(flag, expected_version=expected_version, reassign=reassign)
        return get_result(change)

    @overload
    def set_rollout(
        self,
        key: str,
        weights: Mapping[str, float] | float,
        *,
        rule: str | None = ...,
        region: str = ...,
        expected_version: int | None = ...,
        reassign: bool = ...,
        **asked: Unpack[ChangeOptions],
    ) -> Commit: ...
    @overload
    def set_rollout(
        self,
        key: str,
        weights: Mapping[str, float] | float,
        *,
        rule: str | None = ...,
        region: str = ...,
        expected_version: int | None = ...,
        reassign: bool = ...,
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def set_rollout(
        self,
        key: str,
        weights: Mapping[str, float] | float,
        *,
        rule: str | None = None,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        reassign: bool = False,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
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
        return get_result(change)

    @overload
    def serve(
        self,
        key: str,
        variant: VariantName,
        *,
        rule: str | None = ...,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[ChangeOptions],
    ) -> Commit: ...
    @overload
    def serve(
        self,
        key: str,
        variant: VariantName,
        *,
        rule: str | None = ...,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def serve(
        self,
        key: str,
        variant: VariantName,
        *,
        rule: str | None = None,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
        """Serve another variant to all, as Draft.serve does. For errors see `change`."""
        with self.change(**asked) as change:
            change.serve(key, variant, rule=rule, region=region, expected_version=expected_version)
        return get_result(change)

    def edit(
        self,
        key: str,
        function: Callable[[dict[str, Any]], Mapping[str, Any]],
        *,
        region: str = EVERYWHERE,
        reassign: bool = False,
        **asked: Unpack[ChangeOptions],
    ) -> Commit:
        """Replace a flag's document by what a function makes of it, as Draft.edit does.

        With an idempotency key it is asked once: a resend does not call the function. For errors
        see `change`.
        """
        with self.change(**asked) as change:
            change.edit(key, function, region=region, reassign=reassign)
        assert change.commit is not None, "a function cannot be asked for in a transaction"
        return change.commit

    @overload
    def pause(
        self,
        key: str,
        *,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[ChangeOptions],
    ) -> Commit: ...
    @overload
    def pause(
        self,
        key: str,
        *,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def pause(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
        """Pause a flag: it serves its `off` variant. For errors see `change`."""
        with self.change(**asked) as change:
            change.pause(key, region=region, expected_version=expected_version)
        return get_result(change)

    @overload
    def resume(
        self,
        key: str,
        *,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[ChangeOptions],
    ) -> Commit: ...
    @overload
    def resume(
        self,
        key: str,
        *,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def resume(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
        """Make a paused flag active again. For errors see `change`."""
        with self.change(**asked) as change:
            change.resume(key, region=region, expected_version=expected_version)
        return get_result(change)

    @overload
    def archive(
        self,
        key: str,
        *,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[ChangeOptions],
    ) -> Commit: ...
    @overload
    def archive(
        self,
        key: str,
        *,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def archive(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
        """Archive a flag, as Draft.archive does. For errors see `change`."""
        with self.change(**asked) as change:
            change.archive(key, region=region, expected_version=expected_version)
        return get_result(change)

    @overload
    def restore(
        self,
        key: str,
        *,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[ChangeOptions],
    ) -> Commit: ...
    @overload
    def restore(
        self,
        key: str,
        *,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def restore(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
        """Make an archived flag a paused one. For errors see `change`."""
        with self.change(**asked) as change:
            change.restore(key, region=region, expected_version=expected_version)
        return get_result(change)

    @overload
    def delete(
        self,
        key: str,
        *,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[ChangeOptions],
    ) -> Commit: ...
    @overload
    def delete(
        self,
        key: str,
        *,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def delete(
        self,
        key: str,
        *,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
        """Delete an archived flag, as Draft.delete does. For errors see `change`."""
        with self.change(**asked) as change:
            change.delete(key, region=region, expected_version=expected_version)
        return get_result(change)

    @overload
    def rollback(
        self,
        key: str | None = ...,
        *,
        to: int,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[ChangeOptions],
    ) -> Commit: ...
    @overload
    def rollback(
        self,
        key: str | None = ...,
        *,
        to: int,
        region: str = ...,
        expected_version: int | None = ...,
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def rollback(
        self,
        key: str | None = None,
        *,
        to: int,
        region: str = EVERYWHERE,
        expected_version: int | None = None,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
        """Give a flag, or without a key the whole environment, the content of revision `to`.

        That is one revision. Draft.rollback and Draft.rollback_all say more. For errors see
        `change`.
        """
        with self.change(**asked) as change:
            if key is not None:
                change.rollback(key, to=to, region=region, expected_version=expected_version)
            elif region != EVERYWHERE or expected_version is not None:
                name = "region" if region != EVERYWHERE else "expected_version"
                raise InvalidArgumentError(
                    f"{name} is given without a key: name a flag, or leave {name} out"
                )
            else:
                change.rollback_all(to=to)
        return get_result(change)


def get_result(change: Draft) -> Commit | PendingChange:
    """Return what came of a change whose block has ended without error."""
    what = change.commit or change.pending
    assert what is not None, "the block ended without error"
    return what


@refuse_unknown_in_methods
class SegmentShortcuts(FlagShortcuts):
    """The changes of a single segment, which take what those of flags do."""

    @overload
    def create_segment(
        self, segment: Mapping[str, Any], **asked: Unpack[ChangeOptions]
    ) -> Commit: ...
    @overload
    def create_segment(
        self, segment: Mapping[str, Any], **asked: Unpack[TransactionOptions]
    ) -> PendingChange: ...
    def create_segment(
        self, segment: Mapping[str, Any], **asked: Unpack[OptionalTransactionOptions]
    ) -> Commit | PendingChange:
        """Create a segment from its document. For errors see `change`."""
        with self.change(**asked) as change:
            change.create_segment(segment)
        return get_result(change)

    @overload
    def update_segment(
        self,
        segment: Mapping[str, Any],
        *,
        expected_version: int | None = ...,
        **asked: Unpack[ChangeOptions],
    ) -> Commit: ...
    @overload
    def update_segment(
        self,
        segment: Mapping[str, Any],
        *,
        expected_version: int | None = ...,
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def update_segment(
        self,
        segment: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
        """Replace a segment's document, its keys included. For errors see `change`."""
        with self.change(**asked) as change:
            change.update_segment(segment, expected_version=expected_version)
        return get_result(change)

    @overload
    def change_members(
        self,
        key: str,
        *,
        include: Iterable[str | int] = ...,
        exclude: Iterable[str | int] = ...,
        remove: Iterable[str | int] = ...,
        expected_version: int | None = ...,
        **asked: Unpack[ChangeOptions],
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
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def change_members(
        self,
        key: str,
        *,
        include: Iterable[str | int] = (),
        exclude: Iterable[str | int] = (),
        remove: Iterable[str | int] = (),
        expected_version: int | None = None,
        **asked: Unpack[OptionalTransactionOptions],
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
        return get_result(change)

    @overload
    def rollback_segment(
        self,
        key: str,
        *,
        to: int,
        expected_version: int | None = ...,
        **asked: Unpack[ChangeOptions],
    ) -> Commit: ...
    @overload
    def rollback_segment(
        self,
        key: str,
        *,
        to: int,
        expected_version: int | None = ...,
        **asked: Unpack[TransactionOptions],
    ) -> PendingChange: ...
    def rollback_segment(
        self,
        key: str,
        *,
        to: int,
        expected_version: int | None = None,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
        """Give a segment the content that it had at revision `to`. For errors see `change`."""
        with self.change(**asked) as change:
            change.rollback_segment(key, to=to, expected_version=expected_version)
        return get_result(change)

    @overload
    def delete_segment(
        self, key: str, *, expected_version: int | None = ..., **asked: Unpack[ChangeOptions]
    ) -> Commit: ...
    @overload
    def delete_segment(
        self, key: str, *, expected_version: int | None = ..., **asked: Unpack[TransactionOptions]
    ) -> PendingChange: ...
    def delete_segment(
        self,
        key: str,
        *,
        expected_version: int | None = None,
        **asked: Unpack[OptionalTransactionOptions],
    ) -> Commit | PendingChange:
        """Delete a segment that no flag refers to. For errors see `change`."""
        with self.change(**asked) as change:
            change.delete_segment(key, expected_version=expected_version)
        return get_result(change)
