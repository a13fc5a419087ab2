"""Copy the policy of a checkpoint to the shipped agents, without what only a resume needs.

python scripts/ship_agent.py checkpoints/PongNoFrameskip-v4/step_000000632832
"""

import sys
import tempfile
from pathlib import Path

from ppo.config import SHIPPED, default_model_name
from ppo.outputs import checkpoint


def main(source: Path) -> None:
    """Write checkpoints/pretrained/<environment>, replacing nothing."""
    manifest = checkpoint.read_manifest(source)
    model = checkpoint.read_tensors(source, manifest, checkpoint.MODEL_FILE)
    target = Path("checkpoints") / SHIPPED / default_model_name(manifest.config.run.env_name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = checkpoint.write_checkpoint(Path(scratch), manifest.config, manifest.counters, model, None)
        folder.rename(target)
    print(f"wrote {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
