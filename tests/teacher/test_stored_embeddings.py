"""Stored embeddings in batches and in training: what the relational losses compare without a teacher at hand."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import fastkd
from helpers.runs import records
from helpers.stores import make_store, random_logits, save_teacher

from fastkd.data.views.draw import Views
from fastkd.errors import CorruptError, MismatchError
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident
from fastkd.store.logit_store import LogitStore

VIEWS = Views("crop-flip", 32, 3)


@pytest.fixture(scope="module")
def store(dataset, ids, tmp_path_factory) -> Path:
    """A store of random logits and embeddings for the views of the 200 samples of `raw_mask`."""
    path, embeddings = tmp_path_factory.mktemp("store") / "l.h5", random_logits(3, len(ids), 33, seed=1)
    return make_store(path, random_logits(3, len(ids), 10), ids, dataset=dataset, views=VIEWS, embeddings=embeddings)


@pytest.mark.parametrize("codec", ["fp16", "int8+top4"])
def test_batches_carry_the_embeddings_of_their_samples_and_seed(dataset, raw_mask, ids, store, tmp_path, codec):
    if codec != "fp16":
        logits, embeddings = random_logits(3, len(ids), 10), random_logits(3, len(ids), 7, seed=2)
        options = {"dataset": dataset, "views": VIEWS, "embeddings": embeddings, "codec": codec}
        store = make_store(tmp_path / "l.h5", logits, ids, **options)
    loader = Loader(dataset, mask=raw_mask, logits=store, embeddings=True, batch_size=48, shuffle=True, num_workers=2)
    whole = LogitStore(store)
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            of = batch.sample_ids.numpy(), batch.aug_seed
            assert np.array_equal(batch.embeddings.numpy(), whole.read_embeddings(*of))
            assert np.array_equal(batch.copy().logits.numpy(), whole.read(*of))


def test_embeddings_come_where_they_are_asked_for_and_there(dataset, raw_mask, ids, store, tmp_path):
    assert next(Loader(dataset, mask=raw_mask, logits=store).epoch(0)).embeddings is None
    without = make_store(tmp_path / "l.h5", random_logits(3, len(ids), 10), ids, dataset=dataset, views=VIEWS)
    with pytest.raises(MismatchError, match=r"l\.h5: holds logits alone, no embeddings"):
        Loader(dataset, mask=raw_mask, logits=without, embeddings=True)


def test_a_damaged_embedding_stops_the_epoch_and_names_the_sample(dataset, raw_mask, ids, store, tmp_path):
    path, tables = tmp_path / "l.h5", LogitStore(store).tables
    content = bytearray(store.read_bytes())
    content[tables.embeddings.offset + 11 * tables.embeddings.codec.row_bytes] ^= 1
    path.write_bytes(content)
    assert len(list(Loader(dataset, mask=raw_mask, logits=path).epoch(0))) == 4
    with pytest.raises(CorruptError, match=f"sample {ids[11]}: its row in the store does not match its checksum"):
        list(Loader(dataset, mask=raw_mask, logits=path, embeddings=True).epoch(0))


def test_data_on_the_device_have_the_loaders_embeddings(dataset, raw_mask, store):
    loader = Loader(dataset, mask=raw_mask, logits=store, embeddings=True, batch_size=48, shuffle=True, num_workers=1)
    for one, other in zip(loader.epoch(4), Resident(loader, loader.store).epoch(4), strict=True):
        assert one.embeddings.equal(other.embeddings)
        assert one.logits.equal(other.logits)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, raw_beton, raw_mask) -> dict:
    """A teacher, and stores of its logits with and without embeddings, and of mixed images with them."""
    folder = tmp_path_factory.mktemp("embedding-lab")
    teacher = save_teacher(folder / "t.safetensors", name="resnet14", seed=5)
    made = {"teacher": teacher, "l": folder / "l.h5", "plain": folder / "plain.h5"}
    made |= {mix: folder / f"{mix}.h5" for mix in ("cutmix", "mixup")}
    for name in ("l", "plain", "cutmix", "mixup"):
        outputs = "logits" if name == "plain" else "logits,embedding"
        shape = ["--mask", raw_mask, "--num-seeds", 3, "--outputs", outputs, "--batch-size", 64, "--json"]
        shape += ["--mix", name] if name in ("cutmix", "mixup") else []
        how = ["--teacher", teacher, "--device", "cpu"]
        planned = fastkd("plan", raw_beton, *shape, *([] if name == "plain" else how)).result
        made[name, "filled"] = fastkd("cache-logits", raw_beton, *shape, *how, "--out", made[name]).result
        assert planned["size_bytes"] == made[name, "filled"]["size_bytes"] == made[name].stat().st_size
    return made


def test_the_commands_say_what_a_store_holds(lab, raw_beton, raw_mask):
    assert lab["l", "filled"]["embedding_dim"] == 64
    assert "embedding_dim" not in lab["plain", "filled"]
    found = fastkd("inspect", lab["l"], "--json").result
    assert (found["embedding_dim"], found["embedding_row_bytes"]) == (64, 192)
    assert found["params"]["embedding"] == {"dim": 64, "layer": "fc:input"}
    shape = ["--mask", raw_mask, "--num-seeds", 3, "--batch-size", 64, "--outputs", "logits,embedding"]
    planned = fastkd("plan", raw_beton, *shape, "--embedding-dim", 64, "--json").result
    assert planned["size_bytes"] == lab["l"].stat().st_size
    how = ["--against", raw_beton, "--teacher", lab["teacher"], "--rows", 40, "--device", "cpu"]
    (again,) = fastkd("verify", lab["l"], *how, "--json").result["recomputed"]
    assert again["max_embedding_error"] < 1e-3


def losses(out: Path, kd: str) -> np.ndarray:
    return np.array([[line["loss"], line["kd"], line[kd]] for line in records(out, "step")])


def train(raw_beton, raw_mask, out, *options):
    common = ["--mask", raw_mask, "--model", "resnet8", "--epochs", 2, "--batch-size", 64, "--device", "cpu"]
    return fastkd("train", raw_beton, *common, "--num-seeds", 3, "--lr", 0.01, "--out", out, *options)


BETAS = {"rkd": 0.02, "pkt": 1000, "cc": 1, "crd": 0.1}


@pytest.mark.parametrize(
    ("kd", "mix"), [*((kd, None) for kd in BETAS), ("rkd", "cutmix"), ("pkt", "mixup"), ("cc", "cutmix")]
)
def test_the_store_gives_the_losses_of_the_live_teacher(lab, raw_beton, raw_mask, tmp_path, kd, mix):
    live = ["--teacher", lab["teacher"], *(["--mix", mix] if mix else [])]
    for name, source in (("live", live), ("cached", ["--logits", lab[mix or "l"]])):
        outcome = train(raw_beton, raw_mask, tmp_path / name, "--kd", kd, "--beta", BETAS[kd], *source)
        assert outcome.code == 0, outcome.err
        assert ("logits from the store, embeddings too" in outcome.err) == (name == "cached")
        assert (f"with {mix} 1" in outcome.err) == (mix is not None)
    live, cached = losses(tmp_path / "live", kd), losses(tmp_path / "cached", kd)
    assert live.shape == (8, 3)
    assert (live[:, 2] > 0).all()
    np.testing.assert_allclose(cached, live, rtol=1e-3)


def test_data_on_the_device_train_to_the_same_losses_mixed_and_with_embeddings(lab, raw_beton, raw_mask, tmp_path):
    for resident in ("on", "off"):
        options = ["--logits", lab["mixup"], "--kd", "rkd", "--beta", 0.02, "--resident", resident]
        assert train(raw_beton, raw_mask, tmp_path / resident, *options).code == 0
    np.testing.assert_allclose(losses(tmp_path / "on", "rkd"), losses(tmp_path / "off", "rkd"), rtol=1e-6)


def test_a_mixed_store_with_embeddings_is_computed_again_to_the_same(lab, raw_beton):
    how = ["--against", raw_beton, "--teacher", lab["teacher"], "--rows", 40, "--device", "cpu"]
    (again,) = fastkd("verify", lab["cutmix"], *how, "--json").result["recomputed"]
    assert again["max_embedding_error"] < 1e-3


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (
            "train --kd rkd --logits {plain}",
            1,
            "--kd rkd compares embeddings, .*plain.h5 holds logits alone: give --teacher",
        ),
        ("train --kd rkd", 1, "--kd rkd compares embeddings, found neither a teacher nor a store"),
        ("train --kd crd --logits {cutmix}", 1, "--kd crd goes by one label a sample, mixed images have two"),
        ("train --kd vid --logits {l}", 1, "--kd vid looks inside the teacher, which a store does not hold"),
        ("train --kd pkt --logits {l} --teacher {teacher}", 1, "leave --logits out"),
        (
            "train --kd rkd --logits {l} --teacher-layers fc:input",
            1,
            "--teacher-layers fc:input names layers of a live",
        ),
        ("plan --outputs logits,embedding", 2, "needs either --embedding-dim or the --teacher"),
        ("plan --embedding-dim 5", 2, "--embedding-dim is for --outputs logits,embedding"),
        ("plan --outputs maps", 2, "'maps', expected logits or logits,embedding"),
        ("cache-logits --teacher {teacher} --outputs embedding", 2, "'embedding', expected logits or logits,embedding"),
    ],
)
def test_what_is_missing_is_said_in_one_line(lab, raw_beton, raw_mask, tmp_path, command, code, words):
    name, *options = (word.format(**{k: v for k, v in lab.items() if isinstance(k, str)}) for word in command.split())
    rest = {"train": ["--model", "resnet8", "--out", tmp_path / "run"], "cache-logits": ["--out", tmp_path / "new.h5"]}
    outcome = fastkd(name, raw_beton, *options, "--mask", raw_mask, "--device", "cpu", *rest.get(name, []))
    assert outcome.code == code, outcome.err
    assert re.search(words, outcome.err)
    assert "Traceback" not in outcome.err
