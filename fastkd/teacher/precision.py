"""The arithmetic that networks run in, by name, and which of it `auto` takes."""

from pathlib import Path

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By name, the type of autocast; None for none."""

_FLAGS_OF_BF16 = ("amx_bf16", "avx512_bf16")
"""Of x86 processors that multiply bfloat16; on others it is emulated, and slower than float32."""


def auto_precision(device: torch.device | str) -> tuple[str, str]:
    """What `auto` takes on a device: `bf16` where it computes in that, else `fp32`; and why, in words.

    On CPUs that do, students of CIFAR-10 lose no accuracy by it that seeds can tell: `benchmarks/train/bf16_accuracy.py`.
    """
    device = torch.device(device)
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
        return ("bf16", f"{name} computes in it") if has_bf16 else ("fp32", f"{name} does not compute in bf16")
    found = [flag for flag in _FLAGS_OF_BF16 if flag in cpu_flags()]
    return ("bf16", f"the CPU has {found[0]}") if found else ("fp32", "the CPU does not compute in bf16")


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the first processor of this machine can do, as Linux calls it; empty where that is not told."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())
