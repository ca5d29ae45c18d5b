"""Training a network on the kept samples: with stored logits, with a live teacher, or with labels alone."""

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastkd.agree import agree, require_seen, share
from fastkd.data.batch import Batch
from fastkd.dist import World, even_split
from fastkd.errors import OptionError
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident
from fastkd.fingerprint import fingerprint
from fastkd.models.fitting import require_size
from fastkd.models.init import Init
from fastkd.models.norm import Norm
from fastkd.scoring.recording import Record, TrainingRecord
from fastkd.stopping import stop_on_signals
from fastkd.teacher.network import LiveTeacher, Teacher
from fastkd.train.about import made_with
from fastkd.train.checks import require_files
from fastkd.train.learner import Learner, make_learner
from fastkd.train.logs import require_trackers, tracking
from fastkd.train.loop import Run, end_epoch, one_step, train_epoch
from fastkd.train.metrics import CsvLines, JsonLines, Stopwatch, evaluate, last_rates
from fastkd.train.objective import objective
from fastkd.train.parts.average import Average, in_time
from fastkd.train.parts.captured import can_be_captured, captured, cuda_graph
from fastkd.train.parts.compiling import compile_step, measured_convolutions
from fastkd.train.parts.groups import parameter_groups
from fastkd.train.parts.microbatches import num_parts, part_sizes
from fastkd.train.parts.optimizer import make_optimizer
from fastkd.train.parts.saved import finish, keep_weights
from fastkd.train.parts.states import Checkpoints
from fastkd.train.recipe import Recipe, input_size
from fastkd.train.run_folder import claim_folder, plain_result, read_result
from fastkd.train.sharing import wrapped
from fastkd.writing import claim


def train(
    recipe: Recipe,
    loader: Loader | Resident,
    out: str | Path,
    *,
    norm: Norm,
    teacher: Teacher | None = None,
    init: Init | None = None,
    val: Loader | Resident | None = None,
    val_every: int = 1,
    record: Record | None = None,
    checkpoint_every: int | None = None,
    checkpoint_epochs: int = 1,
    keep_every: int | None = None,
    compiled: bool = False,
    trackers: Sequence[str] = (),
    inputs: dict[str, str],
    params: dict[str, Any],
    about: dict[str, Any] | None = None,
    command: str | None = None,
    force: bool = False,
    world: World = World(),  # noqa: B008  (frozen)
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
    ended: Callable[[int, int, str], None] = lambda done, total, text: None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains, or goes on from the last state that the folder holds, or gives the result of a finished run.

    On the CPU a run that was stopped at any moment and resumed ends with the same bits as one that was not. With another
    number of ranks, and a loader of the same global batch, it goes on with the same samples in each batch.

    Args:
        loader: batches with logits where the store is the teacher, of `batch_size` times `accumulate` samples.
        out: the run's folder: `run.json` (what it is), `metrics.jsonl`, `metrics.csv`, `resume.pt`, `model.safetensors`,
            `result.json`.
        teacher: runs live on the same views, where there is no store.
        init: weights that the student starts from; fresh ones without it.
        val: batches to measure accuracy on after every `val_every` epochs and after the last.
        record: training dynamics to accumulate by the way; at the end they are `scores.h5`. They are kept by whole
            epochs, and so are the states then.
        checkpoint_every: steps between states within an epoch; None for none there. checkpoint_epochs: epochs between the
            states after epochs; there is one after the last. keep_every: epochs between weights that stay, as
            `epoch-00010.safetensors`; None for none.
        compiled: run the network through torch.compile, on a GPU with CUDA graphs; its first steps take a minute.
        inputs, params: what the run was made from, for `run.json`; another value there is another run.
        about: more of what it was made from, of `about_run`, for `run.json` and the checkpoint. command: the command line, for
            `run.json`. Both make it no other run: one that goes on keeps those of its start.
        force: take away the files of another run that the folder holds.
        trackers: `tensorboard`, `wandb`; see `tracking`.
        progress: called with steps done and in all. note: with epoch, loss and accuracy in words, now and then. ended: with
            steps done and in all and what the epoch came to, after each.

    Returns:
        epochs, val_top1, val_top5 (None without `val`), images_per_s, data_wait_percent, step_percent, fingerprint (of
        the weights).

    Raises:
        OptionError: fewer samples than a batch; distillation without a teacher or a store; unknown layers; a recording, or
            a method that goes by labels, of mixed views.
        MismatchError: the folder holds another run, says in what it differs; or the state or result of another one.
        CorruptError: the loss is not finite; files of a finished run that are not what it wrote; lost lines of metrics.
        StoppedError: SIGTERM or Ctrl-C; the state is written, and the same call goes on from it.
    """
    out = Path(out)
    if len(loader.ids) < loader.global_batch:
        raise OptionError(
            f"{len(loader.ids)} samples are fewer than one batch of {loader.global_batch} on {world.size} ranks; lower --batch-size"
        )
    if loader.global_batch < world.size:
        raise OptionError(f"batches of {loader.global_batch} samples cannot be shared by {world.size} ranks; use fewer")
    if recipe.alpha > 0 and loader.logits is None and teacher is None:
        raise OptionError(f"--alpha {recipe.alpha} needs --logits or --teacher; --alpha 0 trains on labels alone")
    if record is not None and loader.views.mix is not None:
        raise OptionError(
            f"--record scores samples, and images mixed by {loader.views.mix.kind} are of two: leave --mix out"
        )
    if record is not None and recipe.steps is not None and recipe.steps % len(loader):
        raise OptionError(
            f"--record scores by whole epochs, of {len(loader)} steps, and --steps {recipe.steps} cuts the last: give --epochs"
        )
    if compiled and (recipe.alpha_course or recipe.tau_course):
        raise OptionError("--compile compiles the loss with one alpha and tau, which a course changes: leave one out")
    if recipe.steps is not None:
        recipe = replace(recipe, epochs=-(-recipe.steps // len(loader)))
    if not in_time(recipe.ema, recipe.steps or recipe.epochs * len(loader), warmup=recipe.ema_warmup):
        log(
            f"train: --ema {recipe.ema:g} averages over some {1 / (1 - recipe.ema):,.0f} steps, more than a third of this run's: "
            f"much of what is saved will be of its beginning; take a smaller one, or --ema-warmup"
        )
    require_trackers(trackers)
    torch.manual_seed(recipe.seed)
    learner, live = make_learner(recipe, loader, teacher, world)
    if val is not None and val.views.size != loader.views.size:
        require_size(learner.model, recipe.model, val.views.size, "give another --val-size")
    if init is not None:
        init.into(learner.model)
        inputs, params = inputs | {"init": init.fingerprint}, params | {"reset_head": init.reset_head}
    identity = {
        "inputs": inputs,
        "params": params
        | {"recipe": learner.described(recipe), "norm": norm.describe(), "global_batch": loader.global_batch},
    }
    if record is not None:
        identity["params"]["record"] = record.describe()
        if checkpoint_every is not None:
            raise OptionError(
                "--record keeps what it records by whole epochs: leave --checkpoint-every out, or give it in epochs"
            )
    agree(world, {**inputs, "params": fingerprint([json.dumps(identity["params"], sort_keys=True)])})
    told = ({"about": about} if about else {}) | {"made": made_with(loader.device, command)}

    def begin() -> dict[str, Any]:
        """Whose the folder is and whether the run is finished: rank 0 looks, the others are told."""
        stack.enter_context(claim(out, is_folder=True, log=log))
        head = claim_folder(out, identity, told, force=force)
        finished = read_result(out, head)
        if finished is not None:
            require_files(out, finished)
        return {"head": head, "finished": finished}

    with ExitStack() as stack:
        found = share(world, begin)
        if found["finished"] is not None:
            log(f"{out}: this run is finished; its result follows")
            return plain_result(found["finished"])
        if recipe.accumulate > 1 and loader.global_batch < recipe.batch_size * recipe.accumulate:
            raise OptionError(
                f"batches of {loader.global_batch} samples are no {recipe.accumulate} of {recipe.batch_size} to accumulate: give the "
                f"loader a batch_size of {recipe.batch_size * recipe.accumulate}"
            )
        stack.enter_context(measured_convolutions(loader.device))
        sizes = _full_sizes(recipe, loader, val, world) if compiled else None
        run, place = _start(recipe, learner, loader, live, record, out, found["head"], sizes, world, log)
        stack.callback(run.checkpoints.close)
        run.checkpoint_every, run.checkpoint_epochs = checkpoint_every, checkpoint_epochs
        run.progress, run.note, run.ended = progress, note, ended
        if trackers and world.is_main:
            first = place["epoch"] * len(loader)
            run_id = found["head"]["fingerprint"][:16]
            run.track = stack.enter_context(
                tracking(trackers, out, run_id=run_id, config=identity["params"], first_step=first)
            )
        run.stop = stack.enter_context(stop_on_signals())
        for epoch in range(place["epoch"], recipe.epochs):
            learner.norm = replace(norm, size=input_size(recipe, epoch, loader.views.size) or norm.size)
            train_epoch(run, epoch, place["step"] if epoch == place["epoch"] else 0)
            measured = {}
            if val is not None and ((epoch + 1) % val_every == 0 or epoch + 1 == recipe.epochs):
                run.accuracy = measured = _measure(run, norm, val)
            if keep_every is not None and (epoch + 1) % keep_every == 0 and world.is_main:
                keep_weights(run, norm, out, found["head"], epoch, measured)
            end_epoch(run, epoch, measured)
        run.checkpoints.finish()
        result = {
            "epochs": recipe.epochs,
            "val_top1": run.accuracy.get("top1"),
            "val_top5": run.accuracy.get("top5"),
            **(run.watch.rates() if run.watch.num_images or not world.is_main else last_rates(out / "metrics.jsonl")),
        }
        if world.is_main:
            finish(run, norm, out, found["head"], result)
        return result


def _full_batch(loader: Loader | Resident, world: World) -> int:
    """Samples of this rank in all batches of a loader but the last."""
    start, end = even_split(loader.global_batch, world.rank, world.size)
    return end - start


def _full_sizes(recipe: Recipe, loader: Loader | Resident, val: Loader | Resident | None, world: World) -> set[int]:
    """Samples that this rank's networks get at once in all steps and evaluations but the last."""
    num = num_parts(recipe, loader.global_batch, world.size)
    of_val = set() if val is None else {_full_batch(val, world)}
    return {*part_sizes(_full_batch(loader, world), num)} | of_val


def _measure(run: Run, norm: Norm, val: Loader | Resident) -> dict[str, Any]:
    """Accuracy of what will be saved, in the precision and by the graphs of training."""
    learner, average = run.learner, run.average
    network = learner.network if val.views.size == run.loader.views.size else None  # compiled for images of one size
    with average.worn_by(learner.model) if average is not None else nullcontext():
        return evaluate(learner.model, norm, val.epoch(0), run.world, precision=learner.precision, network=network)


def _start(
    recipe: Recipe,
    learner: Learner,
    loader: Loader | Resident,
    live: LiveTeacher | None,
    record: Record | None,
    out: Path,
    head: dict[str, Any],
    sizes: Collection[int] | None,
    world: World,
    log: Callable[[str], None],
) -> tuple[Run, dict[str, Any]]:
    """The run with its optimiser, from the folder's last state or anew; and the place from which it goes on.

    Args:
        sizes: batches for which the step is compiled; None for none.
    """
    on_gpu = loader.device.type == "cuda"
    is_plain = sizes is None and record is None and not (live is not None and recipe.distils)
    as_graph = on_gpu and is_plain and can_be_captured(recipe, world, is_resident=isinstance(loader, Resident))
    rate = torch.tensor(recipe.lr, device=loader.device) if as_graph else None
    groups = parameter_groups(recipe, learner, learner.model)
    optimizer = make_optimizer(recipe, groups, fused=on_gpu, lr=rate)
    scaler = torch.amp.GradScaler(loader.device.type, enabled=recipe.amp == "fp16")
    parts: dict[str, Any] = {"learner": learner, "optimizer": optimizer, "scaler": scaler}
    average = None
    if recipe.ema:
        average = parts["average"] = Average(learner.model, recipe.ema, warmup=recipe.ema_warmup)
    checkpoints = Checkpoints(out, head, parts, loader.device)
    place = checkpoints.load(log)
    require_seen(world, f"the state in {out}", checkpoints.loaded)
    place = place or {"epoch": 0, "step": 0, "rows": [], "jsonl": None, "csv": None, "accuracy": {}}
    recording = None
    if record is not None:
        recording = TrainingRecord(record, loader.dataset.beton.num_samples, world, loader.device)
        if place["epoch"]:
            recording.load_state_dict(place.get("record", {}), checkpoints.last)
    loss = objective
    if sizes is not None:
        learner.network, loss = compile_step(sizes, grows=recipe.resize_from is not None, on_gpu=on_gpu)
    run = Run(
        recipe=recipe,
        learner=learner,
        wrapped=wrapped(learner, world, is_static=sizes is None and recipe.accumulate == 1),
        objective=loss,
        optimizer=optimizer,
        scaler=scaler,
        average=average,
        loader=loader,
        live=live if recipe.distils else None,
        world=world,
        watch=Stopwatch(loader.device),
        checkpoints=checkpoints,
        recording=recording,
        rows=list(place["rows"]),
        num_written=place.get("num_written", 0),  # states of before wrote none until the epoch's end
        accuracy=place["accuracy"],
        lines=JsonLines(out / "metrics.jsonl", place["jsonl"], log) if world.is_main else None,
        table=CsvLines(out / "metrics.csv", place["csv"], log) if world.is_main else None,
    )
    if as_graph:

        def step(batch: Batch) -> Tensor:
            return one_step(run, batch, 0, 1.0, num_parts(recipe, len(batch), 1))

        run.captured = captured(step, _full_batch(loader, world), cuda_graph(loader.device), log)
    return run, place
