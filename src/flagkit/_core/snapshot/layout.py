"""The byte layout of an arena: prefix, header, sections and varints.

docs/snapshot-format.md describes it. A reader refuses another FORMAT and ignores unknown header
fields. A field that older readers may ignore is a new header field; anything else is a new FORMAT.
"""

import sys
from collections.abc import Generator, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec
import xxhash
from msgspec import Struct

from flagkit._core.model import packing
from flagkit._core.model.changes import PolicyId, Tip
from flagkit._core.snapshot.chunks import SLICE_BYTES, Chunks, allocate_zeroed, copy_in_slices
from flagkit.errors import SnapshotFormatError

MAGIC: Final = b"flagkit"
FORMAT: Final = 1
PREFIX_BYTES: Final = 32
"""Magic, format, checksum, length of the content, length of the header."""
ALIGNMENT: Final = 8

Buffer: TypeAlias = bytes | bytearray | memoryview


class Record(Struct, frozen=True, order=True, array_like=True, gc=False):
    """A policy at one version: the hash of its state, and its body, or a segment's document.

    Nothing for the collector of cycles, which would walk the heap for every few thousand that come.
    """

    region: str
    key: str
    version: int
    hash: int
    body: bytes

    @property
    def id(self) -> PolicyId:
        """The region and key, which identify the policy."""
        return (self.region, self.key)


class Section(NamedTuple):
    """The place of a part of an arena: its offset from the end of the header, and its length."""

    offset: int
    length: int


class Header(Struct, frozen=True, kw_only=True):
    """The header of an arena.

    `counts` are the numbers of records of each region, and `digests` their digests, as in the tip.
    `colliding` are the records that share their hash with another. `packed_bytes` is the length of
    the bodies when they were last stored without gaps. If there are `namespaces`, the arena has
    only flags whose keys begin with one of them.
    """

    tip: Tip
    counts: dict[str, int]
    digests: dict[str, int]
    byte_order: str = sys.byteorder
    packing: int = packing.FORMAT
    directory_bits: int = 0
    version_bytes: int = 1
    packed_bytes: int = 0
    sections: dict[str, Section] = {}
    names: dict[str, tuple[Section, Section]] = {}
    parts: dict[str, Section] = {}
    colliding: tuple[Record, ...] = ()
    namespaces: tuple[str, ...] = ()


_decode_header = msgspec.msgpack.Decoder(Header).decode
_encode_header = msgspec.msgpack.Encoder().encode
VERSION_CODES: Final[Mapping[int, Literal["B", "H", "I", "Q"]]] = {
    1: "B",
    2: "H",
    4: "I",
    8: "Q",
}


class Columns(NamedTuple):
    """The sections of an arena: views of numbers, and of bytes for `bodies`.

    `directory` has, for each value of a hash's leading bits, the place of the first record with
    this value or a greater one. The others, except for `bodies`, have a number for each record.
    """

    directory: memoryview
    hashes: memoryview
    states: memoryview
    versions: memoryview
    offsets: memoryview
    bodies: memoryview


class Layout(NamedTuple):
    """The sizes of the parts of a new arena, and the parts that exist already."""

    record_count: int
    bodies_bytes: int
    names: Mapping[str, tuple[Buffer, Chunks]]
    parts: Mapping[str, Buffer]


def allocate_arena(
    header: Header, layout: Layout
) -> Generator[None, None, tuple[memoryview, Columns]]:
    """Return the bytes of an arena to be filled, and its columns, in slices.

    Names and parts are copied already. The chunks of names are consumed.
    """
    count = layout.record_count
    sizes = {
        "directory": 4 * (2**header.directory_bits + 1),
        "hashes": 8 * count,
        "states": 8 * count,
        "versions": header.version_bytes * count,
        "offsets": 4 * count,
        "bodies": layout.bodies_bytes,
    }
    end = 0
    placed: list[tuple[Section, Buffer | Chunks]] = []

    def place(size: int, content: Buffer | Chunks = b"") -> Section:
        nonlocal end
        section = Section(align(end), size)
        end = section.offset + size
        placed.append((section, content))
        return section

    header = msgspec.structs.replace(
        header,
        sections={name: place(size) for name, size in sizes.items()},
        names={
            region: (place(len(starts), starts), place(len(text), text))
            for region, (starts, text) in layout.names.items()
        },
        parts={name: place(len(part), part) for name, part in layout.parts.items()},
    )
    encoded = _encode_header(header)
    start = align(PREFIX_BYTES + len(encoded))
    content = allocate_zeroed(start + end)
    content[:PREFIX_BYTES] = encode_prefix(0, start + end, len(encoded))
    content[PREFIX_BYTES : PREFIX_BYTES + len(encoded)] = encoded
    data = content[start:]
    for section, part in placed:
        target = read_section(data, section)
        if isinstance(part, Chunks):
            yield from part.move_into(target)
        else:
            yield from copy_in_slices(memoryview(part), target)
    return content, read_columns(header, data)


def read_columns(header: Header, data: memoryview) -> Columns:
    """Return the columns of an arena from the data after its header."""

    def section(name: str) -> memoryview:
        return read_section(data, header.sections[name])

    return Columns(
        section("directory").cast("I"),
        section("hashes").cast("Q"),
        section("states").cast("Q"),
        section("versions").cast(VERSION_CODES[header.version_bytes]),
        section("offsets").cast("I"),
        section("bodies"),
    )


def compute_directory_bits(count: int) -> int:
    """Return by how many leading bits the directory of some records goes: some 16 to a value."""
    return max(0, min(20, (count // 16).bit_length()))


def compute_checksum(content: memoryview) -> int:
    """Return the XXH3-64 of all that follows the checksum in an arena."""
    state = xxhash.xxh3_64()
    for start in range(16, len(content), SLICE_BYTES):
        state.update(content[start : start + SLICE_BYTES])
    return state.intdigest()


def read_prefix(content: memoryview) -> tuple[int, int, int]:
    """Return the checksum that some bytes claim, their length and that of the header.

    Raises:
        SnapshotFormatError: they do not begin as an arena does, or are of another format.
    """
    if len(content) < PREFIX_BYTES or content[:7].tobytes() != MAGIC:
        raise SnapshotFormatError("it is no snapshot of flagkit's")
    if content[7] != FORMAT:
        raise SnapshotFormatError(f"it has format {content[7]}; this version reads {FORMAT}")
    checksum, length, header = (
        int.from_bytes(content[at : at + 8], "little") for at in (8, 16, 24)
    )
    return checksum, length, header


def encode_prefix(checksum: int, length: int, header: int) -> bytes:
    """Return the first bytes of an arena."""
    numbers = b"".join(number.to_bytes(8, "little") for number in (checksum, length, header))
    return MAGIC + bytes([FORMAT]) + numbers


def read_data(content: memoryview) -> memoryview:
    """Return the data after the header."""
    return content[align(PREFIX_BYTES + read_prefix(content)[2]) :]


def align(offset: int) -> int:
    """Return the next offset at which a section may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def read_header(content: memoryview) -> Header:
    """Return the header of some bytes.

    Raises:
        SnapshotFormatError: they are no arena that can be read here.
    """
    _, _, header_length = read_prefix(content)
    try:
        header = _decode_header(content[PREFIX_BYTES : PREFIX_BYTES + header_length])
    except (msgspec.MsgspecError, ValueError) as error:
        raise SnapshotFormatError(f"its header is damaged: {error}") from None
    if header.byte_order != sys.byteorder:
        raise SnapshotFormatError(f"it was written on a {header.byte_order}-endian machine")
    if header.packing != packing.FORMAT:
        raise SnapshotFormatError(
            f"its bodies have format {header.packing}; this version reads {packing.FORMAT}"
        )
    return header


def read_section(content: memoryview, section: Section) -> memoryview:
    """Return the bytes of a section."""
    return content[section.offset : section.offset + section.length]


LENGTH_SHORT_MAX: Final = 0x7F
"""The greatest length that takes one byte."""
_MORE: Final = 0x80


def encode_varint(length: int) -> bytes:
    """Return a length as it is stored, in one byte if it is below 128."""
    encoded = bytearray()
    while length >= _MORE:
        encoded.append(length & (_MORE - 1) | _MORE)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


def decode_varint(content: memoryview, at: int) -> tuple[int, int]:
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
