"""Lengths: numbers in groups of seven bits, the lowest first, each with a bit for "more"."""

from typing import Final

LENGTH_SHORT_MAX: Final = 0x7F
"""The greatest length that takes one byte."""
_MORE: Final = 0x80


def encoded_length(length: int) -> bytes:
    """Return a length as it is stored, in one byte if it is below 128."""
    encoded = bytearray()
    while length >= _MORE:
        encoded.append(length & (_MORE - 1) | _MORE)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


def length_at(content: memoryview, at: int) -> tuple[int, int]:
    """Return the length that is stored at a place, and the place after it."""
    length = content[at]
    if length < _MORE:
        return length, at + 1
    length, shift = length & (_MORE - 1), 7
    while True:
        at += 1
        group = content[at]
        length |= (group & (_MORE - 1)) << shift
        if group < _MORE:
            return length, at + 1
        shift += 7
