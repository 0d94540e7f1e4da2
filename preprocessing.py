"""A Pong frame -> the network's input.

`preprocessing_image` is the chapter's function and the specification: an RGB frame becomes a vector
of 6,400 zeros and ones. The actors use `active_pixels`. It gives the same vector as the sorted
indices of its ones, from the emulator's palette-index screen. Reading that screen takes 1 us, and
reading the RGB screen 20 us. Only 20 to 40 of the 6,400 pixels are ones.
"""

import numpy as np

SCREEN_SHAPE = (210, 160)  # rows, columns of the Atari screen
INPUT_SIZE = 80 * 80
# the court between the walls, every second row and column
COURT = slice(35, 195, 2), slice(None, None, 2)

# The palette indices whose red is 0 (black), 144 or 109 (the two backgrounds): the colours the
# chapter erases. 1 is another black; Pong itself shows even indices only.
ERASED_COLOURS = (0, 1, 34, 48, 128, 144, 160, 176, 192, 206, 228)
IS_INK = np.array([index not in ERASED_COLOURS for index in range(256)])

# During play nearly all of the court is colour 34. So 8 screen pixels, 4 of the network's, are
# compared with it at once. Only the few words that differ are examined pixel by pixel.
EMPTY_WORD = np.uint64(0x2222222222222222)
# [1600, 4]: word of the court -> its pixels of the input
PIXELS_OF_WORD = np.arange(INPUT_SIZE).reshape(-1, 4)
# [6400]: pixel of the input -> place on the screen
SCREEN_ADDRESS = np.arange(210 * 160).reshape(SCREEN_SHAPE)[COURT].ravel()


def preprocessing_image(obs):
    """Transform one RGB frame as the chapter does: the specification of `active_pixels`.

    Args:
        obs: [210, 160, 3] uint8, as Gymnasium returns it. It is not written to.

    Returns:
        [6400] float64 of 0 and 1: the red channel of the court, halved in both directions,
        background 0, the rest 1.

    Raises:
        ValueError: the frame has another shape or dtype.
    """
    _check(obs, SCREEN_SHAPE + (3,))
    red = obs[COURT][:, :, 0]
    return ((red != 0) & (red != 144) & (red != 109)).astype("float").ravel()


def active_pixels(screen):
    """Find the ones of `preprocessing_image` in the palette-index screen of the same frame.

    The actors play with this function.

    Args:
        screen: [210, 160] uint8, C-contiguous, as `ALEInterface.getScreen` fills it.

    Returns:
        [k] int64, sorted: the indices at which `preprocessing_image` of the same frame is 1.

    Raises:
        ValueError: the screen has another shape or dtype, or is not contiguous.
    """
    _check(screen, SCREEN_SHAPE)
    if not screen.flags.c_contiguous:
        raise ValueError("a Pong screen must be C-contiguous")
    words = screen.view(np.uint64)[COURT[0]] != EMPTY_WORD  # [80, 20]
    pixels = PIXELS_OF_WORD.take(words.ravel().nonzero()[0], 0).ravel()
    return pixels[IS_INK.take(screen.ravel().take(SCREEN_ADDRESS.take(pixels)))]


def _check(frame, shape):
    if not isinstance(frame, np.ndarray):
        raise ValueError(
            f"a Pong frame must be an array, uint8 {shape}, not {type(frame).__name__}"
        )
    if frame.shape != shape or frame.dtype != np.uint8:
        raise ValueError(f"a Pong frame must be uint8 {shape}, not {frame.dtype} {frame.shape}")
