"""The part of a page that a script writes: the text between two marks."""

from pathlib import Path


def write_table(page: Path, table: str, name: str = "table") -> None:
    """Replace the text between the marks of a page.

    Raises:
        SystemExit: the page lacks the marks.
    """
    opening, closing = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, begin, rest = page.read_text().partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise SystemExit(f"{page} must have the lines {opening.strip()} and {closing.strip()}")
    page.write_text(f"{before}{begin}{table}\n{end}{after}")
