import hashlib

import numpy as np
import pytest

import pong_actor
from preprocessing import IS_INK, active_pixels, preprocessing_image


def chapters_preprocessing(obs):
    """The chapter's function, line by line. It writes to obs."""
    obs = obs[35:195]
    obs = obs[::2, ::2, 0]
    obs[obs == 144] = 0
    obs[obs == 109] = 0
    obs[obs != 0] = 1
    return obs.astype("float").ravel()


def read(ale):
    """The frame the emulator shows: (palette indices, RGB)."""
    screen = np.empty((210, 160), np.uint8)
    ale.getScreen(screen)
    return screen, ale.getScreenRGB()


def assert_as_in_the_chapter(screen, rgb):
    expected = chapters_preprocessing(rgb.copy())
    image = preprocessing_image(rgb)
    assert image.dtype == expected.dtype == np.float64
    assert image.shape == (6400,)
    assert np.array_equal(image, expected)
    assert np.array_equal(active_pixels(screen), np.flatnonzero(expected))


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def frame_after(steps):
    """A fixed frame: (palette indices, RGB) after so many steps of a fixed game."""
    env = pong_actor.make_env("Pong-v0")
    env.reset(seed=20)
    for step in range(steps):
        env.step(step * step % 7 % 6)
    return read(env.ale)


@pytest.mark.slow
def test_frames_of_play_come_out_as_in_the_chapter():
    env, rng = pong_actor.make_env("Pong-v0"), np.random.default_rng(0)
    env.reset(seed=0)
    frames, games, after_reset, in_play = 0, 0, set(), set()
    just_reset = True
    while games < 3 or frames < 2000:
        screen, rgb = read(env.ale)
        assert_as_in_the_chapter(screen, rgb)
        colours = after_reset if just_reset else in_play
        colours.update(np.unique(screen[35:195:2, ::2]).tolist())
        _, _, terminal, truncated, _ = env.step(rng.integers(6))
        frames += 1
        just_reset = terminal or truncated
        if just_reset:
            games += 1
            env.reset()
    assert in_play >= {34, 200, 56, 14}  # empty court, ball, paddle, opponent
    assert after_reset >= {138, 228}


@pytest.mark.slow
def test_every_colour_comes_out_as_in_the_chapter():
    env, rng = pong_actor.make_env("Pong-v0"), np.random.default_rng(0)
    seen = np.zeros((256, 256), bool)  # [palette index, red]
    for frame in range(4_000):
        if frame % 200 == 0:
            env.reset(seed=frame)
        for address, value in rng.integers((128, 256), size=(4, 2)).tolist():
            env.ale.setRAM(address, value)
        env.ale.act(int(rng.integers(6)))
        screen, rgb = read(env.ale)
        assert_as_in_the_chapter(screen, rgb)
        seen[screen, rgb[:, :, 0]] = True
    indices, reds = seen.nonzero()
    assert len(set(indices)) == len(indices)  # an index has one red
    assert (indices % 2 == 0).sum() >= 120  # of 128
    assert np.array_equal(IS_INK[indices], ~np.isin(reds, (0, 109, 144)))


@pytest.mark.parametrize(
    "steps, ink, frame_hash, image_hash",
    [
        (
            0,
            18,
            "1fbd8cd8ae5c116044ef7bd1624f4cfa1ee28c3deec9714472ab00d7af936993",
            "cad52b6edc3c44fba87d2ea4f57513a3294cf8c73a2eecc41d73b9bb228dc7c1",
        ),
        (
            25,
            24,
            "a0b4c4b03f9d64c202795437de152bda37d5ae533ba064b89e9b2cd620b33c8b",
            "be042cc58c1376451d9f70650bb21ac6adc64e8c7d05f2d06e49f98c7afdcbd5",
        ),
        (
            100,
            22,
            "4033eeddbbd20e2c9d6bd1806d9e45b39585cf2df7c87cd607b2ee3ad5b845a0",
            "a4b77e3bac2b85b342a4789e78695933b5d36c1f69197b4aabc46c25329ac85d",
        ),
        (
            700,
            20,
            "04dd5dea048c8306b2318caed5db628ffb7edba1e63d5e7beb4ff83ffbeb8379",
            "610afd65304287bae6455859bcaf078e516666f31baacdbcd4c945bee267fd6f",
        ),
    ],
    ids=["step 0", "step 25", "step 100", "step 700"],
)
def test_golden_frames(steps, ink, frame_hash, image_hash):
    screen, rgb = frame_after(steps)
    assert sha256(rgb) == frame_hash, "the emulator shows another frame: no fault of preprocessing"
    assert sha256(preprocessing_image(rgb).astype(np.uint8)) == image_hash
    pixels, image = active_pixels(screen), np.zeros(6400, np.uint8)
    image[pixels] = 1
    assert len(pixels) == ink
    assert (np.diff(pixels) > 0).all()
    assert sha256(image) == image_hash


def test_the_callers_frame_is_not_written_to():
    screen, rgb = frame_after(100)
    screen_before, rgb_before = screen.copy(), rgb.copy()
    image = preprocessing_image(rgb)
    image[:] = active_pixels(screen)[0] = 7
    assert np.array_equal(rgb, rgb_before)
    assert np.array_equal(screen, screen_before)


RGB, SCREEN = r"uint8 \(210, 160, 3\)", r"uint8 \(210, 160\)"


@pytest.mark.parametrize(
    "function, frame, expected",
    [
        (preprocessing_image, np.zeros((210, 160), np.uint8), RGB),
        (preprocessing_image, np.zeros((80, 80, 3), np.uint8), RGB),
        (preprocessing_image, np.zeros((210, 160, 3), np.float32), RGB),
        (preprocessing_image, [[[0, 0, 0]] * 160] * 210, RGB),
        (preprocessing_image, None, RGB),
        (active_pixels, np.zeros((210, 160, 3), np.uint8), SCREEN),
        (active_pixels, np.zeros(33_600, np.uint8), SCREEN),
        (active_pixels, np.zeros((210, 160), np.int8), SCREEN),
        (active_pixels, [[0] * 160] * 210, SCREEN),
        (active_pixels, None, SCREEN),
        (active_pixels, np.zeros((210, 320), np.uint8)[:, ::2], "contiguous"),
        (active_pixels, np.zeros((160, 210), np.uint8).T, "contiguous"),
    ],
)
def test_what_is_no_frame_is_refused(function, frame, expected):
    with pytest.raises(ValueError, match=expected):
        function(frame)
