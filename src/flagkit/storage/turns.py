"""Turns: work in slices in an asyncio loop, between which all else has its turn."""

import asyncio
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


async def in_turns(slices: Generator[None, None, T]) -> T:
    """Return what work in slices comes to."""
    while True:
        try:
            next(slices)
        except StopIteration as done:
            result: T = done.value
            return result
        await asyncio.sleep(0)
