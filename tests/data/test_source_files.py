import contextlib
import multiprocessing
import os
import struct
import threading
import zipfile
from pathlib import Path

import pytest
from helpers.refusals import refused
from helpers.synthetic import write_zip
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd.data.sources.open import Source, open_source
from fastkd.errors import FastKDError, FormatError, SourceError

FILES = {"ant/9.webp": b"ant 9", "cat/a.JPG": b"cat a", "cat/b.png": b"cat b", "cat/more/0.jpeg": b"cat more 0"}


def write_folder(path: Path) -> str:
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return str(path)


def _read_all(source: Source) -> list[bytes]:
    return [source.read(i) for i in range(len(source))]


def test_a_link_to_a_folder_above_ends_in_an_error_and_not_in_a_loop(tmp_path):
    path = write_folder(tmp_path)
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    assert "link" in refused(SourceError, open_source, path)


def test_linked_files_and_folders_are_followed(tmp_path):
    write_folder(tmp_path / "store")
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "cat").symlink_to(tmp_path / "store" / "cat")
    assert open_source(str(tmp_path / "view")).names == ["cat/a.JPG", "cat/b.png", "cat/more/0.jpeg"]


def test_a_broken_link_to_an_image_is_named(tmp_path):
    path = write_folder(tmp_path)
    (tmp_path / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    assert "gone.jpg" in refused(SourceError, open_source, path)


def test_a_pipe_named_like_an_image_is_refused_and_not_waited_for(tmp_path):
    path = write_folder(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    assert "pipe.jpg" in refused(SourceError, open_source, path)


def test_a_file_that_vanished_is_named_when_read(tmp_path):
    source = open_source(write_folder(tmp_path))
    (tmp_path / source.names[2]).unlink()
    with pytest.raises(SourceError, match=r"cat/b\.png"):
        source.read(2)


def test_forked_processes_and_threads_read_one_zip_at_once(tmp_path):
    files = {f"cat/{i:03}.png": bytes([i]) * 20_000 for i in range(60)}
    source = open_source(write_zip(tmp_path / "z.zip", files))
    expected = _read_all(source)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read_all, [source] * 4) == [expected] * 4
    results: list[list[bytes]] = []
    threads = [threading.Thread(target=lambda: results.append(_read_all(source))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_a_damaged_zip_member_is_named_when_read(tmp_path):
    path = write_zip(tmp_path / "z.zip", {"cat/a.jpg": b"A" * 100, "cat/b.jpg": b"B" * 100}, zipfile.ZIP_STORED)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content.replace(b"B" * 100, b"B" * 99 + b"C"))
    source = open_source(path)
    assert source.read(0) == b"A" * 100
    with pytest.raises(SourceError, match=r"cat/b\.jpg.*CRC"):
        source.read(1)


def test_a_zip_member_that_says_it_is_huge_is_refused(tmp_path):
    path = write_zip(tmp_path / "z.zip", {"cat/a.jpg": b"A" * 100})
    content = bytearray(Path(path).read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 24, 2**32 - 2)
    Path(path).write_bytes(content)
    with pytest.raises(SourceError, match="expected an image of at most"):
        open_source(path).read(0)


@pytest.mark.parametrize("name", ["/cat/a.jpg", "../cat/a.jpg", "cat/../../a.jpg", "cat//a.jpg", "d/" * 70 + "a.jpg"])
def test_a_zip_member_with_an_odd_path_is_refused(tmp_path, name):
    assert "relative path" in refused(FormatError, open_source, write_zip(tmp_path / "z.zip", FILES | {name: b""}))


def test_an_encrypted_zip_member_is_refused(tmp_path):
    path = write_zip(tmp_path / "z.zip", FILES)
    content = bytearray(Path(path).read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    Path(path).write_bytes(content)
    assert "encrypted" in refused(FormatError, open_source, path)


@pytest.mark.parametrize("share", [0, 0.3, 0.5, 0.99])
def test_a_cut_zip_is_refused(tmp_path, share):
    path = Path(write_zip(tmp_path / "z.zip", FILES))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert str(path) in refused(FormatError, open_source, str(path))


def test_a_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a zip")
    assert "no zip" in refused(FormatError, open_source, str(tmp_path / "a.jpg"))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_zip_with_changed_bytes_reads_or_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.zip"
    content = bytearray(Path(write_zip(path, FILES)).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(FastKDError):
        _read_all(open_source(str(path)))
