"""`fastkd models`."""

from typing import Any

import click

from fastkd.cli.command import command


@command("models")
@click.argument("pattern", required=False, default="")
def models(pattern: str) -> tuple[dict[str, Any], str]:
    """List the networks that --model and --teacher take by name, a name a line.

    With PATTERN those that have it in their name: resnet, or vit_*_16 with * for anything. First fastkd's own for small images,
    then torchvision's, then timm's, as timm:NAME, where it is installed.

    \b
    fastkd models resnet
    """
    from fastkd.models.registry import model_names

    names = model_names(pattern)
    return {"kind": "models", "names": names}, "\n".join(names) or f"no network has {pattern!r} in its name"
