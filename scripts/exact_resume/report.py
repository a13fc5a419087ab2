"""The report of the check: a section for each part, and the numbers as JSON."""

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from ppo.versions import version_of

TITLE = "# Exact resume"
HEADINGS = {"worlds": "Runs in every family of worlds", "games": "Saved states of every Atari game"}
SOFTWARE = ("torch", "gymnasium", "ale-py", "mujoco", "box2d", "minigrid", "numpy", "opencv-python-headless")


def processor_minutes() -> float:
    """Return the processor minutes that this process and its children have used so far."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) / 60


def conclude(
    part: str, rows: Sequence[Any], inexact: Sequence[str], minutes: float, lines: Sequence[str], output: Path | None
) -> bool:
    """Print a part's result and write it to the report; return whether everything was exact.

    `minutes` are the processor minutes used before the part began.
    """
    print(f"{len(rows) - len(inexact)} of {len(rows)} {part} are exact; not exact: {inexact}", flush=True)
    if output is not None:
        minutes = processor_minutes() - minutes
        versions = {"Python": platform.python_version(), **{name: version_of(name) for name in SOFTWARE}}
        facts = {
            "command": f"python {' '.join(sys.argv)}",
            "date": str(date.today()),
            "commit": _commit(),
            "processor_minutes": minutes,
            "versions": versions,
        }
        software = ", ".join(f"{name} {version}" for name, version in versions.items())
        about = (
            f"`{facts['command']}`, {facts['date']}, commit {facts['commit']}, {minutes:.1f} minutes of processor time "
            f"on {os.cpu_count()} cores of {platform.machine()}; {software}."
        )
        write_section(output, HEADINGS[part], [about, "", *lines])
        numbers = output.with_suffix(".json")
        content = json.loads(numbers.read_text()) if numbers.exists() else {}
        content[part] = {**facts, "rows": [asdict(row) for row in rows]}
        numbers.write_text(json.dumps(content, indent=1) + "\n")
    return not inexact


def _commit() -> str:
    """Return the commit of the checked code, marked if ppo/ or scripts/ differ from it; the report may differ."""
    commit = subprocess.check_output(["git", "describe", "--always"], text=True).strip()
    is_clean = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "ppo", "scripts"], check=False).returncode == 0
    return commit if is_clean else f"{commit}-dirty"


def write_section(report: Path, heading: str, lines: Sequence[str]) -> None:
    """Replace the section with this heading, or append it."""
    text = report.read_text() if report.exists() else f"{TITLE}\n"
    title, *sections = text.split("\n## ")
    contents = {section.partition("\n")[0]: section for section in sections}
    contents[heading] = "\n".join([heading, "", *lines, ""])
    report.write_text("\n## ".join([title, *contents.values()]))
