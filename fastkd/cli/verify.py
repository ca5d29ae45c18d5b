"""`fastkd verify`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.command import command
from fastkd.cli.common import choose_device, keep_freed_memory, progress_bar, say
from fastkd.cli.options import (
    device_options,
    field_options,
    open_teacher,
    refuse_idle,
    refuse_idle_fields,
    take_precision,
    teacher_options,
)
from fastkd.data.beton.fields import Fields
from fastkd.dist import World, read_world


@command("verify")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@field_options
@click.option(
    "--write-manifest",
    is_flag=True,
    help="Write the manifest of a beton that has none, a damaged one or another beton's; and its row index.",
)
@click.option(
    "--against", metavar="BETON", type=click.Path(path_type=Path), help="Compute rows of stores again, from this beton."
)
@click.option("--teacher", metavar="T", help="The teacher for --against: a checkpoint, or a torchvision / timm: name.")
@teacher_options
@click.option("--rows", type=click.IntRange(1, 10**9), help="Rows for --against.  [default: 1000]")
@device_options
def verify(
    files: tuple[Path, ...],
    fields: Fields,
    write_manifest: bool,
    against: Path | None,
    teacher: str | None,
    rows: int | None,
    device: str,
    num_workers: int,
    **teacher_flags: Any,
) -> tuple[dict[str, Any], str]:
    """Read each FILE whole and check all of it; exit 0 only if every one is whole.

    Logit stores can be checked against what they were made from as well: the pixels of their probe views by checksum,
    and some of their rows by the divergence of the teacher's logits.

    \b
    fastkd verify train.beton l.h5
    fastkd verify l.h5 --against train.beton --teacher t.safetensors --rows 1000
    """
    from fastkd.report.describe import kind_of
    from fastkd.report.describe import verify as check

    if (against is None) != (teacher is None):
        raise click.UsageError("--against and --teacher are given together")
    refuse_idle({"rows": rows} | teacher_flags, "against", against)
    if write_manifest:
        from fastkd.data.beton.read import open_beton
        from fastkd.data.beton.renew import renew_manifest
        from fastkd.data.beton.row_index import write_row_index
        from fastkd.writing import claim

        for path in files:
            with claim(path, log=say):  # as build-beton does
                manifest, told = renew_manifest(path, fields)
                used = "; fields {image} and {label}".format(**manifest["fields"]) if "fields" in manifest else ""
                say(f"{path}.json: {told}; fingerprint {manifest['fingerprint']}{used}")
                num_entries = write_row_index(open_beton(path, fields))
                made = f"rows of {num_entries:,} images" if num_entries else "not made, no image of it has one"
                say(f"{path}.rows: {made}")
    problems: list[str] = []
    notes: list[str] = []
    with progress_bar("verify", "samples") as progress:
        for path in files:
            problems += check(path, progress, fields, notes.append)
    for line in notes:
        say(line)
    if not problems:
        has_beton = against is not None or any(kind_of(path) == "beton" for path in files)
        refuse_idle_fields(fields, has_beton, "a beton among FILES or --against")
    result: dict[str, Any] = {"ok": not problems, "problems": problems, **({"notes": notes} if notes else {})}
    if against is not None and teacher is not None and not problems:
        result |= _compute_again(files, against, fields, teacher, teacher_flags, rows or 1000, device, num_workers)
    names = ", ".join(str(path) for path in files)
    text = f"{names}: {len(result['problems'])} problems\n" + "\n".join(result["problems"])
    return result, f"{names}: whole" if result["ok"] else text


def _compute_again(
    files: tuple[Path, ...],
    against: Path,
    fields: Fields,
    teacher: str,
    teacher_flags: dict[str, Any],
    rows: int,
    device: str,
    num_workers: int,
) -> dict[str, Any]:
    from fastkd.data.beton.dataset import open_dataset
    from fastkd.store.tables import read_tables
    from fastkd.teacher.recipe import stored_precision
    from fastkd.teacher.recompute import recompute_rows

    problems, told = [], []
    keep_freed_memory()
    device_name = choose_device(device, read_world())
    with progress_bar("verify", "rows") as progress:
        dataset = open_dataset(against, fields)
        asked, begun = teacher_flags["teacher_precision"], stored_precision(*files)
        taken = take_precision(asked, "--teacher-precision", device_name, World(), begun)
        teacher_flags["teacher_precision"] = taken
        network = open_teacher(teacher, teacher_flags, dataset.num_classes, device_name)
        for path in files:
            found = recompute_rows(
                read_tables(path), dataset, network, num_rows=rows, num_workers=num_workers, progress=progress
            )
            problems += [f"{path}: {line}" for line in found.problems]
            told.append(
                {"path": str(path), "rows": found.num_rows, "mean_kl": found.mean_kl, "max_kl": found.max_kl}
                | {"top1_flips": found.flips}
            )
            more = ""
            if found.mean_embedding_error is not None and found.max_embedding_error is not None:
                mean, worst = found.mean_embedding_error, found.max_embedding_error
                told[-1] |= {"mean_embedding_error": mean, "max_embedding_error": worst}
                more = f"embeddings differ by {mean:.1e} of their length, worst {worst:.1e}; "
            say(
                f"{path}: {found.num_rows:,} rows computed again: mean KL {found.mean_kl:.1e}, worst {found.max_kl:.1e} nats; "
                f"{found.flips} top-1 classes differ; {more}probe views have the same pixels"
            )
    return {"ok": not problems, "problems": problems, "recomputed": told}
