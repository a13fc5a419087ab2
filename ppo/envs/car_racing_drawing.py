"""The pictures of CarRacing: pixel for pixel those that Gymnasium draws, in a fraction of the time and only on request.

Gymnasium rotates and draws some 700 polygons in Python after every frame, on 1000x800 pixels that are then shrunk: to
96x96 for the agent, to 600x400 for people. Nothing in its physics or rewards reads the picture. Here the polygons of a
track are one array, rotated in one operation, and only those on the screen are drawn, by the same calls in the same
order; Gymnasium draws the car and the indicators. Pictures are drawn upside down. pygame shrinks the width before the
height, so they are flipped between the two passes, when they are already narrow. Tests compare whole episodes. Pixel
values depend on the version of pygame, here as in Gymnasium.
"""

import functools
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_CORNERS_OF_A_PATCH = np.array([(1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
_PATCHES = range(-20, 20, 2)
# An edge is drawn at most one pixel beyond its corners.
_MARGIN = 2
# Rows at the bottom that the indicator bar covers.
_BAR_ROWS = 100
# Above these speeds the indicators extend beyond the bar; no car has been seen to come near them.
_FASTEST, _FASTEST_WHEEL = 195.0, 390.0
_TEXT_SIZE, _TEXT_CENTRE = 42, (60, 750)
# Bits of a pixel: blue, green, red and a byte without meaning.
_DEPTH = 32
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


class Drawing:
    """Draws the current frame of a CarRacing world, in place of the world itself."""

    def __init__(self, world: Any) -> None:
        """Take over an unwrapped world's drawing: `state_pixels` on request only; `human` is drawn as before."""
        import pygame
        from gymnasium.envs.box2d import car_racing
        from pygame import gfxdraw

        self._pygame, self._gfxdraw, self._constants = pygame, gfxdraw, car_racing
        pygame.font.init()
        font = pygame.font.Font(pygame.font.get_default_font(), _TEXT_SIZE)
        self._text = functools.lru_cache(2048)(lambda text: font.render(text, True, _WHITE, _BLACK))
        width, height = car_racing.WINDOW_W, car_racing.WINDOW_H
        self._canvas, self._panel = (pygame.Surface((width, height), depth=_DEPTH) for _ in range(2))
        self._above = self._canvas.subsurface((0, _BAR_ROWS, width, height - _BAR_ROWS))
        self._bar = self._panel.subsurface((0, height - _BAR_ROWS, width, _BAR_ROWS))
        self._narrow_surfaces = functools.cache(self._make_narrow_surfaces)
        # (2, 4, 400): x and y of the four corners of every patch of grass.
        first = car_racing.GRASS_DIM * np.array([(x, y) for x in _PATCHES for y in _PATCHES], np.float64)
        self._grass = first.T[:, None] + car_racing.GRASS_DIM * _CORNERS_OF_A_PATCH.T[:, :, None]
        self._corners = self._grass
        self._road: list[Any] | None = None
        self._world = world
        self._draw_otherwise = world._render
        self._return = 0.0
        world._render = self._render

    def draw(self) -> NDArray[np.uint8]:
        """Return the picture of the current frame for the agent, (96, 96, 3) RGB."""
        size = self._constants.STATE_W, self._constants.STATE_H
        return self._draw(size, self._return, with_skid_marks=False)

    def draw_for_people(self) -> NDArray[np.uint8]:
        """Return the picture of the current frame in the render mode `rgb_array`, (400, 600, 3) RGB."""
        size = self._constants.VIDEO_W, self._constants.VIDEO_H
        return self._draw(size, self._world.reward, with_skid_marks=True)

    def _draw(self, size: tuple[int, int], shown_return: float, *, with_skid_marks: bool) -> NDArray[np.uint8]:
        world, pygame, constants = self._world, self._pygame, self._constants
        if world.road_poly is not self._road:  # a new episode
            self._take_track()
        angle, (x, y) = -world.car.hull.angle, world.car.hull.position
        # The camera zooms in during the first second.
        zoom = constants.SCALE * 0.1 * max(1 - world.t, 0) + constants.ZOOM * constants.SCALE * min(world.t, 1)
        moved = pygame.math.Vector2(-x * zoom, -y * zoom).rotate_rad(angle)
        shift = (constants.WINDOW_W / 2 + moved.x, constants.WINDOW_H / 4 + moved.y)
        world.surf = self._canvas
        self._draw_background(max(abs(x), abs(y)), zoom, shift, angle)
        self._draw_patches_and_road(zoom, shift, angle)
        world.car.draw(self._canvas, zoom, shift, angle, with_skid_marks)
        scaled = pygame.transform.smoothscale(self._narrowed(size[0], shown_return), size)
        pixels = np.frombuffer(scaled.get_buffer(), np.uint8).reshape(size[1], size[0], 4)
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB), np.uint8)

    def _narrowed(self, width: int, shown_return: float) -> Any:
        """Return a surface: the canvas, flipped upright, with indicators, shrunk to the width of a picture."""
        world, transform = self._world, self._pygame.transform
        wheels = max(abs(wheel.omega) for wheel in world.car.wheels)
        is_in_bar = wheels < _FASTEST_WHEEL and world.car.hull.linearVelocity.length < _FASTEST
        world.surf = self._panel if is_in_bar else transform.flip(self._canvas, False, True)
        world._render_indicators(self._constants.WINDOW_W, self._constants.WINDOW_H)
        text = self._text(f"{shown_return:04.0f}")
        world.surf.blit(text, text.get_rect(center=_TEXT_CENTRE))
        narrow, narrow_above, narrow_bar = self._narrow_surfaces(width)
        if not is_in_bar:
            return transform.smoothscale(world.surf, narrow.get_size())
        transform.smoothscale(self._above, narrow_above.get_size(), narrow_above)
        transform.smoothscale(self._bar, narrow_bar.get_size(), narrow_bar)
        narrow.blit(transform.flip(narrow_above, False, True), (0, 0))
        return narrow

    def _make_narrow_surfaces(self, width: int) -> tuple[Any, Any, Any]:
        """Return surfaces of a width: for the whole picture, for what is above the bar, and the first one's bar."""
        upper, bar = self._above.get_height(), self._bar.get_height()
        whole, above = (self._pygame.Surface((width, height), depth=_DEPTH) for height in (upper + bar, upper))
        return whole, above, whole.subsurface((0, upper, width, bar))

    def _render(self, mode: str) -> Any:
        """Stand in for the world's `_render`; the agent's picture shows the return before the frame's cost."""
        if mode == "rgb_array":
            return self.draw_for_people()
        if mode != "state_pixels":
            return self._draw_otherwise(mode)
        self._return = self._world.reward
        return None

    def _take_track(self) -> None:
        self._road = self._world.road_poly
        road = np.array([corners for corners, _ in self._road], np.float64)
        self._corners = np.concatenate([self._grass, road.transpose(2, 1, 0)], axis=2)

    def _draw_background(self, distance: float, zoom: float, shift: tuple[float, float], angle: float) -> None:
        """Fill the canvas if the field is sure to cover it; otherwise draw the field on black.

        Args:
            distance: the car's distance from the centre of the field, along the axis where it is larger.
            zoom: pixels per unit of length.
            shift: position of the centre of the field, in pixels.
            angle: rotation of the field, in radians.
        """
        world, constants, colour = self._world, self._constants, self._world.bg_color
        farthest = np.hypot(constants.WINDOW_W / 2, constants.WINDOW_H * 3 / 4) + _MARGIN
        if distance + farthest / zoom < constants.PLAYFIELD:
            self._above.fill([int(part) for part in colour])
            return
        self._above.fill(_BLACK)
        bound = constants.PLAYFIELD
        field = [(bound, bound), (bound, -bound), (-bound, -bound), (-bound, bound)]
        world._draw_colored_polygon(self._canvas, field, colour, zoom, shift, angle, clip=False)

    def _draw_patches_and_road(self, zoom: float, shift: tuple[float, float], angle: float) -> None:
        constants = self._constants
        x, y = self._corners
        # As pygame rotates a vector, including its special case of quarter turns.
        cosine, sine = self._pygame.math.Vector2(1.0, 0.0).rotate_rad(angle)
        pixels = np.stack([(cosine * x - sine * y) * zoom + shift[0], (sine * x + cosine * y) * zoom + shift[1]])
        least, greatest = pixels.min(1), pixels.max(1)
        is_seen = (greatest[0] >= -_MARGIN) & (least[0] <= constants.WINDOW_W + _MARGIN)
        # The canvas is upside down, so the bar hides its first rows.
        is_seen &= (greatest[1] >= _BAR_ROWS - _MARGIN) & (least[1] <= constants.WINDOW_H + _MARGIN)
        seen = np.flatnonzero(is_seen)
        polygons = pixels[:, :, seen].transpose(2, 1, 0).astype(np.int64).tolist()
        num_patches = self._grass.shape[2]
        grass, road = [int(part) for part in self._world.grass_color], self._world.road_poly
        canvas, edge, fill = self._canvas, self._gfxdraw.aapolygon, self._gfxdraw.filled_polygon
        for polygon, number in zip(polygons, seen.tolist(), strict=True):
            # A tile changes its colour when it is touched.
            colour = grass if number < num_patches else [int(part) for part in road[number - num_patches][1]]
            edge(canvas, polygon, colour)
            fill(canvas, polygon, colour)
