"""Which fields of a beton hold the image and the label: found by name, else by being the only one of their kind.

A beton of FFCV's own writer has any fields, under any names and in any order; one that fastkd writes has `image` and
`label`, and a part of a beton `sample_id` besides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastkd.errors import FormatError, MismatchError, OptionError

FIELD_INT, FIELD_IMAGE = 1, 2
KINDS = ("float", "integer", "RGB image", "byte string", "array", "JSON text", "tensor")
"""What a field of each of FFCV's types holds."""
ROLES = {"image": FIELD_IMAGE, "label": FIELD_INT}
"""What fields are looked for, and of which type: the role is the name that is looked for first, too."""
SAMPLE_ID_FIELD = "sample_id"
"""The numbers that the samples of a part have in the full beton: never taken for the label unasked."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields to use; None: as the manifest records, else found by name or kind.

    strict: refuse a beton without a field of this name; else what it has is found as if no name were given.
    """

    image: str | None = None
    label: str | None = None
    strict: bool = True


AS_FOUND = Fields()


def choose_fields(
    path: Path, names: Sequence[str], types: Sequence[int], asked: Fields, recorded: Mapping[str, str]
) -> tuple[int, int]:
    """The numbers of the image field and of the label field.

    Args:
        path: the beton, for messages. names, types: of its fields; FFCV's type numbers, 0 … 6.
        recorded: role → name that the manifest records; empty where it records none, or is to be overruled.

    Raises:
        OptionError: a field that was asked for is not there, or of another kind.
        FormatError: no field of a kind, several without a name that tells them apart, or `image` or `label` of another kind.
        MismatchError: another field is asked for than the manifest records.
    """

    def choose(role: str) -> int:
        kind, option = ROLES[role], f"--{role}-field"
        wanted, known = getattr(asked, role), recorded.get(role)
        if wanted not in names and not asked.strict:
            wanted = None
        if wanted is not None and known not in (None, wanted):
            raise MismatchError(
                f"{path}: its manifest records {known!r} as the {role}, {option} {wanted} contradicts it; leave that out, or write "
                f"the manifest anew: `fastkd verify --write-manifest {path} {option} {wanted}`"
            )
        name = wanted or known
        if name is not None and name not in names:
            raise OptionError(f"{path}: has no field {name!r} for {option}, its fields are {listed(names, types)}")
        own = [i for i in range(len(names)) if types[i] == kind and names[i] != SAMPLE_ID_FIELD]
        if name is None and role not in names:
            if len(own) == 1:
                return own[0]
            found = f"{len(own)} {KINDS[kind]} fields and none" if own else f"no {KINDS[kind]} field"
            way_out = f"name the {role} with {option} NAME" if own else f"expected one for the {role}"
            raise FormatError(f"{path}: {found} called {role!r} among {listed(names, types)}; {way_out}")
        at = names.index(name or role)
        if types[at] != kind:
            way_out = f"name another with {option} NAME" if own else "write the beton with one"
            raise (FormatError if name is None else OptionError)(
                f"{path}: field {names[at]!r} holds {KINDS[types[at]]}s, the {role} is a field of {KINDS[kind]}s; its fields are "
                f"{listed(names, types)}; {way_out}"
            )
        return at

    return choose("image"), choose("label")


def listed(names: Sequence[str], types: Sequence[int]) -> str:
    """Fields with their kinds, for people."""
    return ", ".join(f"{name} ({KINDS[kind]})" for name, kind in zip(names, types, strict=True))


def first_fields(names: Sequence[str], types: Sequence[int]) -> dict[str, str]:
    """Role → the first field of its kind: what manifests that record no fields were made of."""
    return {role: names[types.index(kind)] for role, kind in ROLES.items() if kind in types}
