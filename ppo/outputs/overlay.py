"""An agent's value and policy while it plays, drawn beside the frames of its game.

A panel has the return so far, the value and its history, and the distribution of the action: a bar for the probability
of each category, a curve for the density of each continuous dimension. The chosen action is orange.
"""

from collections import deque
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ppo.models.decisions import Decision
from ppo.models.distributions.base import Marginal
from ppo.settings import printable

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SMALLEST_HEIGHT = 320
"""Smaller pictures are enlarged by whole factors, or text beside them would be illegible."""
_USUAL_HEIGHT = 420
_WIDTH = 260
"""Width of the panel beside a picture of the usual height."""
_MARGIN = 10
_BACKGROUND, _FAINT, _TEXT = (22, 24, 28), (58, 62, 70), (228, 230, 234)
_SAID, _CHOSEN = (92, 156, 236), (255, 160, 60)
_LINE, _TRACE, _ROW, _CURVE = 22, 60, 22, 92
"""Heights of a line of text, the value's history, a category and a density; the last two are maxima."""
_LEAST_ROW = 15
_LABEL = 118
"""Width of a category's name."""

Picture = NDArray[np.uint8]


class Overlay:
    """Buffers the frames of a step until its decision is known, and passes them on with a panel beside them."""

    def __init__(self, show: Callable[[Picture], None], action_names: Sequence[str] = ()) -> None:
        """Prepare to pass frames on.

        Args:
            show: receives RGB frames (H, W, 3), all of one size if the incoming frames are.
            action_names: names of an action's categories or dimensions.
        """
        self._show, self._names = show, [printable(name) for name in action_names]
        self._frames: list[Picture] = []
        self._values: deque[float] = deque(maxlen=_WIDTH - 2 * _MARGIN)

    def hold(self, frame: Picture) -> None:
        """Buffer an RGB frame (H, W, 3) of the current step."""
        self._frames.append(frame)

    def end_step(self, decision: Decision) -> None:
        """Pass on the frames of a step, which show the effect of its decision."""
        if decision.episode_length == 1:
            self._values.clear()
        self._values.append(decision.value)
        if not self._frames:
            return
        frames = [enlarged(frame) for frame in self._frames]
        height = len(frames[0])
        panel = _panel(decision, self._values, self._names, height)
        for frame in frames:
            self._show(np.concatenate([frame, panel], 1) if len(frame) == height else frame)
        self._frames.clear()


def enlarged(frame: Picture) -> Picture:
    """Return a small picture (H, W, 3) enlarged by a whole factor."""
    factor = -(-_SMALLEST_HEIGHT // len(frame))
    return frame.repeat(factor, 0).repeat(factor, 1) if factor > 1 else frame


def title(text: str, width: int) -> Picture:
    """Return a strip (H, width, 3) with a text as large as fits, but no larger than a panel's text."""
    size = 0.5
    while size > 0.2 and cv2.getTextSize(text, _FONT, size, 1)[0][0] > width - _MARGIN:
        size -= 0.05
    strip = np.full((_LINE, width, 3), _BACKGROUND, np.uint8)
    _write(strip, text, (_MARGIN // 2, _LINE - 7), size)
    return strip


def in_short(number: float) -> str:
    """Format a return or a value with as many digits as are worth reading."""
    text = f"{number:,.1f}" if abs(number) < 1e6 else f"{number:.3g}"
    return "0" if text == "-0.0" else text.removesuffix(".0")


def _panel(decision: Decision, values: Sequence[float], names: Sequence[str], height: int) -> Picture:
    """Return a panel of this height."""
    scale = max(1.0, height / _USUAL_HEIGHT)
    rows = round(height / scale)
    panel = np.full((rows, _WIDTH, 3), _BACKGROUND, np.uint8)
    _write(panel, f"return {in_short(decision.episode_return)}", (_MARGIN, 24), 0.6)
    _write(panel, f"step {decision.episode_length:,}", (_MARGIN, 24 + _LINE), 0.4)
    _write(panel, f"value {decision.value:.2f}", (_MARGIN, 24 + 2 * _LINE), 0.45)
    top = 30 + 2 * _LINE
    _course(panel[top : top + _TRACE, _MARGIN:-_MARGIN], values)
    _draw_marginals(panel[top + _TRACE + _MARGIN : -4], decision, names)
    if scale > 1.0:
        panel = cv2.resize(panel, (round(_WIDTH * scale), height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    return panel


def _course(area: Picture, values: Sequence[float]) -> None:
    """Draw values, one per column, scaled between the smallest and the largest."""
    area[[0, -1]] = _FAINT
    numbers = np.array(values)
    low, high = numbers.min(), numbers.max()
    rise = max(high - low, 1e-6)
    heights = (len(area) - 5) * (1.0 - (numbers - low) / rise) + 2
    points = np.stack([np.arange(len(numbers)), heights], 1).round().astype(np.int32)
    cv2.polylines(area, [points], False, _SAID, 1, cv2.LINE_AA)
    cv2.circle(area, (int(points[-1, 0]), int(points[-1, 1])), 2, _CHOSEN, -1, cv2.LINE_AA)


def _draw_marginals(area: Picture, decision: Decision, names: Sequence[str]) -> None:
    """Draw as much of a decision as there is room for, and state how much is left out."""
    pairs = list(zip(decision.marginals, decision.sent.tolist(), strict=False))
    wanted = sum(len(marginal.values) if marginal.range is None else _CURVE / _ROW for marginal, _ in pairs)
    row = max(_LEAST_ROW, min(_ROW, int(len(area) / max(wanted, 1.0))))
    curve = row * _CURVE // _ROW
    top, left_out = 0, 0
    for dimension, (marginal, chosen) in enumerate(pairs):
        if marginal.range is not None:
            if top + curve > len(area):
                left_out += 1
                continue
            name = names[dimension] if len(names) == len(pairs) else f"action {dimension}"
            _draw_density(area[top : top + curve], marginal, chosen, name)
            top += curve
            continue
        # With a single choice the names are those of its categories, otherwise those of the dimensions.
        own = names if len(pairs) == 1 and len(names) == len(marginal.values) else ()
        of = "" if len(pairs) == 1 else f"{dimension}: "
        for number, probability in enumerate(marginal.values.tolist()):
            if top + row > len(area):
                left_out += 1
                continue
            name = own[number] if own else f"{of}action {number}" if not of else f"{of}{number}"
            _draw_bar(area[top : top + row], name, probability, number == round(chosen) - marginal.start)
            top += row
    if left_out:
        area[-_LEAST_ROW:] = _BACKGROUND
        _write(area, f"and {left_out + 1} more", (_MARGIN, len(area) - 4), 0.36)


def _draw_bar(area: Picture, name: str, probability: float, is_chosen: bool) -> None:
    """Draw a category in one row."""
    colour = _CHOSEN if is_chosen else _SAID
    base = len(area) // 2 + 4
    _write(area, name, (_MARGIN, base), 0.38, _CHOSEN if is_chosen else _TEXT, width=_LABEL - _MARGIN - 4)
    room = _WIDTH - _LABEL - 44
    area[3:-3, _LABEL : _LABEL + room] = _FAINT
    area[3:-3, _LABEL : _LABEL + round(room * probability)] = colour
    _write(area, f"{100.0 * probability:.0f} %", (_LABEL + room + 6, base), 0.36)


def _draw_density(area: Picture, marginal: Marginal, chosen: float, name: str) -> None:
    """Draw a density with its name, and mark where the chosen number is in the range."""
    assert marginal.range is not None
    low, high = marginal.range
    fraction = min(1.0, max(0.0, (chosen - low) / max(high - low, 1e-9)))
    _write(area, name, (_MARGIN, 11), 0.38)
    _write(area, f"{chosen:.2f}", (_WIDTH - 50, 11), 0.36, _CHOSEN)
    graph = area[14:-4, _MARGIN:-_MARGIN]
    if len(graph) < 4:
        return
    graph[-1] = _FAINT
    height, width = graph.shape[0] - 2, graph.shape[1] - 1
    heights = marginal.values / max(float(marginal.values.max()), 1e-9)
    points = np.stack([np.linspace(0, width, len(heights)), height * (1.0 - heights)], 1).round().astype(np.int32)
    cv2.fillPoly(graph, [np.concatenate([points, [[width, height], [0, height]]]).astype(np.int32)], (38, 60, 92))
    cv2.polylines(graph, [points], False, _SAID, 1, cv2.LINE_AA)
    place = round(fraction * width)
    cv2.line(graph, (place, 0), (place, height), _CHOSEN, 1)


def _write(
    area: Picture,
    text: str,
    at: tuple[int, int],
    size: float,
    colour: tuple[int, int, int] = _TEXT,
    width: int | None = None,
) -> None:
    """Write a text, cut off at `width`."""
    while width is not None and text and cv2.getTextSize(text, _FONT, size, 1)[0][0] > width:
        text = text[:-1]
    cv2.putText(area, text, at, _FONT, size, colour, 1, cv2.LINE_AA)
