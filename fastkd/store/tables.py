"""What a logit store's file says of itself: its header, tables and where its rows lie.

Layout (README, "Logit store format"): `logits` (K, R, row_bytes) uint8, contiguous and aligned; `sample_ids` (R,) int64,
the row order; `done` (K, num_blocks) uint8; `top1` (K, num_blocks, 2) uint32; `probes` (P, 2) int64 and `probe_crc32c`
(P,) uint32; in some, `embeddings`, like the logits. HDF5 is used to find the datasets in the file; the rows are read from
a mapping of it. `filling.py` makes stores, `verify.py` checks them.
"""

import io
import json
import math
import mmap
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastkd.artefact import Header, content_fingerprint, open_artefact
from fastkd.errors import CorruptError, FormatError, OptionError, cut_meanwhile
from fastkd.fingerprint import fingerprint
from fastkd.hashing import crc32c, crc32c_with
from fastkd.hdf5 import find_dataset, read_attribute, read_dataset
from fastkd.store.codec import Codec, make_codec

KIND, FORMAT_VERSION = "logit-store", 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The rows of one of the teacher's outputs in a store.

    name: of the dataset, `logits` or `embeddings`. offset: its first byte in the file. salt: what the checksums of its
    records begin with, a uint64, see `encode_rows`.
    """

    name: str
    codec: Codec
    offset: int
    salt: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoreTables:
    """What a store says of itself, and where its bytes lie.

    outputs: the logits, and the embeddings where it has them. done_offset, top1_offset: bytes from the start of the file.
    block_rows: rows of a block, the teacher's batch. done: 1 for each block that is filled. top1: of each block, how many
    of its rows have their largest logit at their label, and a checksum of that. about: what else is known of where the
    logits come from (`teacher`: num_parameters, val_top1, mask); {} where that is not recorded. mapping: the whole file, which
    stays the one that was read, whatever is put in its place; file: it, open for as long.
    """

    path: Path
    header: Header
    outputs: tuple[Output, ...]
    num_seeds: int
    num_rows: int
    block_rows: int
    sample_ids: np.ndarray
    done: np.ndarray
    top1: np.ndarray
    probes: np.ndarray
    probe_crc32c: np.ndarray
    done_offset: int
    top1_offset: int
    about: dict[str, Any]
    file: io.BufferedReader
    mapping: mmap.mmap

    @property
    def codec(self) -> Codec:
        """Of the logits."""
        return self.outputs[0].codec

    @property
    def logits_offset(self) -> int:
        """The first byte of the logits, which end the file."""
        return self.outputs[0].offset

    @property
    def embeddings(self) -> Output | None:
        """The teacher's embeddings, where the store has them."""
        return self.outputs[1] if len(self.outputs) > 1 else None

    @property
    def num_blocks(self) -> int:
        """Blocks of a plane; the last may be shorter."""
        return -(-self.num_rows // self.block_rows)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file: it ends with the logits."""
        return self.logits_offset + self.num_seeds * self.num_rows * self.codec.row_bytes

    @property
    def salt(self) -> int:
        """What makes the checksums of its logits its own: the first 64 bits of its fingerprint."""
        return self.outputs[0].salt

    def block_rows_of(self, block: int) -> slice:
        """The rows of a block, 0 … R."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.num_rows))

    def map_records(self, output: Output | None = None) -> np.ndarray:
        """The records of an output, the logits by default, mapped for reading: uint8 (K, R, row_bytes); those of blocks
        that are not done mean nothing."""
        output = output or self.outputs[0]
        shape = (self.num_seeds, self.num_rows, output.codec.row_bytes)
        return np.frombuffer(self.mapping, np.uint8, math.prod(shape), output.offset).reshape(shape)

    def require_length(self) -> None:
        """Raises FormatError where the file became shorter since it was read: to read behind its end ends the process."""
        if self.mapping.size() < len(self.mapping):
            raise cut_meanwhile(self.path, self.mapping.size(), len(self.mapping))


def store_fingerprint(
    inputs: dict, params: dict, sample_ids: np.ndarray, probes: np.ndarray, probe_crc32c: np.ndarray
) -> str:
    """The fingerprint of a store: over what decides its logits, which do not exist yet when it is made."""
    arrays = {"sample_ids": sample_ids, "probes": probes, "probe_crc32c": probe_crc32c}
    return content_fingerprint(KIND, inputs, params, arrays)


def write_about(file: h5py.File, header: Header, about: dict[str, Any]) -> None:
    """Writes what is known of where the logits come from, beside the header: it is no part of the store's identity."""
    text = json.dumps(about, sort_keys=True, allow_nan=False)
    file.attrs["about"] = np.bytes_(text.encode())
    file.attrs["about_digest"] = np.bytes_(fingerprint([header.fingerprint, text]).encode())


def _read_about(file: h5py.File, header: Header, path: Path) -> dict[str, Any]:
    """What `write_about` wrote; {} where nothing is recorded.

    Raises:
        CorruptError: it does not match its digest, or is not this store's.
    """
    names = ("about", "about_digest")
    if not any(name in file.attrs for name in names):
        return {}
    try:
        text, digest = (bytes(read_attribute(file, name, "S")).decode() for name in names)
        if fingerprint([header.fingerprint, text]) == digest:
            about = dict(json.loads(text))
            if not isinstance(about.get("teacher", {}), dict):
                raise TypeError("its teacher is no table")
            return about
    except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise CorruptError(f"{path}: what it says about its teacher is damaged ({error})") from None
    raise CorruptError(f"{path}: what it says about its teacher does not match its digest, or is another store's")


def embedding_codec(embedding: dict[str, Any]) -> Codec:
    """The codec of a store's embeddings, whose params say `dim`: float16.

    Raises:
        OptionError: more values than a codec can number.
        KeyError, TypeError, ValueError: params that do not say what they are.
    """
    if not isinstance(embedding.get("layer", ""), str):
        raise TypeError("its embeddings are of no layer")
    return make_codec("fp16", _whole(embedding, "dim"))


def _whole(params: dict[str, Any], name: str) -> int:
    """A count of 1 or more that params hold."""
    value = params[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**40:
        raise ValueError(f"{name} is {value!r}, expected a whole number above 0")
    return value


def count_rows(tables: StoreTables, blocks: np.ndarray) -> int:
    """The rows of some blocks, integers (n, 2): aug_seed and number of each."""
    short = tables.num_blocks * tables.block_rows - tables.num_rows  # what the last block of a plane lacks
    return len(blocks) * tables.block_rows - short * int(np.count_nonzero(blocks[:, 1] == tables.num_blocks - 1))


def top1_checksum(num_correct: int, number: int, salt: int) -> int:
    """The checksum beside the count of a block: CRC32C of the count (uint32) and of the block's number + salt (uint64)."""
    crc = crc32c(np.array([num_correct], "<u4").view(np.uint8))
    return int(crc32c_with(crc, np.uint64((number + salt) % 2**64)))


def is_sound_count(tables: StoreTables, number: int) -> bool:
    """Whether a block that is done, numbered over all planes, has a count of top-1 hits that can be, and its checksum."""
    count, checksum = tables.top1.reshape(-1, 2)[number].tolist()
    rows = tables.block_rows_of(number % tables.num_blocks)
    return bool(checksum == top1_checksum(count, number, tables.salt)) and count <= rows.stop - rows.start


def read_tables(path: str | Path) -> StoreTables:
    """Reads everything of a store but the logits, and checks that it fits together.

    Raises:
        NotFoundError, FormatError: no file, another kind or version, cut, or tables that contradict each other.
        CorruptError: the header or the row order does not match the fingerprint.
    """
    tables = _tables(Path(path))
    header = tables.header
    found = store_fingerprint(header.inputs, header.params, tables.sample_ids, tables.probes, tables.probe_crc32c)
    if found != header.fingerprint:
        raise CorruptError(
            f"{path}: header, row order and probes have fingerprint {found[:12]}, the header says {header.fingerprint[:12]}"
        )
    return tables


def _tables(path: Path) -> StoreTables:
    with open_artefact(path, KIND, FORMAT_VERSION) as (file, header):
        try:
            params, salt = header.params, int(header.fingerprint[:16], 16)
            codec = make_codec(str(params["codec"]), _whole(params, "num_classes"))
            num_seeds, block_rows = _whole(params, "num_seeds"), _whole(params, "block_rows")
            if not isinstance(params.get("teacher", {}), dict):
                raise TypeError("it does not say what its teacher is")
            codecs = {"logits": codec}
            if "embedding" in params:
                codecs["embeddings"] = embedding_codec(params["embedding"])
        except (KeyError, TypeError, ValueError, AttributeError, OSError, RuntimeError, OptionError) as error:
            raise FormatError(f"{path}: damaged store ({error})") from None
        ranks = dict.fromkeys(codecs, ("u1", 3)) | {"done": ("u1", 2), "top1": ("<u4", 3)}
        found = {
            name: find_dataset(file, name, dtype=dtype, ndim=ndim, path=path) for name, (dtype, ndim) in ranks.items()
        }
        offsets = {name: dataset.get_offset() for name, dataset in found.items()}
        shapes = {name: found[name].shape for name in codecs}
        sample_ids = read_dataset(file, "sample_ids", dtype="<i8", ndim=1, path=path)
        done = read_dataset(file, "done", dtype="u1", ndim=2, path=path)
        top1 = read_dataset(file, "top1", dtype="<u4", ndim=3, path=path)
        probes = read_dataset(file, "probes", dtype="<i8", ndim=2, path=path)
        probe_crc32c = read_dataset(file, "probe_crc32c", dtype="<u4", ndim=1, path=path)
        about = _read_about(file, header, path)
        opened = os.fdopen(os.dup(file.id.get_vfd_handle()), "rb")
        mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        weakref.finalize(mapping, opened.close)
    num_rows = len(sample_ids)
    blocks = (num_seeds, -(-num_rows // block_rows)) if block_rows > 0 else ()
    for name, shape in shapes.items():
        expected = (num_seeds, num_rows, codecs[name].row_bytes)
        same = shape == expected and done.shape == blocks and top1.shape == (*blocks, 2)
        if not same or None in offsets.values() or not num_rows:
            raise FormatError(
                f"{path}: {name} of shape {shape} and flags of shape {done.shape}, expected {expected} and {blocks}"
            )
    known = np.isin(probes[:, :1], sample_ids).all() and ((probes[:, 1:2] >= 0) & (probes[:, 1:2] < num_seeds)).all()
    if probes.shape == (len(probe_crc32c), 2) and not known:
        raise FormatError(f"{path}: its probes name views that it does not hold")
    if probes.shape != (len(probe_crc32c), 2):
        raise FormatError(f"{path}: {probes.shape} probes with {len(probe_crc32c)} checksums")
    # Embeddings are numbered on behind the logits, so that one in the place of the other is noticed.
    salts = {"logits": salt, "embeddings": (salt + num_seeds * num_rows) % 2**64}
    return StoreTables(
        path=path,
        header=header,
        outputs=tuple(Output(name=name, codec=codecs[name], offset=offsets[name], salt=salts[name]) for name in codecs),
        num_seeds=num_seeds,
        num_rows=num_rows,
        block_rows=block_rows,
        sample_ids=sample_ids,
        done=done,
        top1=top1,
        probes=probes,
        probe_crc32c=probe_crc32c,
        done_offset=offsets["done"],
        top1_offset=offsets["top1"],
        about=about,
        file=opened,
        mapping=mapping,
    )
