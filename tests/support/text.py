"""Tiny models and corpora of text."""

import pytest
import torch

from experiments.models.text_transformer import EncoderDecoder, Size
from experiments.plans.load import load, resolve
from experiments.runs.directory import RunDirectory
from experiments.tasks import registry
from experiments.tasks.text.prepared import Recipe, prepare
from experiments.tasks.text.sources import cldr, kjv
from experiments.training import loop

CPU = torch.device("cpu")
NO_DROPOUT = ("model.dropout=0.0", "model.attention_dropout=0.0", "model.activation_dropout=0.0")

OPTIMIZERS = """
optimizers:
  sgd: {constructor: torch.optim.SGD, lr: 0.3, weight_decay: 0, weight_decay_divided_by_lr: false}
  adahessian: {constructor: adahessian.AdaHessian, lr: 0.05, block_size: 32, weight_decay: 0,
               weight_decay_divided_by_lr: false}
"""
SCHEDULE = "{name: constant}"
SIZE = """width: 16, ffn: 24, heads: 2, dropout: 0.1, attention_dropout: 0.1,
        activation_dropout: 0.1, pre_norm: true, fused_attention: false"""

TRANSLATION = f"""
task: translation
dataset: {{name: cldr, source: de, target: en, vocabulary: 400, sha256: null, max_tokens: 400,
          steps_per_epoch: 4, tokens_per_epoch: 0}}
model: {{name: transformer, encoder_layers: 1, decoder_layers: 1, {SIZE}}}
epochs: 3
batch_size: 2
label_smoothing: 0.1
average: {{last_epochs: 2}}
decoding: {{beam: 2, length_penalty: 1.0, max_length: 12, every_epochs: 2, tokenize: 13a,
           lowercase: false}}
schedule: {SCHEDULE}
best_epoch_split: val
{OPTIMIZERS}"""

LANGUAGE_MODELING = f"""
task: language_modeling
dataset: {{name: kjv, vocabulary: 130, sha256: null, length: 16, steps_per_epoch: 4,
          tokens_per_epoch: 0}}
model: {{name: causal-transformer, layers: 1, adaptive_cutoffs: [], {SIZE}}}
epochs: 3
batch_size: 10
label_smoothing: 0.1
schedule: {SCHEDULE}
best_epoch_split: val
{OPTIMIZERS}"""


def tiny_translator(vocabulary=12, scale=1.0, seed=0, layers=1, dtype=torch.float64, **size):
    """An encoder-decoder of a few thousand weights, multiplied by `scale`."""
    torch.manual_seed(seed)
    size = Size(**{"width": 8, "ffn": 12, "heads": 2, **size})
    model = EncoderDecoder(vocabulary, size, layers, layers).to(dtype)
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(scale)
    return model


def prepare_small(root, monkeypatch):
    """The corpora of the two files above, small; other processes find them prepared, too."""
    chapters = [[f"{place} And the {word} said unto {name} in that {word} of days." for place in
                 range(1, 9)] for word in ("king", "priest", "prophet", "man", "woman")
                for name in ("Moses", "Aaron", "Joshua", "Saul", "David", "Ruth")]  # fmt: skip
    monkeypatch.setattr(cldr, "DRAWS", 700)
    monkeypatch.setattr(kjv, "_chapters", lambda: iter(chapters))
    monkeypatch.setattr(kjv, "RULES", kjv.Rules(held_out=0.15, near_duplicates=None))
    prepare(Recipe("cldr", ("de", "en"), "pieces", 400), root)
    prepare(Recipe("kjv", ("en",), "pieces", 130), root)
    return root


def small_home(tmp_path_factory):
    """A folder with `translation.yaml` and `language.yaml`, and the corpora that they need."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        root = prepare_small(tmp_path_factory.mktemp("data"), monkeypatch)
    for name, text in (("translation", TRANSLATION), ("language", LANGUAGE_MODELING)):
        (root / f"{name}.yaml").write_text(text, encoding="utf-8")
    return root


def make_task(home, name, *overrides, optimizer="sgd", seed=1):
    """The task of one of the two files."""
    config = resolve(load(home / f"{name}.yaml", overrides), optimizer, seed)
    return registry.build_task(config, CPU, home)


def train_small(home, name, root, *overrides, optimizer="sgd"):
    """Train a run of one of the two files; returns its directory."""
    config = resolve(load(home / f"{name}.yaml", overrides), optimizer, 1)
    directory = RunDirectory(root, config)
    with directory.locked():
        loop.train(config, directory, home)
    return directory
