"""The paper's transformers: what a position may see, what dropout and initialization are, H·z."""

import math

import pytest
import torch
from support.text import tiny_translator
from torch.nn import functional as F

from experiments.models.text_transformer import EncoderDecoder, LanguageModel, Size, sinusoids

PAD, BEGIN, END = 0, 2, 3
SOURCE = torch.tensor([[4, 5, 6, END], [7, 8, END, PAD]])
TARGET = torch.tensor([[BEGIN, 9, 10, 11], [BEGIN, 5, 6, PAD]])


def language_model(cutoffs=(), seed=0, **size):
    torch.manual_seed(seed)
    size = Size(**{"width": 8, "ffn": 12, "heads": 2, **size})
    return LanguageModel(12, size, 2, cutoffs).double()


OPTIONS = [{}, {"pre_norm": False}, {"fused_attention": True}, {"activation": "gelu"}]


@pytest.mark.parametrize("options", OPTIONS)
class TestWhatAPositionSees:
    def test_a_target_sees_no_later_one(self, options):
        model = tiny_translator(layers=2, **options)
        changed = TARGET.clone()
        changed[:, 2:] = 7
        before, after = model(SOURCE, TARGET), model(SOURCE, changed)
        assert torch.equal(before[:, :2], after[:, :2])
        assert not torch.allclose(before[:, 2], after[:, 2])

    def test_a_language_model_sees_no_later_token(self, options):
        """The published base model of the paper's Table 4 did."""
        model, tokens = language_model(**options), torch.arange(1, 12)[None]
        for place in range(1, tokens.shape[1]):
            changed = tokens.clone()
            changed[:, place] = 0 if place % 2 else 1
            difference = (model(tokens) - model(changed)).abs().amax((0, 2))
            assert difference[:place].max() == 0 and difference[place:].min() > 0

    def test_padding_changes_nothing(self, options):
        model = tiny_translator(layers=2, **options)
        alone = model(SOURCE[1:, :3], TARGET[1:, :3])
        torch.testing.assert_close(model(SOURCE, TARGET)[1:, :3], alone)

    def test_step_by_step_is_all_at_once(self, options):
        model = tiny_translator(layers=2, **options).eval()
        state = model.start(SOURCE)
        steps = [model.step(TARGET[:, place], state) for place in range(3)]
        torch.testing.assert_close(torch.stack(steps, 1), model(SOURCE, TARGET)[:, :3])


def test_the_kernel_computes_the_written_attention():
    written, fused = tiny_translator(layers=2), tiny_translator(layers=2, fused_attention=True)
    torch.testing.assert_close(written(SOURCE, TARGET), fused(SOURCE, TARGET))


def test_the_papers_small_model_has_its_size():
    """36.7 million weights with 10,000 pieces: 31.5 million in the layers, the rest embeddings."""
    with torch.device("meta"):
        model = EncoderDecoder(10_000, Size(512, 1024, 4), 6, 6)
    d, ffn = 512, 1024
    attention, feed_forward, norm = 4 * d * (d + 1), 2 * d * ffn + d + ffn, 2 * d
    encoder = 6 * (attention + feed_forward + 2 * norm)
    decoder = 6 * (2 * attention + feed_forward + 3 * norm)
    expected = 10_000 * d + encoder + decoder + 2 * norm
    assert sum(p.numel() for p in model.parameters()) == expected == 36_665_344


def test_initialization_is_that_of_the_released_code():
    torch.manual_seed(0)
    model = EncoderDecoder(5000, Size(64, 256, 4), 1, 1)
    layer, table = model.decoder[0], model.embedding.tokens.weight
    assert table[1:].std().item() == pytest.approx(64**-0.5, rel=0.01)
    assert table[PAD].abs().max() == 0
    for linear, gain, fans in (
        (layer.source.key, 2**-0.5, 128),
        (layer.attention.out, 1, 128),
        (layer.widen, 1, 320),
    ):
        bound = gain * math.sqrt(6 / fans)
        assert 0.97 * bound < linear.weight.abs().max() <= bound
        assert linear.bias.abs().max() == 0


def test_positions_are_waves_of_all_lengths():
    table = sinusoids(0, torch.zeros(50, 8, dtype=torch.float64))
    for place in (0, 1, 17, 49):
        waves = [10_000 ** (-i / 3) for i in range(4)]
        expected = [math.sin(place * w) for w in waves] + [math.cos(place * w) for w in waves]
        torch.testing.assert_close(table[place], torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(sinusoids(17, torch.zeros(1, 8).double())[0], table[17])


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout_acts_in_training_alone(kind):
    plain, dropped = tiny_translator(), tiny_translator(**{kind: 0.5})
    assert not torch.allclose(dropped(SOURCE, TARGET), plain(SOURCE, TARGET))
    assert torch.equal(dropped.eval()(SOURCE, TARGET), plain(SOURCE, TARGET))


@pytest.mark.parametrize("pre_norm", [True, False])
def test_second_derivatives_are_differences_of_gradients(pre_norm):
    model = tiny_translator(pre_norm=pre_norm)
    params = list(model.parameters())

    def gradient(graph=False):
        logits = model(SOURCE, TARGET[:, :-1]).flatten(0, 1)
        loss = F.cross_entropy(logits, TARGET[:, 1:].flatten(), ignore_index=PAD,
                               label_smoothing=0.1)  # fmt: skip
        return torch.autograd.grad(loss, params, create_graph=graph)

    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in params]
    exact = torch.autograd.grad(gradient(graph=True), params, direction)
    step, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(params, direction, strict=True):
                p.add_(d, alpha=sign * step)
            ends.append(torch.enable_grad()(gradient)())
            for p, d in zip(params, direction, strict=True):
                p.sub_(d, alpha=sign * step)
    # No ReLU changes sign on so short a way.
    for product, up, down in zip(exact, *ends, strict=True):
        torch.testing.assert_close(product, (up - down) / (2 * step), atol=2e-6, rtol=1e-4)


def test_an_adaptive_softmax_is_a_distribution_and_gives_what_it_says():
    model = language_model(cutoffs=(3, 7), width=32)
    tokens = torch.randint(1, 12, (2, 6), generator=torch.Generator().manual_seed(0))
    hidden = model(tokens)
    log_probs = model.logits(hidden)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 6).double())
    chosen = log_probs.gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(model.log_likelihood(hidden, tokens), chosen)
    plain = language_model()
    hidden = plain(tokens)
    chosen = plain.logits(hidden).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(plain.log_likelihood(hidden, tokens), chosen)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 10: must be a multiple of twice the heads, 8"):
        Size(10, 4, 4)
