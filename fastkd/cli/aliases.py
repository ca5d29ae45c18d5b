"""Options by the names that people know from other projects, which no help shows; and what was probably meant."""

import difflib
import re
from collections.abc import Iterator, Sequence

import click

ALIASES = {
    "-b": "--batch-size",
    "-j": "--num-workers",
    "-o": "--out",
    "--workers": "--num-workers",
    "--wd": "--weight-decay",
    "--learning-rate": "--lr",
    "--sched": "--schedule",
    "--lr-scheduler": "--schedule",
    "--lr-schedule": "--schedule",
    "--smoothing": "--label-smoothing",
    "--arch": "--model",
    "--model-s": "--model",
    "--path-t": "--teacher",
    "--distill": "--kd",
    "--kd-t": "--tau",
    "--temperature": "--tau",
    "--output": "--out",
    "--output-dir": "--out",
    "--model-ema-decay": "--ema",
    "--val-data": "--val",
}
"""Names of torchvision's references, timm and RepDistiller for what options here are called; `_` may stand for `-` in all."""
ARGUMENT = ("--data", "--data-path", "--data-dir")
"""Their names for the first thing that a command reads, which here is typed as it is."""
_RESUME = (
    "there is no --resume: the same command, started again, goes on from the last state in its --out; to start from other weights "
    "give --init CKPT"
)
_CHOICE = re.compile(r"'(.*)' is not one of (.*)\.", re.DOTALL)


def as_declared(command: click.Command, args: Sequence[str]) -> list[str]:
    """What was typed, with the names that the command declares.

    Raises:
        click.UsageError: `--resume`, which nobody needs; says what to do.
    """
    known = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    takes_argument = any(isinstance(param, click.Argument) for param in command.params)
    return list(_renamed(args, known, takes_argument=takes_argument))


def _renamed(args: Sequence[str], known: set[str], *, takes_argument: bool) -> Iterator[str]:
    for i, word in enumerate(args):
        if word == "--":
            yield from args[i:]
            return
        name, equals, value = word.partition("=")
        short = word[:2]
        if short in ALIASES and word[2:].isdigit() and ALIASES[short] in known:
            yield f"{ALIASES[short]}={word[2:]}"  # -j8
            continue
        if not word.startswith("-") or name in known:
            yield word
            continue
        plain = name.replace("_", "-")
        meant = plain if plain in known else ALIASES.get(plain, "")
        if plain == "--resume" and "--out" in known:
            raise click.UsageError(_RESUME)
        if plain in ARGUMENT and takes_argument:
            if equals:
                yield value
        else:
            yield f"{meant}{equals}{value}" if meant in known else word


def with_hint(error: click.BadParameter) -> click.BadParameter:
    """The error, with the nearest of the values that an option takes where one is near."""
    found = _CHOICE.search(error.message)
    if found is None:
        return error
    values = [one.strip(" '\"") for one in found[2].split(",")]
    close = difflib.get_close_matches(found[1].lower(), values, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    return click.BadParameter(error.message + hint, error.ctx, error.param, error.param_hint)
