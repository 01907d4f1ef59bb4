"""Fine-tuning a network of transformers; those tests that need the package skip without it."""

import pytest
import torch
from support.harness import REPOSITORY, interrupted, until_done
from support.training import assert_equal, result

from experiments.config import constructors
from experiments.errors import UserError
from experiments.plans.load import load, resolve
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics
from experiments.tasks import registry
from experiments.tasks.text_classification.task import read
from experiments.training import loop

FILE = REPOSITORY / "configs" / "glue" / "sst2.yaml"
WORDS = ["good", "bad", "film", "plot", "a", "the", "very", "quite", "and", "not"]
SMALL = ("epochs=2", "schedule={name: constant}", "optimizers.adahessian.lr=0.3", "batch_size=10",
         "model.folder=tiny", "dataset.max_length=8")  # fmt: skip


def write(root, split="train", rows=60, heading="sentence\tlabel"):
    folder = root / "glue" / "SST-2"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f'the {WORDS[2 + i % 8]} "{WORDS[i % 2]} film\t{i % 2}' for i in range(rows)]
    path = folder / f"{split}.tsv"
    path.write_text("\n".join([heading, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path):
    write(tmp_path)
    write(tmp_path, "dev", 15)
    return tmp_path


@pytest.fixture
def tiny(root):
    """A random BERT of a few thousand weights, and a tokenizer that knows `WORDS`."""
    transformers = pytest.importorskip("transformers")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 24}  # fmt: skip
    config = transformers.BertConfig(vocab_size=len(vocabulary), **size)
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(root / "tiny")
    tokenizer.save_pretrained(root / "tiny")
    return root


def config(optimizer="adahessian", *overrides):
    return resolve(load(FILE, [*SMALL, *overrides]), optimizer, 1)


def train(data, root, config):
    directory = RunDirectory(root, config)
    with directory.locked():
        loop.train(config, directory, data)
    return directory


@pytest.mark.parametrize("optimizer", ["adamw", "adahessian"])
def test_it_fine_tunes_and_goes_on_after_interruptions(optimizer, tiny, tmp_path, monkeypatch):
    settings = ("epochs=6", "checkpoint_every_steps=3", "optimizers.adamw.lr=0.01")
    one = config(optimizer, *settings)
    whole = train(tiny, tmp_path / "whole", one)
    rows = read_metrics(whole.metrics_path)
    assert rows[-1]["val/accuracy"] > 0.9
    step = interrupted(loop.optimizer_step, lambda call: call % 7 == 6)
    monkeypatch.setattr(loop, "optimizer_step", step)
    directory, sessions = until_done(lambda: train(tiny, tmp_path / "cut", one))
    assert sessions > 2
    assert_equal(result(directory), result(whole))


def test_the_exact_way_agrees_with_the_finite_difference(tiny):
    """The eager attention has second derivatives."""
    task = registry.build_task(config(), torch.device("cpu"), tiny)
    torch.manual_seed(0)
    model = task.build_model().double().eval()
    batch = next(task.training_batches(0, 0))
    loss, sums = task.loss(model, batch)
    params = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    assert sums["weight"] == 10 and sum(g is not None for g in grads) == len(params)
    probe = [torch.randn_like(p) for p in params]
    product = torch.autograd.grad(sum((g * z).sum() for g, z in zip(grads, probe, strict=True)),
                                  params, allow_unused=True)  # fmt: skip
    h, shifted = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for param, z in zip(params, probe, strict=True):
                param.add_(sign * h * z)
        shifted.append(torch.autograd.grad(task.loss(model, batch)[0], params))
        with torch.no_grad():
            for param, z in zip(params, probe, strict=True):
                param.sub_(sign * h * z)
    for exact, plus, minus in zip(product, *shifted, strict=True):
        torch.testing.assert_close(exact, (plus - minus) / (2 * h), rtol=1e-4, atol=1e-6)


def test_quotes_are_letters_and_what_is_wrong_with_a_file_is_said(root):
    settings = load(FILE, []).dataset
    assert read(settings, root, "train")[1] == (['the plot "bad film'], "1")
    path = write(root, heading="text\tlabel")
    with pytest.raises(UserError, match="has no column 'sentence'"):
        read(settings, root, "train")
    path.write_text("sentence\tlabel\nonly one\n", encoding="utf-8")
    with pytest.raises(UserError, match="train.tsv, line 2: columns are missing"):
        read(settings, root, "train")
    path.write_text("sentence\tlabel\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no examples"):
        read(settings, root, "train")
    path.write_bytes(b"sentence\tlabel\nf\xfcr\t1\n")
    with pytest.raises(UserError, match="cannot be read: 'utf-8'"):
        read(settings, root, "train")
    path.unlink()
    with pytest.raises(UserError, match="is missing: GLUE's files"):
        read(settings, root, "train")


def test_a_missing_network_is_refused(root):
    with pytest.raises(UserError, match="model.folder = tiny: .* has no config.json"):
        registry.build_task(config(), torch.device("cpu"), root)


def test_a_method_of_a_class_is_a_constructor():
    found = constructors.load("collections.OrderedDict.fromkeys", "x")
    assert found("ab") == {"a": None, "b": None}
    with pytest.raises(UserError, match="cannot be imported"):
        constructors.load("collections.Nothing.fromkeys", "x")
    with pytest.raises(UserError, match="cannot be imported"):
        constructors.load("collections.nothing.fromkeys", "x")
