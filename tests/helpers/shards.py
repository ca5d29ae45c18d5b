"""Tars and parquet files of samples, as WebDataset and Hugging Face write them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest


def write_tar(path: Path, files: dict[str, bytes], **options: Any) -> str:
    """Writes files into a tar; returns its path."""
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def write_parquet(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, **options: Any) -> str:
    """Writes columns, with what the library of Hugging Face would say of them in the schema's metadata; returns its path."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, **options)
    return str(path)


def class_label(*names: str) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


def as_tars(folder: Path, files: dict[str, bytes], num_tars: int = 2) -> str:
    """Images named `<class>/<file>.<suffix>` as tars with the class as text beside each; returns the source."""
    names, per_tar = list(files), -(-len(files) // num_tars)
    for number in range(num_tars):
        members: dict[str, bytes] = {}
        for name in names[number * per_tar : (number + 1) * per_tar]:
            members[name] = files[name]
            members[f"{name.rpartition('.')[0]}.cls"] = name.split("/")[0].encode()
        write_tar(folder / f"train-{number:03}.tar", members)
    return f"webdataset:{folder}/train-{{000..{num_tars - 1:03}}}.tar"


def as_parquet(folder: Path, files: dict[str, bytes], num_files: int = 2, **options: Any) -> str:
    """The same images as parquet files with a ClassLabel column; returns the source."""
    names, per_file = list(files), -(-len(files) // num_files)
    classes = sorted({name.split("/")[0] for name in names})
    for number in range(num_files):
        own = names[number * per_file : (number + 1) * per_file]
        columns = {
            "image": [{"bytes": files[name], "path": name.rpartition("/")[2]} for name in own],
            "label": [classes.index(name.split("/")[0]) for name in own],
        }
        features = {"image": {"_type": "Image"}, "label": class_label(*classes)}
        write_parquet(
            folder / f"train-{number:05}-of-{num_files:05}.parquet", columns, features, row_group_size=5, **options
        )
    return f"parquet:{folder}/train-*.parquet"
