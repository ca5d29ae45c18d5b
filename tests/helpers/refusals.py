"""Calls that end with an error of fastkd's."""

from collections.abc import Callable
from typing import Any

import pytest

from fastkd.errors import FastKDError


def refused(kind: type[FastKDError], call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(kind) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
