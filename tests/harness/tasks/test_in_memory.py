import torch

from experiments.tasks.image_classification.in_memory import crop_and_flip, draw_crops_and_flips
from experiments.tasks.randomness import generator


def test_crop_and_flip_is_torchvisions_crop_of_the_padded_image_then_flip():
    from torchvision.transforms.v2 import functional as F

    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    draws = draw_crops_and_flips(64, 4, True, generator(0, 0, "test"))
    result = crop_and_flip(pixels, draws, 4)
    assert result.dtype == torch.uint8
    for image, (top, left, flip), mine in zip(pixels, draws.tolist(), result, strict=True):
        expected = F.crop(F.pad(image, [4, 4, 4, 4]), top, left, 32, 32)
        assert torch.equal(mine, F.horizontal_flip(expected) if flip else expected)


def test_all_81_windows_and_both_directions_are_equally_likely():
    count = 162 * 400
    draws = draw_crops_and_flips(count, 4, True, generator(0, 0, "test"))
    outcome = (draws[:, 0] * 9 + draws[:, 1]) * 2 + draws[:, 2]
    observed = outcome.bincount(minlength=162).double()
    assert len(observed) == 162
    # Chi square with 161 degrees of freedom: mean 161, standard deviation 18.
    assert 161 - 4 * 18 < ((observed - 400) ** 2 / 400).sum() < 161 + 4 * 18


def test_without_padding_and_flip_images_stay_as_they_are():
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    draws = draw_crops_and_flips(5, 0, False, generator(0, 0, "test"))
    assert torch.equal(crop_and_flip(pixels, draws, 0), pixels)
