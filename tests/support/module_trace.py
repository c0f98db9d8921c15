"""The modules of flagkit that a call enters: how many places a reader has to know."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import flagkit

PACKAGE = Path(flagkit.__file__).parent


def trace_modules(call: Callable[[], object]) -> list[str]:
    """Return the modules whose functions a call enters in this thread, in the order of entry."""
    entered: dict[str, None] = {}

    def note_entry(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            entered[str(path.relative_to(PACKAGE).with_suffix(""))] = None

    sys.setprofile(note_entry)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [*entered]
