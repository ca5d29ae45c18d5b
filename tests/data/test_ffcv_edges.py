"""Tests that close the ways in which FFCV's loader hangs, leaks or lies; `edges.py` says what they are and which tests hold them."""

import ast
import os
import signal
import subprocess
import sys
import threading
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TESTS
from helpers.edges import EDGES
from helpers.ranks import forked, wait_for
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fastkd.data.batch import Batch
from fastkd.data.beton.read import open_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import OptionError

VIEWS = Views("crop-flip", 32, 162)


def test_every_edge_is_in_the_table():
    assert list(EDGES) == [f"S{i}" for i in range(1, 25)] + ["W1", "W2", "W3"]


@pytest.mark.parametrize("edge", EDGES)
def test_an_edge_is_closed_by_tests_that_exist_or_cannot_occur(edge):
    _, how, tests = EDGES[edge]
    assert tests or "cannot occur" in how
    for test in tests:
        module, _, name = test.rpartition(".")
        tree = ast.parse(next(TESTS.rglob(f"{module or Path(__file__).stem}.py")).read_text())
        assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], test


def ids_and_pixels(batches) -> list[tuple[int, bytes]]:
    return [(int(i), image.numpy().tobytes()) for b in batches for i, image in zip(b.sample_ids, b.images, strict=True)]


@pytest.fixture(scope="module")
def loader(raw_beton) -> ViewLoader:
    return ViewLoader(open_beton(raw_beton), VIEWS, batch_size=64, shuffle=True, num_workers=2)


@pytest.fixture(scope="module")
def expected(loader) -> list[tuple[int, bytes]]:
    return ids_and_pixels(loader.epoch(1))


# Threads


def threads() -> set[threading.Thread]:
    """Those that Python's `threading` has started; not what a worker of xdist has beside them."""
    return {thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}


def test_an_exception_of_any_kind_in_a_worker_reaches_the_caller(raw_beton, monkeypatch):
    before, loader = threads(), ViewLoader(open_beton(raw_beton), VIEWS, num_workers=2)
    monkeypatch.setattr(loader, "_memory", None)  # what a mistake in the loader itself would do
    with pytest.raises(AttributeError):
        list(loader.epoch(0))
    assert threads() == before


def test_more_workers_than_cores_change_nothing_but_the_number_of_threads(raw_beton, loader, expected):
    before = torch.get_num_threads()
    many = ViewLoader(open_beton(raw_beton), VIEWS, batch_size=8, shuffle=True, num_workers=40, prefetch=50)
    assert sorted(ids_and_pixels(many.epoch(1))) == sorted(expected)
    assert ids_and_pixels(loader.epoch(1)) == expected
    assert torch.get_num_threads() == before


@pytest.fixture(scope="module")
def under_workqueue(raw_beton) -> list[str]:
    """What a process prints in which two threads load under Numba's workqueue layer, and which lists what it imported."""
    code = """
import sys, threading
from fastkd import Loader, Views

def load():
    loader = Loader(sys.argv[1], Views("crop-flip", 32, 162), shuffle=True, num_workers=2)
    counts.append(sum(len(batch) for epoch in range(5) for batch in loader.epoch(epoch)))

counts = []
threads = [threading.Thread(target=load) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(counts)
print([name for name in ("cupy", "pytorch_pfn_extras") if name in sys.modules])
"""
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue"}
    command = [sys.executable, "-c", code, str(raw_beton)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_two_threads_load_under_numbas_workqueue_layer(under_workqueue):
    assert under_workqueue[0] == "[3000, 3000]"


# Processes


def run_forked(function) -> int:
    """The exit code of a forked process that calls the function: 0, 1 where it raises; -14 where it hangs."""

    def run() -> None:
        signal.alarm(60)
        function()

    (code,) = wait_for([forked(run)])
    return code


def test_a_process_that_is_forked_after_loading_loads_the_same(loader, expected):
    def load() -> None:
        assert ids_and_pixels(loader.epoch(1)) == expected

    batches = loader.epoch(0)
    next(batches)
    assert run_forked(load) == 0  # with the parent's workers at work
    batches.close()
    assert run_forked(load) == 0
    assert ids_and_pixels(loader.epoch(1)) == expected


def test_a_forked_process_cannot_go_on_in_the_loop_of_its_parent(loader):
    batches = loader.epoch(0)
    seen = [next(batches)]

    def go_on() -> None:
        with pytest.raises(OptionError, match="in the process that began it"):
            list(batches)

    assert run_forked(go_on) == 0
    seen.extend(batches)
    assert ids_and_pixels(seen) == ids_and_pixels(loader.epoch(0))


class Part(IterableDataset):
    """A worker's part of an epoch, as the README has it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self):
        info = get_worker_info()
        world = World(rank=info.id, size=info.num_workers)
        loader = ViewLoader(open_beton(self.path), VIEWS, batch_size=32, shuffle=True, num_workers=1, world=world)
        for batch in loader.epoch(1):
            yield batch.images, batch.sample_ids


def test_a_loader_works_inside_the_workers_of_torchs_dataloader(raw_beton, loader, expected):
    list(loader.epoch(0))  # a loader that the parent has used before
    found = []
    workers = DataLoader(Part(raw_beton), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for images, ids in workers:
        found += [(int(i), image.numpy().tobytes()) for i, image in zip(ids, images, strict=True)]
    assert sorted(found) == sorted(expected)


def test_ranks_share_an_epoch_in_pages_order(raw_beton):
    beton, ids = open_beton(raw_beton), np.arange(0, 600, 7)
    seen = [
        int(i)
        for rank in range(3)
        for batch in ViewLoader(
            beton, VIEWS, ids=ids, batch_size=4, shuffle=True, order="pages", world=World(rank=rank, size=3)
        ).epoch(2)
        for i in batch.sample_ids
    ]
    assert sorted(seen) == ids.tolist()


# What a loader is given


def test_two_loaders_of_one_beton_and_one_views_object_are_alike(raw_beton, expected):
    beton, ids = open_beton(raw_beton), np.arange(600)
    for _ in range(2):
        loader = ViewLoader(beton, VIEWS, ids=ids, batch_size=64, shuffle=True, num_workers=1)
        assert ids_and_pixels(loader.epoch(1)) == expected
    assert ids.tolist() == list(range(600))


@pytest.mark.parametrize("order", ["shuffle", "pages"])
def test_a_loader_does_not_change_with_the_ids_that_it_was_given(raw_beton, order):
    beton, ids = open_beton(raw_beton), np.arange(40)
    loader = ViewLoader(beton, VIEWS, ids=ids, batch_size=16, shuffle=True, order=order)
    ids[:] = 599
    assert sorted(i for i, _ in ids_and_pixels(loader.epoch(0))) == list(range(40))
    other = ViewLoader(beton, VIEWS, ids=np.arange(100, 200), batch_size=16)
    assert (len(loader), len(other)) == (3, 7)
    assert sorted(i for i, _ in ids_and_pixels(loader.epoch(1))) == list(range(40))


def test_a_batch_of_one_has_the_axes_of_any_other(raw_beton):
    beton = open_beton(raw_beton)
    for loader in (ViewLoader(beton, VIEWS, batch_size=1), ViewLoader(beton, VIEWS, ids=np.array([5]))):
        batch = next(loader.epoch(0))
        assert (batch.images.shape, batch.labels.shape, batch.sample_ids.shape) == ((1, 3, 32, 32), (1,), (1,))


# Devices and what is installed


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=str)
def test_a_device_goes_by_its_name(raw_beton, device):
    batch = next(ViewLoader(open_beton(raw_beton), VIEWS, device=device).epoch(0))
    assert batch.images.device == torch.device("cpu")
    assert isinstance(batch.to("cpu"), Batch)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta", "cuda:x"])
def test_a_device_that_is_not_there_is_refused_at_once(raw_beton, device):
    with pytest.raises(OptionError, match=f"^device {device}: "):
        ViewLoader(open_beton(raw_beton), VIEWS, device=device)


def test_setuptools_is_asked_for_where_ffcv_needs_its_distutils():
    assert any(line.startswith("setuptools") and '>= "3.12"' in line.replace("'", '"') for line in requires("fastkd"))


def test_loading_imports_no_gpu_library_but_torch(under_workqueue):
    assert under_workqueue[1] == "[]"


def test_no_code_asks_ffcv_whether_there_is_a_gpu():
    import fastkd

    files = [*Path(fastkd.__file__).parent.rglob("*.py")]
    assert len(files) > 50
    assert not [file for file in files if "IS_CUDA" in file.read_text()]


# Memory


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_hundred_epochs_take_the_memory_of_ten(loader):
    before, used = threads(), []
    for epochs in (10, 90):
        for epoch in range(epochs):
            for _ in loader.epoch(epoch):
                pass
        used.append(resident_bytes())
    assert used[1] - used[0] < 4 * 2**20  # an epoch's batches are 2 MB, the ring of each of FFCV's 1 MB
    assert threads() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_epochs_on_a_gpu_take_no_more_memory_than_the_first(raw_beton):
    loader = ViewLoader(open_beton(raw_beton), VIEWS, batch_size=64, device="cuda")
    used = []
    for epoch in range(30):
        for batch in loader.epoch(epoch):
            assert batch.images.is_cuda
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_reserved())
    assert max(used[5:]) <= max(used[:5])
