"""Reading a whole beton and checking all of it: every payload against the manifest, every image by
decoding it, every entry of the row index by making it again."""

from collections.abc import Callable

import numpy as np

from fastkd.data.beton.read import Beton, beton_fingerprint, check_labels, payload_digests, read_manifest
from fastkd.data.beton.row_index import damaged_entries, row_index_path
from fastkd.data.views.decode import check_images
from fastkd.data.views.pixels import OK, REASONS
from fastkd.errors import FormatError

_STEP = 256
_LISTED = 20


def verify_beton(beton: Beton, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """All that is wrong with a beton whose tables are sound (`open_beton` has checked those).

    Returns:
        One line for each problem; of damaged samples the first twenty, then their number.

    Raises:
        FormatError, MismatchError: a manifest or a row index that is damaged or another beton's; a file that becomes shorter meanwhile.
    """
    manifest = read_manifest(beton, columns=True)
    problems = []
    try:
        check_labels(beton)
    except FormatError as error:
        problems.append(str(error))
    changed = np.zeros(beton.num_samples, bool)
    if manifest is not None:
        digests = []
        expected = manifest.get("payload_crc32", [])
        for sample_id, (digest, crc) in enumerate(payload_digests(beton)):
            digests.append(digest)
            changed[sample_id] = sample_id < len(expected) and expected[sample_id] != crc
        if beton_fingerprint(beton, b"".join(digests)) != manifest["fingerprint"]:
            problems.append(f"content does not have the fingerprint in the manifest ({manifest['fingerprint'][:12]})")
    status = _decode_all(beton, progress)
    names = (manifest or {}).get("names", [])
    bad = np.flatnonzero(changed | (status != OK))
    for sample_id in bad[:_LISTED]:
        reason = REASONS.get(int(status[sample_id]), "its bytes differ from those that the manifest was made of")
        name = f" ({names[sample_id]})" if len(names) == beton.num_samples else ""
        problems.append(f"sample {sample_id}: {reason}{name}")
    if len(bad) > _LISTED:
        problems.append(f"{len(bad)} damaged samples in all")
    entries = damaged_entries(beton)
    if entries:
        problems.append(
            f"{row_index_path(beton.path).name}: {len(entries)} entries are not those of their images, that of sample {entries[0]} "
            f"first; `fastkd verify --write-manifest {beton.path}` makes it again"
        )
    return problems


def _decode_all(beton: Beton, progress: Callable[[int, int], None]) -> np.ndarray:
    """The decoder's status of every sample: int32 (N,)."""
    status = np.zeros(beton.num_samples, np.int32)
    images, data = beton.metadata[f"f{beton.image_field}"], beton.data.view(np.ndarray)
    for first in range(0, beton.num_samples, _STEP):
        end = min(first + _STEP, beton.num_samples)
        beton.require_length()
        check_images(first, end, images, data, beton.sizes, status)
        progress(end, beton.num_samples)
    return status
