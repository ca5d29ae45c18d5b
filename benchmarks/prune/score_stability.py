"""Claim: which scores say the same about a sample when only the seed of the network changes.

For each of two seeds, by the commands alone: a network is trained on the beton, recording forgetting, EL2N, AUM and DUAL;
EL2N, GraNd, Moderate, margin and entropy come from the trained network, confidence and variance over four views from its
logit store, memorization from networks on random parts. For each method: Spearman's correlation between the seeds over all
samples that both define, and the Jaccard index of the hardest tenths. Asserted in the same run: `fastkd prune --level hard
--keep 0.1` keeps a tenth of the samples, and none of a lower score than one that it leaves out. Commands that are done
in FOLDER are not run again.

    python -m benchmarks.prune.score_stability test.beton FOLDER --epochs 8 --gallery hard.png
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks import measure
from fastkd.prune.masks.mask import Mask
from fastkd.prune.scores.score_file import load_scores
from fastkd.report.selection import compare_scores

SOURCES = {"recorded": "run/scores.h5", "trained network": "n.h5", "store": "s.h5", "subsets": "m.h5"}
"""Where a method's scores come from, and the file below a seed's folder."""


def once(out: Path, command: str, *arguments: object) -> None:
    """Runs a command that writes `out`, unless it is there."""
    if not out.exists():
        measure.fastkd(command, *arguments)


def make_scores(beton: Path, folder: Path, seed: int, args: argparse.Namespace) -> None:
    """All score files of one seed."""
    network, device = ["--model", args.model, "--epochs", args.epochs, "--seed", seed], ["--device", args.device]
    window = min(10, max(2, args.epochs // 2))
    record = ["--record", "forgetting,el2n,aum,dual", "--dual-window", window]
    once(folder / "run/scores.h5", "train", beton, "--alpha", 0, *network, *record, "--out", folder / "run", *device)
    trained = folder / "run/model.safetensors"
    methods = [word for method in ("el2n", "grand", "moderate", "margin", "entropy") for word in ("--method", method)]
    once(folder / "n.h5", "score", beton, *methods, "--model", trained, "--out", folder / "n.h5", *device)
    store = folder / "l.h5"
    if not (folder / "s.h5").exists():
        store.unlink(missing_ok=True)
        measure.fastkd("cache-logits", beton, "--teacher", trained, "--num-seeds", 4, "--out", store, *device)
    methods = ["--method", "confidence", "--method", "variance"]
    once(folder / "s.h5", "score", beton, *methods, "--logits", store, "--out", folder / "s.h5")
    subsets = ["--num-models", args.num_models, "--epochs", args.subset_epochs, "--min-count", 1, "--seed", seed]
    subsets += ["--student", args.model, "--out", folder / "m.h5", *device]
    once(folder / "m.h5", "score", beton, "--method", "memorization", *subsets)


def check_hard_mask(beton: Path, scores: Path, name: str, mask: Path) -> None:
    """The mask of the hardest tenth holds just that."""
    measure.fastkd(
        *("prune", beton, "--method", "scores", "--scores", scores, "--score", name, "--level", "hard", "--keep", 0.1),
        *("--unscored", "drop", "--out", mask, "--force"),
    )
    values, kept = load_scores(scores).values[name], Mask.load(mask).sample_ids
    assert len(kept) == round(0.1 * len(values))
    assert values[kept].min() >= np.nanmax(np.delete(values, kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beton", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--num-models", type=int, default=6, help="networks of memorization")
    parser.add_argument("--subset-epochs", type=int, default=8, help="epochs of each of them")
    parser.add_argument("--gallery", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", default="score_stability", help="of the results")
    args = parser.parse_args()
    folders = [args.folder / str(seed) for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        make_scores(args.beton, folder, seed, args)
    agreement = {}
    for source, path in SOURCES.items():
        one, other = (load_scores(folder / path) for folder in folders)
        for name, found in compare_scores(one, other, None).items():
            check_hard_mask(args.beton, folders[0] / path, name, args.folder / "hard.h5")
            agreement[f"{name}, {source}"] = found
    if args.gallery:
        shown = ["--beton", args.beton, "--gallery", args.gallery]
        measure.fastkd("inspect", folders[0] / SOURCES["recorded"], "--score", "el2n", *shown)
    measure.save(
        args.name,
        {
            "between_two_seeds": agreement,
            "model": args.model,
            "epochs": args.epochs,
            "memorization": {"networks": args.num_models, "epochs": args.subset_epochs},
        },
    )


if __name__ == "__main__":
    main()
