"""A page: the files of `browser/` in one, with what the page shows as data and a policy that forbids all else.

The policy (Content-Security-Policy) allows the page's own scripts and styles by their hashes, and nothing besides: no
request, no other script, no form, no frame. The page of a watcher may speak with the server that it comes from. What
comes from a run is in the data alone, in base64, and in the title, which is escaped.
"""

import base64
import hashlib
import html
import re
from dataclasses import dataclass
from importlib import resources

MAX_BYTES = 2_000_000
_COMMON = ("data.js", "charts.js", "theme.js")
_ONE_FILE = "One file: no request leaves this page, and its policy forbids any."


@dataclass(frozen=True)
class _Page:
    """What pages differ in, besides `browser/<name>.html`, which stands in the frame's main part."""

    kind: str
    """In words, above the name."""
    scripts: tuple[str, ...]
    skip: str = ""
    """A link past what is above, for the keyboard."""
    styles: tuple[str, ...] = ()
    """Besides those of all pages."""
    connects: str = "'none'"
    """What it may ask for anything."""
    footer: str = _ONE_FILE


_PAGES = {
    "report": _Page(
        "PPO run report",
        (
            *_COMMON,
            *("network.js", "curves.js", "summary.js", "actions.js", "pictures.js", "poke.js", "game.js", "main.js"),
        ),
        '<a class="skip" href="#agent">Skip to the game</a>',
    ),
    "comparison": _Page("PPO runs compared", (*_COMMON, "comparison.js")),
    "watch": _Page(
        "PPO live",
        (*_COMMON, "curves.js", "actions.js", "pictures.js", "watch.js"),
        styles=("watch.css",),
        connects="'self'",
        footer="This page speaks with the watcher that it comes from, and with nobody else.",
    ),
}
_STYLES = ("uplot/uPlot.min.css", "report.css")
_PLACE = re.compile(r"<!--(\w+)-->")


def assemble(title: str, data: str, page: str = "report") -> bytes:
    """Return a page.

    Args:
        title: of the window.
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
