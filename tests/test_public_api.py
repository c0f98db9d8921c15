"""What users import: the names, and that each is documented and typed."""

import inspect
from pathlib import Path

import pytest

import flagkit
from flagkit import errors, history, policy_files, testing, writer

pytestmark = pytest.mark.every_python

PACKAGE = Path(flagkit.__file__).parent


def test_the_words_that_users_import() -> None:
    assert flagkit.__all__ == sorted(flagkit.__all__)
    assert set(flagkit.__all__) == {
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
    }


@pytest.mark.parametrize(
    "module", [flagkit, writer, history, policy_files, testing, errors], ids=lambda m: m.__name__
)
def test_every_public_thing_has_a_docstring(module: object) -> None:
    named = {name: thing for name, thing in vars(module).items() if not name.startswith("_")}
    for name, thing in named.items():
        own = str(getattr(thing, "__module__", "")).startswith("flagkit")
        if own and (inspect.isclass(thing) or inspect.isroutine(thing)):
            assert inspect.getdoc(thing), name


def test_every_error_is_a_flagkit_error_and_in_the_tree() -> None:
    tree = errors.__doc__
    assert tree is not None
    for name, thing in vars(errors).items():
        if inspect.isclass(thing):
            assert issubclass(thing, errors.FlagkitError)
            assert name in tree


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
