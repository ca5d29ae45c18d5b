"""The commands run one after the other."""

from pathlib import Path

from helpers.commands import Outcome, fastkd
from helpers.stores import save_teacher

CPU = ("--device", "cpu", "--num-workers", 1)


def run_all(lab: Path, raw_folder: str) -> dict[str, Outcome]:
    """Every command once, each on what the one before it wrote."""
    x, m, l, t, run = (lab / name for name in ("x.beton", "m.h5", "l.h5", "t.safetensors", "run"))
    save_teacher(t)
    cached = ["--teacher", t, "--mask", m, "--views", "crop-flip", "--num-seeds", 2, *CPU]
    student = ["--mask", m, "--logits", l, "--model", "ResNet8", "--val", x, "--epochs", 1, *CPU]
    return {
        "build-beton": fastkd("build-beton", raw_folder, "--out", x, "--json"),
        "prune": fastkd("prune", x, "--keep", 0.2, "--seed", 5, "--out", m, "--json"),
        "cache-logits": fastkd("cache-logits", x, *cached, "--out", l, "--json"),
        "train": fastkd("train", x, *student, "--out", run, "--json"),
        "evaluate": fastkd("evaluate", x, "--model", run / "model.safetensors", *CPU, "--json"),
        "verify": fastkd("verify", x, m, l, run, run / "model.safetensors", "--json"),
        "report": fastkd("report", lab, "--out", lab / "report.html", "--json"),
    }
