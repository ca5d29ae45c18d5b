"""The paper's figures on CIFAR-10 as JPEGs, as far as two CPU cores bring them: figures 3, 6, 7 and 12, and two questions of our own.

Claim: what the pages say. Published ResNet-20, -32 and -56 teach a ResNet-8 of 15 epochs, three seeds a cell, fp32 weights and
bf16 autocast. All suites share a folder, and with it scores, masks, stores and runs; each is `fastkd sweep` of a file that is
written there, and can be run again by hand. A sweep that was stopped goes on.

    python -m benchmarks.sweep.results train.beton test.beton CHECKPOINTS FOLDER
"""

import argparse
from pathlib import Path

from benchmarks import measure

EPOCHS = 15
BASE = """# ResNet-8 on CIFAR-10 as JPEGs, {epochs} epochs, bf16 autocast; a published teacher.
[data]
train = "{train}"
val = "{val}"

[teacher.r20]
checkpoint = "{checkpoints}/resnet20-12fca82f.th"
teacher-model = "resnet20"
teacher-norm = "imagenet"
teacher-precision = "bf16"

[teacher.scorer] # records forgetting and EL2N
model = "resnet8"
epochs = 8
batch-size = 128
lr = 0.1
schedule = "cosine"
val-every = 8
amp = "bf16"

[score]
teacher = "scorer"

[train]
teacher = "r20"
model = "resnet8"
schedule = "cosine"
val-every = 100
num-seeds = {epochs}
tau = 4.0
amp = "bf16"
"""
SUITES = {
    "fig3": """
[matrix]
train.epochs = [{epochs}]
prune.method = ["random", "forgetting", "el2n"]
prune.keep = [0.02, 0.05, 0.1]
train.alpha = [0, 0.5]
seed = [0, 1, 2]

[report]
x = "fraction"
lines = ["method", "alpha"]
""",
    "fig3-large": """
[matrix]
train.epochs = [{epochs}]
prune.keep = [0.1, 0.3]
train.alpha = [0, 0.5]
seed = [0, 1, 2]

[report]
x = "fraction"
lines = ["alpha"]
""",
    "k-alpha-f": """
[matrix]
train.epochs = [{epochs}]
train.num-seeds = [1, 4, {epochs}]
train.alpha = [0.5, 1.0, "auto"]
prune.keep = [0.05]
seed = [0, 1, 2]

[report]
x = "num-seeds"
lines = ["alpha"]
""",
    "equal-compute": """
[matrix]
train.steps = [586] # 15 epochs of a twentieth
prune.keep = [0.05, 0.1, 0.2, 1.0]
train.alpha = [0, 0.5]
seed = [0, 1, 2]

[report]
x = "fraction"
lines = ["alpha"]
""",
    "fig7": """
[teacher.r32]
checkpoint = "{checkpoints}/resnet32-d509ac18.th"
teacher-model = "resnet32"
teacher-norm = "imagenet"
teacher-precision = "bf16"

[teacher.r56]
checkpoint = "{checkpoints}/resnet56-4bfd9763.th"
teacher-model = "resnet56"
teacher-norm = "imagenet"
teacher-precision = "bf16"

[matrix]
train.epochs = [{epochs}]
train.num-seeds = [4]
train.teacher = ["r20", "r32", "r56"]
prune.keep = [0.05, 0.1]
train.alpha = [0, 0.5]
seed = [0, 1, 2]

[report]
x = "teacher"
lines = ["fraction", "alpha"]
""",
    "fig12": """
[prune]
method = "forgetting"

[matrix]
train.epochs = [{epochs}]
prune.level = ["easy", "moderate", "hard"]
prune.keep = [0.05, 0.1]
train.alpha = [0, 0.5]
seed = [0, 1, 2]

[report]
x = "fraction"
lines = ["level", "alpha"]
""",
    "fig6": """
[prune]
method = "forgetting"

[matrix]
train.epochs = [{epochs}]
prune.keep = [0.05, 0.1]
train.alpha = [0, 0.3, 0.5, 0.7, 1.0]
seed = [0, 1, 2]

[report]
x = "alpha"
lines = ["fraction"]
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="beton of CIFAR-10's training images")
    parser.add_argument("val", type=Path, help="and of its test images")
    parser.add_argument("checkpoints", type=Path, help="folder of akamaster's resnet20, resnet32 and resnet56")
    parser.add_argument("folder", type=Path, help="of all outputs")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--jobs", type=int, help="commands at once; one for each core without it")
    parser.add_argument("--results", type=Path, default=measure.RESULTS / "sweeps", help="where tables and pages go")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)
    given = {"train": args.train, "val": args.val, "checkpoints": args.checkpoints, "epochs": EPOCHS}
    for name in args.suites:
        suite = args.folder / f"{name}.toml"
        suite.write_text((BASE + SUITES[name]).format(**given))
        jobs = ["--jobs", args.jobs] if args.jobs else []
        print(measure.fastkd("sweep", suite, "--out", args.folder, *jobs), flush=True)
        for ending in ("csv", "html"):
            text = (args.folder / f"{name}.{ending}").read_text()
            for path in (args.train, args.val, args.checkpoints, args.folder):  # where they lie is nobody's concern
                text = text.replace(str(path), path.name)
            (args.results / f"{name}.{ending}").write_text(text)


if __name__ == "__main__":
    main()
