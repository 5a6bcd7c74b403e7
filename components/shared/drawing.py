"""Drawing boxes and captions into images."""

import cv2
import numpy as np

Colour = tuple[int, int, int]
"""Blue, green and red in 0..255."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DARK, _LIGHT = (0, 0, 0), (255, 255, 255)
# Brightness from which dark letters are read more easily than light ones.
_BRIGHT = 140


def draw_box(
    canvas: np.ndarray, box: np.ndarray, caption: str, colour: Colour, width: int = 2, letters: float = 0.45
) -> None:
    """Draw a box and its caption, which stays inside the image.

    Args:
        canvas: BGR, uint8 [height, width, 3]; drawn into.
        box: Corners x1, y1, x2, y2 in pixels.
        caption: Its text.
        colour: Of the lines and behind the text.
        width: Of the lines in pixels.
        letters: Size of the letters; 1 is about 22 pixels high.
    """
    x1, y1, x2, y2 = np.rint(box).astype(int).tolist()
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, width)
    (text_width, text_height), _ = cv2.getTextSize(caption, _FONT, letters, 1)
    x, y = max(min(x1, canvas.shape[1] - text_width - 4), 0), max(y1, text_height + 5)
    cv2.rectangle(canvas, (x, y - text_height - 5), (x + text_width + 4, y), colour, cv2.FILLED)
    draw_text(canvas, caption, (x + 2, y - 4), _letters_on(colour), letters)


def draw_text(canvas: np.ndarray, text: str, origin: tuple[int, int], colour: Colour, letters: float = 0.6) -> None:
    """Write a text with its lower left corner at a pixel x, y."""
    cv2.putText(canvas, text, origin, _FONT, letters, colour, 1, cv2.LINE_AA)


def _letters_on(colour: Colour) -> Colour:
    blue, green, red = colour
    return _DARK if 0.114 * blue + 0.587 * green + 0.299 * red > _BRIGHT else _LIGHT
