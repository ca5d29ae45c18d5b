"""The structure of a JPEG: whether it is whole, as far as its segments tell, and where it ends."""

import re
from typing import NamedTuple

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # that ends entropy-coded data: no restart, no stuffed byte
_NO_SEGMENT = {0x00, 0x01, *range(0xD0, 0xD9)}
_OTHER_FRAMES = {0xC3, *range(0xC5, 0xD0)}  # lossless, hierarchical, arithmetic
_FRAMES, _PROGRESSIVE, _SCAN, _END = (0xC0, 0xC1, 0xC2), 0xC2, 0xDA, 0xD9
_QUANTISATION, _TABLES = 0xDB, {0xC4, 0xDB}


class Jpeg(NamedTuple):
    """A JPEG whose structure is whole: height and width in pixels, and the offset behind its end marker."""

    height: int
    width: int
    end: int


def find_jpeg(data: bytes) -> Jpeg | None:
    """What the segments of a JPEG say of it; None where its structure is not whole, or of a form that is not kept.

    Kept are baseline, extended and progressive Huffman-coded JPEGs of 8 bits and three components. Every segment has to
    lie inside the data, frame and tables to come before the scan that uses them (a decoder may still have another image's), and the image to end with its own end marker; what
    follows that (a phone's film, say) is none of it. The scans of a progressive one have to give every coefficient to its
    last bit: what is missing libjpeg smooths over where all of an image is decoded, and cannot where a part of it is. The
    entropy-coded bytes themselves are only searched for markers: decoding them takes fifteen times as long.
    """
    if data[:2] != b"\xff\xd8":
        return None
    size, seen, at = None, set(), 2
    tables: set[tuple[str, int]] = set()  # that the file has brought so far
    quantised_by: dict[int, int] = {}  # component → number of its table
    missing: dict[int, set[int]] = {}  # of a progressive JPEG, by component
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if data[at : at + 1] != b"\xff" or at + 2 > len(data):
            return None
        marker = data[at + 1]
        if marker == _END:
            return Jpeg(*size, at + 2) if size and _SCAN in seen and not any(missing.values()) else None
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _NO_SEGMENT or marker in _OTHER_FRAMES or end < at + 4 or end > len(data):
            return None
        if marker in _FRAMES:
            if size or end - at < 19 or data[at + 4] != 8 or data[at + 9] != 3:
                return None
            size = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            quantised_by = {data[at + 10 + 3 * i]: data[at + 12 + 3 * i] for i in range(3)}
            if marker == _PROGRESSIVE:
                missing = {data[at + 10 + 3 * i]: set(range(64)) for i in range(3)}
        seen.add(marker)
        tables |= _tables_in(marker, data[at + 4 : end])
        if marker == _SCAN:
            if size is None or min(size) < 1 or not seen >= _TABLES:
                return None
            components, coded_by = data[at + 5 : end - 3 : 2], data[at + 6 : end - 3 : 2]
            first, last, bits = data[end - 3 : end]
            used = {("quantisation", quantised_by.get(component, -1)) for component in components}
            if first == 0 and bits < 0x10:
                used |= {("DC", both >> 4) for both in coded_by}
            if last > 0:
                used |= {("AC", both & 0xF) for both in coded_by}
            if not used <= tables:
                return None
            if bits & 0xF == 0:  # the lowest bit that the scan gives
                for component in components:
                    missing.get(component, set()).difference_update(range(first, last + 1))
            found = _MARKER.search(data, end)
            if found is None:
                return None
            end = found.start()
        at = end


def _tables_in(marker: int, content: bytes) -> set[tuple[str, int]]:
    """Kind and number of the tables that a segment brings."""
    found, at = set(), 0
    while at < len(content) and marker in _TABLES:
        kind, number = content[at] >> 4, content[at] & 0xF
        if marker == _QUANTISATION:
            found.add(("quantisation", number))
            at += 129 if kind else 65
        else:
            found.add(("AC" if kind else "DC", number))
            at += 17 + sum(content[at + 1 : at + 17])
    return found
