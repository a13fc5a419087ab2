"""The part of a page that a script writes: what stands between two marks."""

from pathlib import Path

_BEGIN, _END = "<!-- table -->\n", "<!-- end of table -->\n"


def write_table(page: Path, table: str) -> None:
    """Replace what stands between the marks of a page.

    Raises:
        SystemExit: it has no marks.
    """
    before, begin, rest = page.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise SystemExit(f"{page} must have the lines {_BEGIN.strip()} and {_END.strip()}")
    page.write_text(f"{before}{begin}{table}\n{end}{after}")
