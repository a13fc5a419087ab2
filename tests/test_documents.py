"""Documents name files, headings, flags and layers that exist."""

import re
from pathlib import Path

import pytest

from ppo.command_line import setting_types
from tests.test_layers import LAYERS, NAMES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/history").glob("*.md")])
# Of scripts, of other programs, and an old name that is still taken.
OTHER_FLAGS = {
    *("all", "bind-to", "cpus", "deterministic", "fast", "folder", "help", "help_all", "hostfile", "init", "protocol"),
    *(
        "inplace",
        "kills",
        "logdir",
        "max_restarts",
        "mpi",
        "output",
        "quick",
        "ranks",
        "new_flags",
        "repeats",
        "root",
        "seconds",
        "seed",
    ),
    *("map_by", "shm_size", "slow", "user", "version", "warm_up_seconds", "write"),
    *("index-url", "no-deps", "ranks"),
}


def for_each(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=[str(page.relative_to(ROOT)) for page in pages])


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@for_each(PAGES)
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(link)
    assert broken == []


@for_each([page for page in PAGES if page.name != "CHANGELOG.md"])  # which names flags that are gone
def test_every_flag_exists(page: Path) -> None:
    known = {*setting_types(), *OTHER_FLAGS}
    known |= {f"no_{name}" for name in setting_types()}
    flags = {flag.replace("-", "_") for flag in re.findall(r"(?<![\w-])--([a-z][a-z_0-9-]*[a-z0-9])", page.read_text())}
    assert flags - {name.replace("-", "_") for name in known} == set()


def test_the_layers_are_those_of_the_test() -> None:
    text = (ROOT / "docs/design.md").read_text()
    (block,) = re.findall(r"^    settings families .*\n(?:    .*\n)*?    .*__main__$", text, re.MULTILINE)
    there_are = {file.split("/")[0].removesuffix(".py") for file in NAMES}
    assert block.split() == [layer for layer in LAYERS if layer in there_are]


def test_the_image_is_made_of_files_that_exist() -> None:
    lines = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(lines) > 3
    assert [source for line in lines for source in line.split() if not (ROOT / source).exists()] == []
