"""What ranks tell one another before they work: that they mean the same, what the first of them found, and that one failed.

It goes through the store by which the ranks found each other, not through the group: no device has a part in it, and a
rank that waits here learns that another has failed.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from fastkd import errors
from fastkd.dist import PATIENCE_S, World, barrier, this_node
from fastkd.errors import FastKDError, MismatchError, OptionError

T = TypeVar("T")
_GOODBYE_S, _ROLL_CALL_S, _LISTENS_S = 10.0, 5.0, 0.5
_LOOKS_S, _SILENT_S = 5.0, 300.0  # between looks at whether late ranks live; of one that does not
_GOES_ON = "killed, or its machine is gone; the same command goes on where it can"
_RANK_0_GONE = f"rank 0 has ended without a word, and with it the ranks' meeting place: {_GOES_ON}"
_POLLS_S = (0.01, 0.2)  # between looks: at first, and later on


def agree(world: World, record: Mapping[str, Any]) -> None:
    """Refuses to go on where ranks differ; all of them raise the same.

    Args:
        record: name → plain JSON value, on every rank as this rank sees it.

    Raises:
        MismatchError: names the first rank that differs from rank 0, and what in.
    """
    if world.size == 1:
        return
    first, *others = _exchange(world, {name: record[name] for name in sorted(record)})
    for rank, other in enumerate(others, start=1):
        for name in [*first, *(name for name in other if name not in first)]:
            if first.get(name) != other.get(name):
                raise MismatchError(
                    f"rank {rank} differs from rank 0 in {name}: {_shown(other.get(name))}, rank 0 has {_shown(first.get(name))}; "
                    f"start all ranks with the same"
                )


def require_seen(world: World, what: str, seen: str | None) -> None:
    """Refuses to go on where a rank does not see what rank 0 sees; all of them raise the same.

    Args:
        what: in words, for the message. seen: a digest of it, on this rank; None for nothing.

    Raises:
        MismatchError: names the first rank that sees something else.
    """
    if world.size == 1:
        return
    first, *others = _exchange(world, seen)
    for rank, other in enumerate(others, start=1):
        if other != first:
            raise MismatchError(
                f"rank {rank} does not see {what} that rank 0 goes on from ({_shown(first)}), but {_shown(other)}; give all "
                f"ranks a folder that they share, or each a copy of rank 0's"
            )


def require_one_node(world: World, path: str | Path) -> None:
    """Refuses ranks of several nodes where they write one file; all of them raise the same.

    Nodes cache pages of a file each for itself: on a network file system, bytes that one writes into a page can undo
    those of another.

    Raises:
        OptionError: names the first rank on another node than rank 0, and the way out.
    """
    if world.size == 1:
        return
    nodes = _exchange(world, this_node())
    for rank, node in enumerate(nodes):
        if node != nodes[0]:
            raise OptionError(
                f"{path}: rank {rank} is on another node than rank 0, and nodes can undo one another's writes to one file: start each "
                f"node by itself with --shard I/{len(set(nodes))} and an --out of its own, then `fastkd merge` the shards"
            )


def share(world: World, find: Callable[[], T]) -> T:
    """What rank 0 finds, told to all ranks; only rank 0 looks.

    Args:
        find: gives a plain JSON value.

    Raises:
        FastKDError: what `find` raised, on all ranks alike.
    """
    if world.size == 1:
        return find()
    told: dict[str, Any] = {}
    if world.is_main:
        try:
            told = {"value": find()}
        except FastKDError as error:
            told = {"error": [type(error).__name__, str(error)]}
    told = _exchange(world, told)[0]
    if "error" in told:
        kind, line = told["error"]
        raise getattr(errors, kind)(line)
    value: T = told["value"]
    return value


@contextmanager
def telling_failures(world: World) -> Iterator[None]:
    """For the length of the block, an error of this rank is told to those that wait for it, and theirs ends this one.

    A rank that is through first waits here for the others, and fails with them.

    Raises:
        FastKDError: in place of a broken connection, which rank failed and what of, or which ended without a word.
    """
    if world.store is None:
        yield
        return
    try:
        with _listening(world) as heard:
            yield
            barrier(world)
    except BaseException as error:
        known = _failure(world) or next(iter(heard), None)
        if known is None and not isinstance(error, Exception):
            raise  # stopped by a person or a signal: not a failure
        if known is None and _is_broken_connection(error):
            known = _roll_call(world)
        elif known is None:
            with suppress(RuntimeError):  # the store has gone
                world.store.set("fastkd/failed", json.dumps([world.rank, str(error) or type(error).__name__]))
        _say_goodbye(world)
        if known is not None and not isinstance(error, FastKDError):
            raise FastKDError(known) from error
        raise
    else:
        _say_goodbye(world)


@contextmanager
def _listening(world: World) -> Iterator[list[str]]:
    """For the length of the block, a list that gets the line of a rank that failed, as soon as it does; and beats of this rank, which
    tell that it lives.

    A rank that waits in the group for another learns of its end no sooner than the other's process ends, and rank 0 takes what
    it told with it. So it is heard meanwhile; and rank 0, which stays until the others have left, need not wait for this one.
    """
    heard: list[str] = []
    is_over = threading.Event()

    def listen() -> None:
        while not heard and not is_over.wait(_LISTENS_S):
            with suppress(RuntimeError):  # the store has gone
                world.store.add(f"fastkd/beats/{world.rank}", 1)
            failure = _failure(world)
            if failure is not None:
                heard.append(failure)
                with suppress(RuntimeError):
                    world.store.set(f"fastkd/left/{world.rank}", "1")

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        is_over.set()
        thread.join(_GOODBYE_S)


def _is_broken_connection(error: BaseException) -> bool:
    """Whether an error is torch's about the group or its store, and so about another rank."""
    named = type(error).__name__.startswith("Dist") or any(word in str(error) for word in ("gloo", "NCCL", "nccl"))
    return isinstance(error, RuntimeError) and named


def _roll_call(world: World) -> str:
    """The line of the rank that failed, or of those that do not say within some seconds that they are there."""
    try:
        world.store.set(f"fastkd/here/{world.rank}", "1")
        begin = time.monotonic()
        missing = [rank for rank in range(world.size) if rank != world.rank]
        while missing and time.monotonic() - begin < _ROLL_CALL_S:
            failure = _failure(world)
            if failure is not None:
                return failure
            missing = [
                rank
                for rank in missing
                if not (world.store.check([f"fastkd/here/{rank}"]) or world.store.check([f"fastkd/left/{rank}"]))
            ]
            time.sleep(_POLLS_S[0])
    except RuntimeError:
        return _RANK_0_GONE
    if not missing:
        return "the connection of the ranks broke, and all of them are there: look at the network"
    with suppress(RuntimeError):
        for rank in missing:  # so that nobody waits for their goodbye
            world.store.set(f"fastkd/left/{rank}", "1")
    ranks = f"rank {missing[0]} has" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))} have"
    return f"{ranks} ended without a word: {_GOES_ON}"


def _exchange(world: World, record: Any) -> list[Any]:
    """The records of all ranks, in their order. Every rank has to come here the same number of times."""
    if world.store is None:  # a group that somebody else made
        import torch.distributed as dist

        found: list[Any] = [None] * world.size
        dist.all_gather_object(found, record)
        return found
    turn = next(world.turns)
    keys = [f"fastkd/{turn}/{rank}" for rank in range(world.size)]
    world.store.set(keys[world.rank], json.dumps(record))
    _wait(world, keys, PATIENCE_S)
    return [json.loads(world.store.get(key)) for key in keys]


def _wait(world: World, keys: list[str], patience_s: float) -> None:
    """Waits until all keys, one of each rank, are set.

    Raises:
        FastKDError: a rank failed, fell silent, or did not come.
    """
    begin, looks = time.monotonic(), 0
    silent: dict[tuple[int, int], int] = {}  # rank and how often it has beaten → at how many looks
    while True:
        try:
            if world.store.check(keys):
                return
            failure = _failure(world)
            if time.monotonic() - begin > (looks + 1) * _LOOKS_S:
                looks += 1
                failure = failure or _silence(world, keys, silent)
        except RuntimeError:
            raise FastKDError(_RANK_0_GONE) from None
        waited = time.monotonic() - begin
        if failure is not None:
            raise FastKDError(failure)
        if waited > patience_s:
            raise FastKDError(f"some of {world.size} ranks did not come within {patience_s:.0f} s")
        time.sleep(_POLLS_S[waited > 1])


def _silence(world: World, keys: list[str], silent: dict[tuple[int, int], int]) -> str | None:
    """The line of a rank that has been silent for too many looks, of those whose keys are not set; this look is counted. Looks
    are what counts, not the clock: where all processes of a job are held up, none has been silent."""
    for rank, key in enumerate(keys):
        beats = 0 if world.store.check([key]) else world.store.add(f"fastkd/beats/{rank}", 0)
        silent[rank, beats] = silent.get((rank, beats), 0) + 1
        if beats and silent[rank, beats] * _LOOKS_S > _SILENT_S:
            return f"rank {rank} has not been heard of for {_SILENT_S:.0f} s: {_GOES_ON}"
    return None


def _failure(world: World) -> str | None:
    """The line of the rank that failed first, where one did."""
    try:
        if not world.store.check(["fastkd/failed"]):
            return None
        rank, line = json.loads(world.store.get("fastkd/failed"))
    except RuntimeError:  # the store has gone with rank 0
        return None
    return None if rank == world.rank else f"rank {rank} failed: {line}"


def _say_goodbye(world: World) -> None:
    """Tells that this rank leaves; the rank that keeps the store stays until the others have."""
    if world.store is None:
        return
    try:
        world.store.set(f"fastkd/left/{world.rank}", "1")
        begin = time.monotonic()
        others = [f"fastkd/left/{rank}" for rank in range(world.size)]
        while world.is_main and not world.store.check(others) and time.monotonic() - begin < _GOODBYE_S:
            time.sleep(_POLLS_S[0])
    except RuntimeError:  # the store has gone
        return


def _shown(value: Any) -> str:
    """A value in a message, in a few words."""
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    if len(text) == 32 and set(text) <= set("0123456789abcdef"):
        return text[:12]  # of a fingerprint
    return text if len(text) <= 60 else f"{text[:57]}…"
