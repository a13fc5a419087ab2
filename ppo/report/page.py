"""A page: one HTML file from the files of `browser/`, the data to show, and a strict Content-Security-Policy.

The policy allows only the page's own scripts and styles, by hash: no requests, other scripts, forms or frames. The
watch page may also connect to its own server. Content from a run appears only in the data, which is base64, and in the
title, which is escaped.
"""

import base64
import hashlib
import html
import re
from dataclasses import dataclass
from importlib import resources

MAX_BYTES = 2_000_000
_COMMON = ("data.js", "charts.js", "theme.js")
_ONE_FILE = "A single file: this page makes no requests, and its policy forbids them."


@dataclass(frozen=True)
class _Page:
    """What differs between pages, besides `browser/<name>.html`, which fills the main part of `frame.html`."""

    kind: str
    """In words, shown above the name."""
    scripts: tuple[str, ...]
    skip: str = ""
    """Skip link for keyboard users."""
    styles: tuple[str, ...] = ()
    """In addition to those of all pages."""
    connects: str = "'none'"
    """The policy's connect-src: where the page may send requests."""
    footer: str = _ONE_FILE


_PAGES = {
    "report": _Page(
        "PPO run report",
        (
            *_COMMON,
            "network.js",
            "curves.js",
            "summary.js",
            "actions.js",
            "pictures.js",
            "poke.js",
            "check.js",
            "game.js",
            "main.js",
        ),
        '<a class="skip" href="#agent">Skip to the game</a>',
    ),
    "comparison": _Page("PPO runs compared", (*_COMMON, "comparison.js")),
    "watch": _Page(
        "PPO live",
        (*_COMMON, "curves.js", "actions.js", "pictures.js", "watch.js"),
        styles=("watch.css",),
        connects="'self'",
        footer="This page connects only to the watcher that served it.",
    ),
}
_STYLES = ("uplot/uPlot.min.css", "report.css")
_PLACE = re.compile(r"<!--(\w+)-->")


def assemble(title: str, data: str, page: str = "report") -> bytes:
    """Return a page.

    Args:
        title: the window title.
        data: what the page shows, from `Pack.encode`.
        page: report (of a run), comparison (of several) or watch.
    """
    own = _PAGES[page]
    library, script = _text("uplot/uPlot.iife.min.js"), "\n".join(map(_text, own.scripts))
    style = "\n".join(map(_text, (*_STYLES, *own.styles)))
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; "
        f"connect-src {own.connects}; base-uri 'none'; form-action 'none'"
    )
    parts = {"title": html.escape(title), "policy": policy, "style": style, "library": library, "script": script}
    parts |= {"kind": own.kind, "skip": own.skip, "main": _text(f"{page}.html"), "data": data, "footer": own.footer}
    return _PLACE.sub(lambda place: parts[place[1]], _text("frame.html")).encode()


def _text(name: str) -> str:
    return (resources.files("ppo.report") / "browser" / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
