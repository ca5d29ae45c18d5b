"""Starting weights: a student that starts from a checkpoint instead of from fresh weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from fastkd.errors import MismatchError, ModelError
from fastkd.models.checkpoint import read_checkpoint
from fastkd.models.classes import Classes, said_names
from fastkd.models.libraries import canonical_name
from fastkd.models.norm import Norm, norm_of, parse_norm
from fastkd.models.registry import count_classes, entries_and_head, load_weights, weights_fingerprint


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Init:
    """What a student starts from.

    state: entries of its state dict; without the head's where that is reset. fingerprint: of the checkpoint's weights,
    head included. classes: the checkpoint's. norm: what its inputs were normalised by, where it says.
    """

    state: dict[str, Tensor]
    fingerprint: str
    reset_head: bool
    classes: Classes
    norm: Norm | None = None

    def into(self, model: nn.Module) -> None:
        """Loads the weights; a head that is reset keeps what the network was made with."""
        model.load_state_dict(self.state, strict=False)  # `load_init` compared the names


def load_init(
    path: str | Path,
    model_name: str,
    num_classes: int,
    *,
    reset_head: bool = False,
    ema_weights: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Init:
    """Reads the weights that a student starts from.

    Args:
        path: any file or folder that `read_checkpoint` takes.
        model_name: the student's network.
        num_classes: the data's.
        reset_head: leave out the entries that have a row for each class, whatever their number.
        ema_weights, log: as for `read_checkpoint`.

    Raises:
        NotFoundError, UnfinishedError, FormatError, CorruptError: as `read_checkpoint`.
        ModelError: the weights of another network.
        MismatchError: another number of classes, where the head is not reset.
    """
    checkpoint, name = read_checkpoint(path, ema_weights=ema_weights, log=log), canonical_name(model_name)
    said = checkpoint.meta.get("model")
    if isinstance(said, str) and canonical_name(said) != name:
        raise ModelError(f"--init {path}: holds a {said}, the student is a {name}: give --model {said}")
    try:
        model = load_weights(name, checkpoint.state_dict)
    except ModelError as error:
        raise ModelError(f"--init {path}: {error}") from None
    state, (entries, head) = model.state_dict(), entries_and_head(name)
    if state.keys() != entries:
        raise ModelError(
            f"--init {path}: has shortcuts without parameters (option A), {name} is trained with convolutions in them "
            "(option B): give a checkpoint with those"
        )
    found = {len(state[key]) for key in head}
    if not reset_head and found != {num_classes}:
        raise MismatchError(
            f"--init {path}: {', '.join(map(str, found))} classes, the data has {num_classes}: with --reset-head the "
            "last layer starts anew"
        )
    kept = {key: value for key, value in state.items() if not (reset_head and key in head)}
    norm = norm_of(checkpoint.meta)
    return Init(
        state=kept,
        fingerprint=weights_fingerprint(model),
        reset_head=reset_head,
        classes=Classes(where=str(path), count=count_classes(name, state), names=said_names(checkpoint.meta)),
        norm=norm and replace(norm, size=None),  # the size is that of the views
    )


def choose_norm(text: str | None, init: Init | None, size: int) -> tuple[Norm, str]:
    """What the student's inputs are normalised by: `text`, else as the checkpoint that it starts from, else by its size.

    Args:
        text: a preset's name or `M,M,M/S,S,S`, if one was given. size: of the views, in pixels.

    Returns:
        The norm, and in words how it stands to the checkpoint's; empty without a checkpoint.

    Raises:
        OptionError: as `parse_norm`.
    """
    said = None if init is None else init.norm
    if text is None and said is not None:
        return said, "inputs normalised as the checkpoint says"
    name = text or ("cifar" if size <= 64 else "imagenet")
    norm = parse_norm(name)
    if init is None:
        return norm, ""
    if said is None:
        return norm, f"inputs normalised by --norm {name}: the checkpoint does not say"
    same = "as" if norm == said else "not as"
    return norm, f"inputs normalised by --norm {name}, {same} the checkpoint says"
