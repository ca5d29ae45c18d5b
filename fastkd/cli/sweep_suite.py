"""What `fastkd sweep` is told: the suite, by name or path, and fastkd's own commands, whose options a suite has."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastkd.cli.config import check_option, option_keys, words_of
from fastkd.errors import NotFoundError, OptionError

if TYPE_CHECKING:
    from fastkd.sweep.suite.keys import Commands

SHIPPED = Path(__file__).parent.parent / "sweep" / "shipped"
"""The suites that come with fastkd: `paper-fig3.toml` is `paper:fig3`."""


def read_shipped_or_file(name: str) -> tuple[str, str, str]:
    """A suite's text, its name for outputs, and what messages call it.

    Raises:
        NotFoundError: neither a file nor a suite that comes with fastkd.
    """
    shipped = {path.stem.replace("paper-", "paper:", 1): path for path in sorted(SHIPPED.glob("*.toml"))}
    path = shipped.get(name) or Path(name)
    if not path.is_file():
        raise NotFoundError(f"{name}: no such file, and no suite of fastkd's: {', '.join(shipped)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{name}: {error}") from None
    return text, path.stem, name


def known_commands(group: click.Command) -> "Commands":
    """The options of fastkd's commands, for suites."""
    from fastkd.sweep.suite.keys import Commands

    assert isinstance(group, click.Group)
    commands = group.commands
    require_model = cache(_require_model)

    def words(name: str, values: Mapping[str, Any]) -> list[str]:
        found = words_of(commands[name], values)
        _refuse_together(name, commands[name].make_context(name, found[1:]).params, require_model)
        return found

    return Commands(
        keys=lambda name: option_keys(commands[name]),
        check=lambda name, key, value: check_option(commands[name], key, value),
        words=words,
    )


def _require_model(name: str) -> None:
    """Refuses a network that cannot be made; it takes up to a second to know."""
    from fastkd.models.registry import create_model

    create_model(name, 10)


def _refuse_together(name: str, params: Mapping[str, Any], require_model: Callable[[str], None]) -> None:
    """Refuses options of a command that it would refuse once it runs, as far as that needs no file.

    Raises:
        OptionError: as the command does.
    """
    if name == "train":
        from dataclasses import fields

        from fastkd.cli.train_options import parse_names, parse_recorded
        from fastkd.train.recipe import Recipe, choose_alpha, choose_recipe

        options = {field.name: params[field.name] for field in fields(Recipe) if field.name in params}
        has_teacher = bool(params["logits"] or params["teacher"])
        options["alpha"] = choose_alpha(
            params["alpha"], params["alpha_rule"], fraction=0.5, kd=params["kd"], has_teacher=has_teacher
        )
        options |= {layers: parse_names(params[layers]) for layers in ("layers", "teacher_layers")}
        require_model(params["model"])
        of_network = {
            "model": "resnet8",
            "drop_path": None,
            "dropout": None,
        }  # what the network itself takes, its run tells
        choose_recipe(params["views"] or "crop-flip", 10, **{**options, **of_network})
        recorded = {name: params[name] for name in ("never_learned", "el2n_epochs")}
        parse_recorded(params["record"], window=params["dual_window"], **recorded)
    elif name == "prune":
        from fastkd.prune.masks.mask import MOST_SAMPLES, parse_keep
        from fastkd.prune.select.methods import METHODS, OPTIONS, options_of

        if params["keep"] is not None:
            parse_keep(params["keep"], MOST_SAMPLES)
        if params["method"] in METHODS:
            if params["keep"] is None:
                raise OptionError(f"--method {params['method']} needs --keep")
            options_of(params["method"], {option: params[option] for option in OPTIONS})


def digest_of(kind: str, path: Path) -> str:
    """What a file of the user's is: a beton by its fingerprint, a checkpoint or the folder of a run by its bytes."""
    if kind == "beton":
        from fastkd.data.beton.dataset import open_dataset

        return open_dataset(path).fingerprint
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(f"{file}: no such file, expected a checkpoint")
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
