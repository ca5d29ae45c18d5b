"""Tars in WebDataset's form."""

import gzip
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from helpers.hostile import ending
from helpers.refusals import refused
from helpers.shards import write_tar

from fastkd.data.sources.open import open_source
from fastkd.errors import FormatError, NotFoundError, OptionError, SourceError

FILES = {"a/0.jpg": b"image 0", "a/0.cls": b"cat\n", "b/1.JPG": b"image 1", "b/1.cls": b"ant"}


def test_samples_lie_in_the_order_of_the_tar(tmp_path):
    source = open_source("webdataset:" + write_tar(tmp_path / "x.tar", FILES))
    assert source.names == ["x.tar/a/0.jpg", "x.tar/b/1.JPG"]
    assert [source.read(i) for i in range(2)] == [b"image 0", b"image 1"]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read_with_long_names_and_names_of_any_bytes(tmp_path, kind):
    stem = "./" + "x" * 90 + "/" + "y" * 90 + "\udce9"
    path = write_tar(tmp_path / "x.tar", {f"{stem}.jpg": b"image", f"{stem}.cls": b"1"}, format=kind)
    source = open_source(f"webdataset:{path}")
    assert (source.names, source.read(0)) == ([f"x.tar/{stem[2:]}.jpg"], b"image")


def test_a_tar_of_gnu_tar_is_read(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    os.system(f"tar -C {tmp_path} -cf {tmp_path}/x.tar ./a ./b --sort=name")
    assert sorted(open_source(f"webdataset:{tmp_path}/x.tar").names) == ["x.tar/a/0.jpg", "x.tar/b/1.JPG"]


def test_hidden_files_and_those_of_webdataset_do_not_count_and_others_are_counted(tmp_path):
    extra = {
        "a/0.txt": b"",
        "a/0.json": b"{}",
        "README": b"",
        "a/._0.jpg": b"",
        "__MACOSX/a/0.jpg": b"",
        "__key__": b"",
    }
    files = dict(sorted((FILES | extra).items()))
    source = open_source("webdataset:" + write_tar(tmp_path / "x.tar", files))
    assert (len(source), source.left_aside) == (2, Counter({".txt": 1, ".json": 1, "": 1}))


TWO = {"0.a.jpg": b"a", "0.b.jpg": b"b", "0.cls": b"0", "0.fine.json": b'{"label": 1, "id": 2}'}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"image_field": "a.jpg"}, (b"a", 0)),
        ({"image_field": "B.jpg", "label_field": "Fine.json"}, (b"b", 1)),
        ({"image_field": "b.jpg", "label_field": "fine.json:id"}, (b"b", 2)),
    ],
)
def test_of_several_images_or_labels_one_is_named(tmp_path, fields, found):
    source = open_source("webdataset:" + write_tar(tmp_path / "x.tar", TWO), **fields)
    assert (source.read(0), source.labels[0]) == found


@pytest.mark.parametrize(
    ("files", "fields", "kind", "said"),
    [
        (TWO, {}, SourceError, "found 2 images in it, only '.a.jpg'"),
        (TWO, {"image_field": "png"}, SourceError, "found no .png in it"),
        (TWO, {"image_field": "a.jpg", "label_field": "cls:id"}, OptionError, "expected cls alone"),
        (
            TWO,
            {"image_field": "a.jpg", "label_field": "fine.json:x"},
            SourceError,
            "no entry 'x' in its .fine.json, only 'id', 'label'",
        ),
        (TWO, {"image_field": "a.jpg", "label_field": "txt"}, SourceError, "found no .txt in it for its label"),
        ({"0.cls": b"0"}, {}, SourceError, "sample '0': found no image"),
        ({"0.jpg": b""}, {}, SourceError, "found no .cls in it for its label, only '.jpg'"),
        (FILES | {"b/2.jpg": b"", "b/2.json": b'{"label": 0}'}, {}, SourceError, "sample 'b/2': found no .cls"),
        (FILES | {"a/0.png": b""}, {}, FormatError, "the sample 'a/0' in two places"),
        ({"0.jpg": b"", "0.JPG": b"", "0.cls": b"0"}, {}, FormatError, "'0.JPG' twice"),
        ({"0.jpg": b"", "0.cls": b""}, {}, SourceError, "found '' in its .cls"),
        ({"0.jpg": b"", "0.cls": b"a\nb"}, {}, SourceError, "found 'a\\nb' in its .cls"),
        ({"0.jpg": b"", "0.cls": b"\xff"}, {}, SourceError, "says no class"),
        ({"0.jpg": b"", "0.cls": bytes(2 << 20)}, {}, SourceError, "says no class"),
        ({"0.jpg": b"", "0.json": b"[1]"}, {}, SourceError, "no entry 'label' in its .json, a list"),
        ({"0.jpg": b"", "0.json": b'{"label": 1.5}'}, {}, SourceError, "says no class"),
        ({"0.jpg": b"", "0.json": b'{"label": true}'}, {}, SourceError, "says no class"),
        ({"0.jpg": b"", "0.json": b'{"label": null}'}, {}, SourceError, "says no class"),
        ({"0.jpg": b"", "0.json": b"[" * 100_000}, {}, SourceError, "says no class"),
        ({"README": b""}, {}, NotFoundError, "found no samples"),
    ],
)
def test_what_is_no_clear_sample_is_refused(tmp_path, files, fields, kind, said):
    assert said in refused(kind, open_source, "webdataset:" + write_tar(tmp_path / "x.tar", files), **fields)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_member_that_is_no_plain_file_is_refused(tmp_path, kind):
    path = tmp_path / "x.tar"
    write_tar(path, FILES)
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("c/2.jpg")
        member.type, member.linkname = kind, "a/0.jpg"
        archive.addfile(member)
    assert "'c/2.jpg', a link or no plain file" in refused(FormatError, open_source, f"webdataset:{path}")


def test_a_tar_that_is_cut_anywhere_is_refused(tmp_path):
    content = Path(write_tar(tmp_path / "x.tar", FILES)).read_bytes()
    end = len(FILES) * 2 * tarfile.BLOCKSIZE
    for length in range(0, end + tarfile.BLOCKSIZE, 128):
        (tmp_path / "x.tar").write_bytes(content[:length])
        refused(FormatError, open_source, f"webdataset:{tmp_path}/x.tar")
    (tmp_path / "x.tar").write_bytes(content[: end + tarfile.BLOCKSIZE])
    assert len(open_source(f"webdataset:{tmp_path}/x.tar")) == 2


def test_a_byte_of_a_header_that_flips_is_never_read_over(tmp_path):
    path = tmp_path / "x.tar"
    content = Path(write_tar(path, FILES)).read_bytes()
    for at in [*range(0, 512, 5), *range(1024, 1536, 5), *range(3072, 3584, 5)]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        if at % 512 not in (154, 155):  # what ends the checksum's digits
            refused(FormatError, open_source, f"webdataset:{path}")


def test_tars_one_behind_the_other_are_refused_and_joined_ones_read(tmp_path):
    content = Path(write_tar(tmp_path / "x.tar", FILES)).read_bytes()
    (tmp_path / "x.tar").write_bytes(content + content)
    assert "found more after its member 'b/1'" in refused(FormatError, open_source, f"webdataset:{tmp_path}/x.tar")


def test_a_compressed_tar_is_refused_with_the_way_out(tmp_path):
    content = Path(write_tar(tmp_path / "x.tar", FILES)).read_bytes()
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(content))
    assert "gunzip" in refused(FormatError, open_source, f"webdataset:{tmp_path}/x.tar.gz")


@pytest.mark.parametrize("content", [b"", b"no tar", b"PK\x03\x04" + bytes(600)])
def test_a_file_that_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    refused(FormatError, open_source, f"webdataset:{tmp_path}/x.tar")


def test_a_tar_that_is_cut_or_gone_after_it_was_opened_is_told(tmp_path):
    path = write_tar(tmp_path / "x.tar", FILES)
    source, other = (open_source(f"webdataset:{path}") for _ in range(2))
    os.truncate(path, 2000)
    assert "became shorter" in refused(SourceError, source.read, 1)
    Path(path).unlink()
    assert "No such file" in refused(SourceError, other.read, 0)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_much_memory_is_refused_before_it_is_taken(tmp_path, kind):
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, 1 << 30
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2 << 30)  # without blocks on the disk
    assert "a header of 1073741824 bytes" in ending(lambda: open_source(f"webdataset:{tmp_path}/x.tar"), tmp_path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"!", tarfile.DIRTYPE])
@pytest.mark.parametrize("size", [-512, -1024, -(1 << 40)])
def test_a_member_that_leads_back_ends_in_an_error_and_not_in_a_loop(tmp_path, kind, size):
    member = tarfile.TarInfo(".hidden")
    member.type, member.size = kind, size
    content = Path(write_tar(tmp_path / "x.tar", FILES)).read_bytes()
    (tmp_path / "x.tar").write_bytes(content[: len(FILES) * 1024] + member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    told = ending(lambda: open_source(f"webdataset:{tmp_path}/x.tar"), tmp_path)
    assert told.startswith(f"{tmp_path}/x.tar: cannot be read as a tar"), told


def test_an_image_of_a_member_without_end_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.tar"
    member, label = tarfile.TarInfo("0.jpg"), tarfile.TarInfo("0.cls")
    member.size, label.size = 300 << 20, 1
    with open(path, "wb") as file:
        file.write(label.tobuf() + b"0" + bytes(511) + member.tobuf())
        file.truncate((301 << 20) + 4096)
    told = ending(lambda: open_source(f"webdataset:{path}").read(0), tmp_path)
    assert "x.tar/0.jpg: 314572800 bytes" in told
