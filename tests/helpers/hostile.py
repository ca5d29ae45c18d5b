"""Files made to harm who reads them, and calls whose time and memory are measured."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from fastkd.errors import FastKDError
from helpers.ranks import forked, wait_for

MOST_BYTES = 200 << 20
"""More than before the call."""
_MOST_S = 10


def ending(call: Callable[[], object], folder: Path) -> str:
    """How a call ends in a process of its own, which is given ten seconds and 200 MB: `read`, or its error's line."""
    told = folder / "ending"
    told.unlink(missing_ok=True)

    def bounded() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_MOST_S)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES,) * 2)
        try:
            call()
            told.write_text("read")
        except FastKDError as error:
            told.write_text(str(error))

    (code,) = wait_for([forked(bounded)])
    return told.read_text() if code == 0 else f"ended with {code}"


def _hidden(file: h5py.File, name: str) -> str:
    """Another name for a dataset, which has its own no more."""
    file.move(name, "hidden")
    return "/hidden"


def _soft(file: h5py.File, name: str, folder: Path) -> None:
    file[name] = h5py.SoftLink(_hidden(file, name))


def _link_to(file: h5py.File, name: str, other: Path) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(str(other), name)


def _to_another_file(file: h5py.File, name: str, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other[name] = file[name][...]
    _link_to(file, name, folder / "other.h5")


def _pipe(folder: Path) -> Path:
    (folder / "pipe").unlink(missing_ok=True)
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def _to_a_pipe(file: h5py.File, name: str, folder: Path) -> None:
    _link_to(file, name, _pipe(folder))


def _in_external_storage(file: h5py.File, name: str, folder: Path, at_pipe: bool = False) -> None:
    values = file[name][...]
    values.tofile(folder / "values")
    del file[name]
    where = str(_pipe(folder) if at_pipe else folder / "values")
    file.create_dataset(name, values.shape, values.dtype, external=[(where, 0, values.nbytes)])


def _in_a_pipe(file: h5py.File, name: str, folder: Path) -> None:
    _in_external_storage(file, name, folder, at_pipe=True)


def _virtual(file: h5py.File, name: str, folder: Path, source: str | None = None) -> None:
    values = file[name][...]
    if source is None:
        source = str(folder / "other.h5")
        with h5py.File(source, "w") as other:
            other["values"] = values
    del file[name]
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[...] = h5py.VirtualSource(source, "values", values.shape, values.dtype)
    file.create_virtual_dataset(name, layout)


def _virtual_of_a_pipe(file: h5py.File, name: str, folder: Path) -> None:
    _virtual(file, name, folder, str(_pipe(folder)))


def _virtual_of_any_length(file: h5py.File, name: str, folder: Path) -> None:
    """Whose sources are opened where its shape is asked for."""
    values = file[name][...]
    del file[name]
    most = (h5py.h5s.UNLIMITED, *values.shape[1:])
    layout = h5py.VirtualLayout(values.shape, values.dtype, maxshape=most)
    source = h5py.VirtualSource(str(_pipe(folder)), "values", values.shape, values.dtype, maxshape=most)
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset(name, layout)


def _filtered(file: h5py.File, name: str, **options: object) -> None:
    values = file[name][...]
    del file[name]
    file.create_dataset(name, data=values, chunks=values.shape, **options)


def _compressed(file: h5py.File, name: str, folder: Path) -> None:
    _filtered(file, name, compression="gzip")


def _shuffled(file: h5py.File, name: str, folder: Path) -> None:
    _filtered(file, name, shuffle=True)


def _by_a_plugin(file: h5py.File, name: str, folder: Path) -> None:
    """With a filter that nobody has: HDF5 looks for a library of it."""
    values = file[name]
    shape, dtype = values.shape, h5py.h5t.py_create(values.dtype)
    del file[name]
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk(shape)
    layout.set_filter(32_000, h5py.h5z.FLAG_OPTIONAL, ())
    *group, last = name.split("/")
    place = file["/".join(group)].id if group else file.id
    h5py.h5d.create(place, last.encode(), dtype, h5py.h5s.create_simple(shape), dcpl=layout)


def _huge(file: h5py.File, name: str, **options: object) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, (*shape[:-1], 2**31), dtype, **options)


def _of_no_bytes(file: h5py.File, name: str, folder: Path) -> None:
    _huge(file, name)


def _of_its_fill_value(file: h5py.File, name: str, folder: Path) -> None:
    _huge(file, name, chunks=(1,) * (file[name].ndim - 1) + (2**20,), fillvalue=1)


def _of_one_chunk(file: h5py.File, name: str, folder: Path) -> None:
    """A chunk of 2 GiB, for few values."""
    values = file[name]
    shape, dtype = values.shape, values.dtype
    del file[name]
    most = (*shape[:-1], None)
    file.create_dataset(name, shape, dtype, maxshape=most, chunks=(1,) * (len(shape) - 1) + (2**31 // dtype.itemsize,))


def _a_group(file: h5py.File, name: str, folder: Path) -> None:
    del file[name]
    file.create_group(name)


def _of_texts(file: h5py.File, name: str, folder: Path) -> None:
    """Of any length, kept in a heap."""
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape, h5py.string_dtype())


def _empty(file: h5py.File, name: str, folder: Path) -> None:
    dtype = file[name].dtype
    del file[name]
    file[name] = h5py.Empty(dtype)


HOSTILE = {
    form.__name__.strip("_").replace("_", " "): form
    for form in (
        *(_soft, _to_another_file, _to_a_pipe, _in_external_storage, _in_a_pipe),
        *(_virtual, _virtual_of_a_pipe, _virtual_of_any_length, _compressed, _shuffled, _by_a_plugin),
        *(_of_no_bytes, _of_its_fill_value, _of_one_chunk, _a_group, _of_texts, _empty),
    )
}
"""What may stand in the place of a dataset: form → function of the open file, the dataset's name and a folder for more files."""


def _large_text(file: h5py.File) -> None:
    file.attrs["params"] = np.bytes_(b'{"a": [' + b"[]," * (3 << 20) + b"0]}")


def _text_of_the_heap(file: h5py.File) -> None:
    file.attrs["params"] = "{}"


def _array(file: h5py.File) -> None:
    file.attrs["params"] = np.full(1000, b"{}")


def _nothing(file: h5py.File) -> None:
    file.attrs["params"] = h5py.Empty("S8")


HOSTILE_HEADERS = {
    one.__name__.strip("_").replace("_", " "): one for one in (_large_text, _text_of_the_heap, _array, _nothing)
}
"""What may stand in the place of a text of the header."""
