"""`fastkd train`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastkd.agree import share
from fastkd.cli.command import Output, command
from fastkd.cli.common import progress_bar, say
from fastkd.cli.config import NumberText
from fastkd.cli.options import (
    class_map_option,
    field_options,
    loader_options,
    match_teacher,
    refuse_idle,
    take_precision,
    teacher_options,
    view_options,
)
from fastkd.cli.schedule_options import (
    describe_update,
    keep_option,
    order_options,
    say_recipe,
    schedule_options,
)
from fastkd.cli.train_options import (
    headline,
    loss_options,
    open_init,
    parse_names,
    parse_recorded,
    parse_states,
    record_options,
    states_every,
    step_options,
    val_options,
)
from fastkd.data.beton.fields import Fields

if TYPE_CHECKING:
    from fastkd.dist import World

_SECTIONS = {
    "Data": "image-field label-field mask class-map order drop-last mask-weights",
    "Views": "views size num-seeds mix mix-alpha",
    "Teacher": "logits teacher teacher-model teacher-norm teacher-size teacher-precision ema-weights",
    "Student": "model init reset-head norm drop-path dropout ema ema-warmup sync-bn resize-from resize-start resize-end seed",
    "Loss": "kd alpha alpha-rule beta layers teacher-layers label-smoothing tau tau-squared standardise-logits",
    "Schedule": "recipe epochs steps batch-size accumulate lr schedule milestones gamma warmup-epochs min-lr per-step",
    "Optimizer": "opt momentum nesterov betas eps weight-decay no-decay layer-decay clip-grad",
    "Speed": "amp compiled resident num-workers prefetch device",
    "Scores on the way": "record never-learned dual-window el2n-epochs",
    "Output": "out checkpoint-every keep-every val val-every val-size tracked",
}
"""The headings of the help, and the options below each."""


@command("train", on_ranks=True, sections=_SECTIONS)
@click.argument("beton", type=click.Path(path_type=Path))
@field_options
@click.option("--mask", type=click.Path(path_type=Path), help="Samples to train on.  [default: all]")
@class_map_option
@click.option("--logits", type=click.Path(path_type=Path), help="Store with the teacher's logits.")
@click.option(
    "--teacher",
    type=click.Path(),
    metavar="T",
    help="Teacher to run live where there is no store; with one, it must be the store's.",
)
@teacher_options
@click.option(
    "--model",
    required=True,
    metavar="NAME",
    help="The student: resnet8 … resnet110, resnet8x4, wrn_40_2, cifar_vgg8, … (see fastkd/models), a torchvision or timm: name; NAME@PIXELS says the size of a ViT.",
)
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    metavar="CKPT",
    help="Weights that the student starts from: a checkpoint, or a run.  [default: fresh ones of the seed]",
)
@click.option("--reset-head", is_flag=True, help="With --init: start the last layer anew, for other classes.")
@val_options
@click.option("--out", type=Output(is_folder=True), required=True, help="Folder of the run; resumes one that is there.")
@click.option(
    "--checkpoint-every",
    type=NumberText(),
    callback=states_every,
    metavar="STEPS|Nepochs",
    help="States also after so many steps within an epoch, or only after every Nth epoch, e.g. 10epochs.  [default: after each epoch]",
)
@keep_option
@schedule_options
@loss_options
@click.option(
    "--mask-weights/--no-mask-weights",
    default=True,
    show_default=True,
    help="CE and KD of each sample times its weight in the mask, where the mask has weights; the mean is over the batch.",
)
@click.option(
    "--log",
    "tracked",
    metavar="tensorboard,wandb",
    help="Numbers also go there; metrics.jsonl and .csv are always written.",
)
@order_options
@click.option(
    "--norm",
    metavar="NORM",
    help="The student's input: cifar, imagenet, none or M,M,M/S,S,S.  [default: as --init says, if it does; cifar up to 64 pixels, else imagenet]",
)
@step_options
@record_options
@view_options
@loader_options
def train(
    beton: Path,
    fields: Fields,
    mask: Path | None,
    class_map: str | None,
    logits: Path | None,
    teacher: str | None,
    init: Path | None,
    reset_head: bool,
    ema_weights: bool,
    val: Path | None,
    val_every: int,
    val_size: int | None,
    out: Path,
    force: bool,
    checkpoint_every: str | None,
    keep_every: int | None,
    compiled: bool,
    tracked: str | None,
    alpha: str | None,
    alpha_rule: str | None,
    layers: str | None,
    teacher_layers: str | None,
    norm: str | None,
    record: str | None,
    never_learned: str | None,
    dual_window: int | None,
    el2n_epochs: int | None,
    views: str | None,
    size: int | None,
    num_seeds: int | None,
    mix: str | None,
    mix_alpha: float | None,
    world: "World",
    device: str,
    num_workers: int,
    prefetch: int,
    resident: str,
    **options: Any,
) -> tuple[dict[str, Any], str]:
    """Train a student on the kept samples of BETON: with a store, with a live teacher, or on labels alone.

    The loss is (1 - alpha)·CE + alpha·KD. With --alpha 0 a plain network is trained, which is how a teacher is made.
    Stopped at any moment, the same command goes on from the last state. SIGTERM writes one and ends with exit code 75.

    \b
    fastkd train train.beton --mask m.h5 --logits l.h5 --model resnet20 --val test.beton --out run/
    fastkd train train.beton --alpha 0 --model resnet20 --epochs 30 --record forgetting,el2n,aum,dual --out run/
    fastkd train train.beton --mask m.h5 --teacher t.safetensors --kd vid --model resnet20 --out run/
    fastkd train train.beton --logits l.h5 --model convnext_tiny --recipe convnext-t --out run/
    fastkd train flowers.beton --alpha 0 --model resnet18 --init imagenet.pth --reset-head --out run/
    """
    from fastkd.data.beton.dataset import open_dataset
    from fastkd.feed.loader import choose_views, kept_ids
    from fastkd.models.classes import read_class_map
    from fastkd.models.init import choose_norm
    from fastkd.models.libraries import sized_name
    from fastkd.prune.masks.mask import Mask
    from fastkd.prune.masks.weights import describe_weights
    from fastkd.store.logit_store import LogitStore
    from fastkd.teacher.recipe import stored_precision
    from fastkd.train.about import command_line
    from fastkd.train.inputs import open_inputs, started_beside, started_center, started_precisions
    from fastkd.train.logs import parse_trackers
    from fastkd.train.recipe import ALPHA_RULE, choose_alpha, choose_recipe
    from fastkd.train.run_folder import started_global_batch
    from fastkd.train.student import train as run

    recorded = parse_recorded(record, never_learned=never_learned, window=dual_window, el2n_epochs=el2n_epochs)
    teacher_flags = {name: options.pop(name) for name in list(options) if name.startswith("teacher_")}
    refuse_idle({"reset_head": reset_head}, "init", init)
    refuse_idle({"ema_weights": ema_weights}, "teacher or --init", teacher or init)
    refuse_idle({"val_every": val_every > 1, "val_size": val_size}, "val", val)
    refuse_idle(teacher_flags, "teacher", teacher)
    teacher_flags["ema_weights"] = ema_weights
    refuse_idle(
        {"class_map": class_map},
        "val, --teacher, --logits or --init",
        val or teacher or logits or (init and not reset_head),
    )
    mapping = read_class_map(class_map)
    dataset = open_dataset(beton, fields)
    kept = Mask.load(mask) if mask else None
    store = LogitStore(logits) if logits else None
    has_teacher, fraction = bool(teacher or logits), len(kept_ids(dataset, kept)) / dataset.beton.num_samples
    refuse_idle({"standardise_logits": options["standardise_logits"]}, "logits or --teacher", has_teacher)
    weight = choose_alpha(alpha, alpha_rule, fraction=fraction, kd=options["kd"], has_teacher=has_teacher)
    say_recipe(options.pop("recipe"), options, world.size)
    # fewer epochs than one are refused by the recipe, which needs the views first
    epochs = 50 if options["steps"] else max(1, options["epochs"] or 240)
    own_center, val_center = (None, None) if force else share(world, lambda: started_center(out))
    begun = {} if force else share(world, lambda: started_precisions(out))
    amp = take_precision(options["amp"], "--amp", device, world, begun.get("student"))
    options["amp"] = "off" if amp == "fp32" else amp
    asked = teacher_flags["teacher_precision"]
    there = begun.get("teacher") if logits is None else stored_precision(logits)
    teacher_flags["teacher_precision"] = take_precision(asked, "--teacher-precision", device, world, there)
    more: dict[str, Any] = {"num_epochs": epochs, "mix": mix, "mix_alpha": mix_alpha, "center_version": own_center}
    chosen = choose_views(dataset, views, size, num_seeds, store=store, **more)
    options["model"] = sized_name(options["model"], chosen.size)
    options |= {"alpha": weight, "layers": parse_names(layers), "teacher_layers": parse_names(teacher_layers)}
    recipe = choose_recipe(chosen.kind, dataset.num_classes, **options)
    start = (
        open_init(init, recipe.model, dataset, mapping, reset_head=reset_head, ema_weights=ema_weights)
        if init
        else None
    )
    norm_used, norm_words = choose_norm(norm, start, chosen.size)
    network = match_teacher(teacher, teacher_flags, dataset, device, mapping) if teacher else None
    inputs = open_inputs(
        recipe,
        dataset,
        chosen,
        mask=kept,
        store=store,
        teacher=network,
        val=val,
        val_fields=replace(fields, strict=False),
        val_version=val_center,
        val_size=val_size,
        beside={} if force else share(world, lambda: started_beside(out)),
        num_workers=num_workers,
        prefetch=prefetch,
        device=device,
        world=world,
        global_batch=share(world, lambda: started_global_batch(out)),
        resident=resident,
        class_map=mapping,
        log=say,
    )
    say(headline(recipe, inputs))
    if updates := describe_update(recipe):
        say(f"train: {updates}")
    if start is not None:
        say(f"train: starts from {init}{', the last layer anew' if reset_head else ''}; {norm_words}")
    if kept is not None and kept.weights is not None:
        weights = "weights {min:.4g} to {max:.4g}, mean {mean:.4g}".format(**describe_weights(kept.weights))
        what = "CE and KD of each sample times its weight" if recipe.mask_weights else "left out of the loss"
        say(f"train: {mask} has {weights}: {what}")
    if alpha == "auto":
        inputs.params["alpha_rule"] = alpha_rule or ALPHA_RULE
        say(f"alpha {weight:.4g} at f = {fraction:.4g} by the rule {inputs.params['alpha_rule']}")
    notes = [""]
    with progress_bar("train", "steps") as progress:
        result = run(
            recipe,
            inputs.loader,
            out,
            norm=norm_used,
            teacher=inputs.teacher,
            init=start,
            val=inputs.val,
            val_every=val_every,
            record=recorded,
            **parse_states(checkpoint_every),
            keep_every=keep_every,
            compiled=compiled,
            trackers=parse_trackers(tracked) if tracked else (),
            inputs=inputs.fingerprints,
            params=inputs.params,
            about=inputs.about,
            command=command_line(),
            force=force,
            world=world,
            progress=lambda done, total: progress(done, total, notes[-1]),
            note=notes.append,
            ended=partial(progress, stays=True),
            log=say,
        )
    result = {"kind": "run", "path": str(out), **result}
    top1, top5 = result["val_top1"], result["val_top5"]
    accuracy = "" if top1 is None else f"; top-1 {top1:.2f} %, top-5 {top5:.2f} %"
    text = (
        f"{out}: {result['epochs']} epochs{accuracy}; {result['images_per_s']:,.0f} images/s, "
        f"{result['data_wait_percent']:.1f} % of the time waiting for data"
    )
    return result, text
