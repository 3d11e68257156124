import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.transforms import AugmentConfig, InputConfig, augment, to_input, to_training_input

PLAIN = InputConfig(size=32, mean=(0, 0, 0), std=(1, 1, 1))
STILL = AugmentConfig(
    flip=0, rotation_deg=0, shift=0, scale=0, brightness=0, contrast=0, saturation=0, erase=0, erase_side=0.1
)


def random_crops(num_crops=4, size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_crops, size, size, 3), dtype=np.uint8)


def smooth_images(num_images=4, size=32, seed=0):
    """Float images in 0.2-0.8 without sharp edges, so that resampling changes little."""
    coarse = torch.rand(num_images, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.2
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_crop_of_the_input_size_is_only_scaled_and_normalised():
    crops = random_crops(size=32)
    config = InputConfig(size=32)
    expected = (crops / 255 - np.array(config.mean)) / np.array(config.std)
    out = to_input(crops, config)
    assert out.dtype == torch.float32
    assert out.shape == (4, 3, 32, 32)
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(out.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_resizing_is_antialiased_bilinear_as_pillow_does_it():
    crops = random_crops(size=96)
    out = to_input(crops, PLAIN).permute(0, 2, 3, 1).numpy() * 255
    expected = np.stack([Image.fromarray(crop).resize((32, 32), Image.Resampling.BILINEAR) for crop in crops])
    assert np.abs(out - expected).max() < 1.1


def test_arrays_and_tensors_read_only_or_not_give_the_same_input():
    crops = random_crops()
    expected = to_input(torch.from_numpy(crops.copy()), PLAIN)
    crops.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(to_input(crops, PLAIN), expected)
    assert np.array_equal(crops, random_crops())


def test_no_crops_give_no_inputs():
    assert to_input(np.empty((0, 48, 48, 3), np.uint8), PLAIN).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("bad", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 3, 8, 8), np.uint8)])
def test_what_is_not_crops_is_an_assertion(bad):
    with pytest.raises(AssertionError, match="crops are"):
        to_input(bad, PLAIN)


def test_a_crop_has_the_same_input_alone_and_in_a_batch():
    crops = random_crops(5)
    together = to_input(crops, PLAIN)
    for index in range(5):
        assert torch.equal(to_input(crops[index : index + 1], PLAIN)[0], together[index])


def test_training_input_without_augmentation_is_the_input():
    crops, config = random_crops(), InputConfig(size=32)
    torch.testing.assert_close(
        to_training_input(crops, config, STILL, generator()), to_input(crops, config), atol=1e-4, rtol=0
    )


def test_flipping_is_an_exact_mirror():
    images = smooth_images()
    flipped = augment(images, STILL.model_copy(update={"flip": 1.0}), generator())
    torch.testing.assert_close(flipped, images.flip(3), atol=1e-4, rtol=0)


def test_half_of_many_images_are_flipped():
    images = smooth_images(1).expand(400, -1, -1, -1)
    out = augment(images, STILL.model_copy(update={"flip": 0.5}), generator())
    mirrored = ((out - images).abs().amax((1, 2, 3)) > 0.01).float().mean().item()
    assert 0.4 < mirrored < 0.6


def test_rotation_is_by_the_drawn_angle_about_the_middle():
    images = torch.zeros(1, 3, 65, 65)
    images[:, :, 31:34, 10:55] = 1  # a level bar
    for seed in range(3):
        out = augment(images, STILL.model_copy(update={"rotation_deg": 30.0}), generator(seed))[0, 0]
        ys, xs = torch.nonzero(out > 0.5, as_tuple=True)
        slope = np.polyfit(xs.numpy(), ys.numpy(), 1)[0]
        assert 0 < abs(np.degrees(np.arctan(slope))) <= 31
        assert abs(ys.float().mean() - 32) < 1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_augmented_images_keep_shape_range_and_depend_on_the_generator_alone(seed, num_images):
    images = smooth_images(num_images, seed=seed % 100)
    before, state = images.clone(), torch.random.get_rng_state()
    first, second = (augment(images, AugmentConfig(), generator(seed)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_each_image_of_a_batch_is_varied_on_its_own():
    images = smooth_images(1).expand(8, -1, -1, -1)
    out = augment(images, AugmentConfig(), generator())
    assert len({tuple(image.flatten()[:50].tolist()) for image in out}) == 8


def test_colour_changes_keep_greys_grey_and_hues_in_order():
    grey = smooth_images()[:, :1].expand(-1, 3, -1, -1)
    config = AugmentConfig(flip=0, erase=0)
    out = augment(grey, config, generator())
    assert (out - out[:, :1]).abs().max() < 1e-5
    golden = torch.tensor([0.8, 0.6, 0.2]).view(1, 3, 1, 1).expand(16, 3, 8, 8)
    out = augment(golden, config, generator())
    assert (out[:, 0] > out[:, 1]).all()
    assert (out[:, 1] > out[:, 2]).all()


def test_colour_jitter_is_that_of_torchvision():
    from torchvision.transforms.v2 import functional

    images = smooth_images(6)
    config = STILL.model_copy(update={"brightness": 0.2, "contrast": 0.2, "saturation": 0.2})
    draws = generator()
    numbers = [torch.rand(6, generator=draws) for _ in range(8)][-3:]  # the last three are the colours'
    expected = []
    for image, *factors in zip(images, *numbers, strict=True):
        brightness, contrast, saturation = (0.8 + 0.4 * factor.item() for factor in factors)
        image = functional.adjust_brightness(image, brightness)
        image = functional.adjust_contrast(image, contrast)
        expected.append(functional.adjust_saturation(image, saturation))
    torch.testing.assert_close(augment(images, config, generator()), torch.stack(expected), atol=1e-3, rtol=0)


def test_erased_squares_are_as_many_and_as_large_as_configured():
    images = smooth_images(1, size=64).expand(300, -1, -1, -1)
    out = augment(images, STILL.model_copy(update={"erase": 0.5, "erase_side": 0.25}), generator())
    changed = ((out - images).abs() > 1e-3).any(1)
    shares = changed.float().mean((1, 2))
    assert shares.max() <= 0.25**2 * 1.2
    assert 0.3 < (shares > 0).float().mean() < 0.6


@pytest.mark.parametrize("field", [{"size": 8}, {"std": (0, 1, 1)}, {"median": 1}])
def test_impossible_input_configs_are_refused(field):
    with pytest.raises(ValueError, match="validation error"):
        InputConfig(**field)


@pytest.mark.parametrize("world", [2, 3])
def test_an_image_is_varied_alike_however_a_batch_is_shared(world):
    images = smooth_images(8)
    whole = augment(images, AugmentConfig(), generator())
    for rank in range(world):
        part = slice(rank, None, world)
        shared = augment(images[part], AugmentConfig(), generator(), num_images=8, part=part)
        assert torch.equal(shared, whole[part])
