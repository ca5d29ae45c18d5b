"""A run's numbers in TensorBoard and Weights & Biases, beside metrics.jsonl and metrics.csv."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastkd.errors import MissingDependencyError, OptionError

Tracker = Callable[[dict[str, float], int], None]  # scalars by name, step


def parse_trackers(text: str) -> tuple[str, ...]:
    """The trackers that --log names, separated by commas.

    Raises:
        OptionError: an unknown one.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in _TRACKERS]
    if unknown or not names:
        raise OptionError(f"--log {text}: expected {' or '.join(_TRACKERS)}, or both separated by a comma")
    return names


def require_trackers(names: Sequence[str]) -> None:
    """Checks that trackers are there, on every rank alike and before anything is written.

    Raises:
        MissingDependencyError: one is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise MissingDependencyError(f"--log {name}: {name} is not installed: pip install 'fastkd[{name}]'")


@contextmanager
def tracking(
    names: Sequence[str], out: Path, *, run_id: str, config: dict[str, Any], first_step: int
) -> Iterator[Tracker]:
    """Opens the trackers for the length of the block; gives a function that hands scalars of a step to all of them.

    Args:
        out: the run's folder, where they keep their files. run_id: the same for a run that goes on. config: what the run
            is. first_step: where it goes on; what TensorBoard has from there on is written anew.
    """
    with ExitStack() as stack:
        opened = [_TRACKERS[name](stack, out, run_id, config, first_step) for name in names]

        def track(scalars: dict[str, float], step: int) -> None:
            for tracker in opened:
                tracker(scalars, step)

        yield track


def scalars_of(line: dict[str, Any], steps: int) -> tuple[dict[str, float], int]:
    """The numbers of a line of metrics.jsonl by the names that trackers show, and their step.

    Args:
        steps: of an epoch; an epoch's own line belongs to its last.
    """
    if line["kind"] == "step":
        return {f"train/{key}": line[key] for key in line if key not in ("kind", "epoch", "step")}, line["step"]
    found = {f"val/{key[4:]}": value for key, value in line.items() if key.startswith("val_")}
    found |= {f"speed/{key}": line[key] for key in ("images_per_s", "data_wait_percent")}
    return found | {"epoch/loss": line["loss"]}, (line["epoch"] + 1) * steps - 1


def _tensorboard(stack: ExitStack, out: Path, run_id: str, config: dict[str, Any], first_step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"), purge_step=first_step)
    stack.callback(writer.close)

    def track(scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

    return track


def _wandb(stack: ExitStack, out: Path, run_id: str, config: dict[str, Any], first_step: int) -> Tracker:
    import wandb

    run = wandb.init(project="fastkd", name=out.name, id=run_id, resume="allow", dir=str(out), config=config)
    stack.push(
        lambda kind, error, trace: run.finish(exit_code=int(kind is not None))
    )  # a run that stopped did not finish
    return lambda scalars, step: run.log(scalars, step=step)


_TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb}
