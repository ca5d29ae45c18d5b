"""The contenders of rrc_decode.py: each a function that gives a function from an epoch's number to the images made of it.

Each imports what it needs by itself, since they run in processes of their own, one of them under another Python.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

SIZE, BATCH, SEEDS = 224, 64, 1000
SOME_BATCHES = 15  # a turn of the peers that have no start of an epoch to make up for
Epoch = Callable[[int], int]  # epoch number → images made


def fastkd_epochs(folder: Path, name: str, num_workers: int) -> Epoch:
    import numpy as np

    from fastkd.data.beton.read import open_beton
    from fastkd.data.loader import ViewLoader
    from fastkd.data.views.draw import Views

    loader = ViewLoader(
        open_beton(folder / f"{name.split('@')[0]}.beton"),
        Views("rrc", SIZE, SEEDS),
        ids=np.load(folder / f"{name}.npy"),
        batch_size=BATCH,
        shuffle=True,
        num_workers=num_workers,
    )
    return lambda epoch: sum(len(batch) for batch in loader.epoch(epoch))


def before_epochs(folder: Path, name: str, num_workers: int) -> Epoch:
    """The loader with a build of the decoder that leaves every JPEG to libjpeg, as the decoder of before did."""
    import llvmlite.binding

    from benchmarks.data.decoders import load
    from fastkd.data.views import pixels

    library = load(folder / "libjpeg.so")
    for symbol in pixels.SYMBOLS:  # of these the compiled code knows the names alone, until it is first called
        llvmlite.binding.add_symbol(symbol, ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value)
    return fastkd_epochs(folder, name, num_workers)


def loop_epochs(folder: Path, name: str, num_workers: int) -> Epoch:
    from fastkd.data.views.pixels import load_library

    return _loop_epochs(folder, name, load_library())


def coefficients_epochs(folder: Path, name: str, num_workers: int) -> Epoch:
    """The same loop where all coefficients lie in memory, 128 bytes a block: the limit of any storage of them."""
    from benchmarks.data.decoders import load

    return _loop_epochs(folder, name, load(folder / "coefficients.so"), has_index=False)


def _loop_epochs(folder: Path, name: str, library: ctypes.CDLL, *, has_index: bool = True) -> Epoch:
    import numpy as np

    from fastkd.data.beton.read import open_beton
    from fastkd.data.beton.row_index import open_row_index
    from fastkd.data.order import epoch_order
    from fastkd.data.views.draw import Views, boxes

    beton, ids = open_beton(folder / f"{name.split('@')[0]}.beton"), np.load(folder / f"{name}.npy")
    view = ctypes.cast(library.fastkd_indexed_view, ctypes.c_void_p)
    index, entries = open_row_index(beton)
    entries = entries * has_index
    loop = ctypes.CDLL(str(folder / "loop.so")).loop
    loop.restype = ctypes.c_int64
    batch = np.zeros((BATCH, SIZE, SIZE, 3), np.uint8)
    views = Views("rrc", SIZE, SEEDS)

    def pointer(array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    prepared = []
    for epoch in range(8):  # drawn beforehand: only decoding and resizing are in the loop
        order = epoch_order(ids, epoch=epoch, shuffle=True, seed=0)
        stored = np.stack([beton.sizes, beton.modes, beton.heights, beton.widths], 1)[order].astype(np.int64)
        drawn = boxes(views, order, epoch, beton.heights[order], beton.widths[order])
        prepared.append([beton.ptrs[order], np.ascontiguousarray(stored), drawn, entries[order].astype(np.int64)])

    def run(epoch: int) -> int:
        starts, *arrays = prepared[epoch % 8]
        statuses = loop(
            view,
            pointer(beton.data),
            *(pointer(array) for array in (starts, *arrays)),
            ctypes.c_int64(len(starts)),
            pointer(index),
            ctypes.c_int64(len(index)),
            pointer(batch),
            ctypes.c_int64(BATCH),
            SIZE,
        )
        assert statuses == 0
        return len(starts)

    return run


def ffcv_epochs(folder: Path, name: str, num_workers: int) -> Epoch:
    import numpy as np
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    loader = Loader(
        str(folder / f"{name.split('@')[0]}.beton"),
        batch_size=BATCH,
        num_workers=num_workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        seed=0,
        indices=np.load(folder / f"{name}.npy"),
        drop_last=False,
        pipelines={
            "image": [
                RandomResizedCropRGBImageDecoder((SIZE, SIZE)),
                RandomHorizontalFlip(),
                ToTensor(),
                ToTorchImage(),
            ],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    return lambda epoch: sum(len(images) for images, _ in loader)


def torchvision_epochs(folder: Path, name: str, num_workers: int) -> Epoch:
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, PILToTensor, RandomHorizontalFlip, RandomResizedCrop

    torch.set_num_threads(1)
    transform = Compose([RandomResizedCrop(SIZE), RandomHorizontalFlip(), PILToTensor()])
    data = ImageFolder(str(folder / "files"), transform)
    data = torch.utils.data.Subset(data, torch.randperm(len(data))[: SOME_BATCHES * BATCH].tolist())
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True)  # a worker process is slower where a core is shared
    return lambda epoch: sum(len(images) for images, _ in loader)


def dali_epochs(folder: Path, name: str, num_workers: int) -> Epoch:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=num_workers, device_id=None, seed=0)
    def pipeline() -> tuple:
        files, labels = fn.readers.file(file_root=str(folder / "files"), random_shuffle=True, name="files")
        images = fn.decoders.image_random_crop(
            files,
            device="cpu",
            output_type=types.RGB,
            random_area=[0.08, 1.0],
            random_aspect_ratio=[3 / 4, 4 / 3],
            use_fast_idct=True,
            jpeg_fancy_upsampling=False,
        )
        images = fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR, antialias=False)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    pipe = pipeline()
    pipe.build()

    def run(epoch: int) -> int:
        for _ in range(SOME_BATCHES):
            pipe.run()
        return SOME_BATCHES * BATCH

    return run


CONTENDERS: dict[str, Callable[[Path, str, int], Epoch]] = {
    "fastkd": fastkd_epochs,
    "before": before_epochs,
    "loop": loop_epochs,
    "coefficients": coefficients_epochs,
    "ffcv": ffcv_epochs,
    "torchvision": torchvision_epochs,
    "dali": dali_epochs,
}
