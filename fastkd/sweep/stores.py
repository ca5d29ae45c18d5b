"""The stores that runs share: one for each teacher, views and codec, of the largest of nested masks and the most views."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastkd.fingerprint import fingerprint
from fastkd.sweep.jobs import Draft, Input, Job
from fastkd.sweep.masks import Family


@dataclass(kw_only=True, slots=True, eq=False)
class Wish:
    """What a cell asks for. options: of `train`. views: of the student's views. cache: options of `cache-logits`. source: store,
    live or labels. epochs: None where they are not known yet. mask: None for all samples. teacher: None with labels."""

    cell: dict[tuple[str, ...], Any]
    options: dict[str, Any]
    views: dict[str, Any]
    cache: dict[str, Any]
    source: str
    epochs: int | None
    teacher_name: str | None
    mask: Job | None
    family: Family | None
    teacher: Job | None = None


def largest_of(wishes: Sequence[Wish]) -> dict[str, Family]:
    """The largest mask of each family that some cells ask for."""
    found: dict[str, Family] = {}
    for wish in wishes:
        if wish.family is not None:
            known = found.get(wish.family.key, wish.family)
            found[wish.family.key] = max(known, wish.family, key=lambda family: family.size)
    return found


def store_jobs(draft: Draft, train: Job, wishes: Sequence[Wish]) -> dict[int, Job]:
    """The store of each wish, by its id().

    Of one teacher, views and codec there is a store for each family of nested masks, of the largest of them that is asked for;
    or one for all samples, where these together would be no smaller. Views that are mixed are of one mask alone.
    """
    groups: dict[str, list[Wish]] = defaultdict(list)
    for wish in wishes:
        assert wish.teacher is not None
        views = {key: value for key, value in wish.views.items() if key != "num-seeds"}
        only = wish.mask.name if wish.mask is not None and "mix" in views else ""
        known = "num-seeds" in wish.views
        groups[json.dumps([wish.teacher.digest, views, wish.cache, only, known], sort_keys=True)].append(wish)
    found: dict[int, Job] = {}
    for members in groups.values():
        families = largest_of(members)
        is_whole = any(wish.mask is None for wish in members) or (
            not any(family.is_count for family in families.values()) and sum(f.size for f in families.values()) >= 1
        )
        alone = "mix" in members[0].views
        parts: dict[str, list[Wish]] = defaultdict(list)
        for wish in members:
            parts["" if is_whole and not alone else wish.family.key if wish.family is not None else ""].append(wish)
        for key, wishing in parts.items():
            mask = wishing[0].mask if alone else families[key].mask if key else None
            job = _store(draft, train, wishing, mask)
            found |= {id(wish): job for wish in wishing}
    return found


def _store(draft: Draft, train: Job, wishes: Sequence[Wish], mask: Job | None) -> Job:
    first = wishes[0]
    teacher = first.teacher
    assert teacher is not None
    views = {key: value for key, value in first.views.items() if key != "num-seeds"}
    num_seeds = max((wish.views["num-seeds"] for wish in wishes if "num-seeds" in wish.views), default=None)
    inputs = [Input("beton", "beton", train), Input("teacher", "teacher", teacher)]
    if mask is not None:
        inputs.append(Input("mask", "mask", mask))
    like = {**first.cache, **views, **teacher.about["network"]}
    group = fingerprint(
        [json.dumps([train.digest, teacher.digest, {k: str(v) for k, v in like.items()}], sort_keys=True)]
    )
    kind = views.get("views", "views")
    name = "all" if mask is None else mask.label
    about = {
        "mask": None if mask is None else mask.name,
        "num_seeds": num_seeds,
        "model": teacher.about.get("model"),
        "codec": first.cache.get("codec", "auto"),
        "embeds": "embedding" in str(first.cache.get("outputs", "")),
        "teacher": teacher.name,
        "views": views,
    }
    return draft.add(
        "store",
        "cache-logits",
        f"stores/{teacher.label}_{kind}-{group[:8]}",
        f"{name}_k{num_seeds or 'auto'}",
        ".h5",
        {**like, "num-seeds": num_seeds},
        inputs,
        about=about,
    )
