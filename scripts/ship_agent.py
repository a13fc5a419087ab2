"""Copy the policy of a checkpoint to the shipped agents, without what only a resume needs.

python scripts/ship_agent.py checkpoints/PongNoFrameskip-v4/step_000000632832
"""

import sys
from dataclasses import replace
from pathlib import Path

from ppo.config import SHIPPED, default_model_name
from ppo.outputs import checkpoint
from ppo.outputs.manifest import MODEL_FILE, encode_manifest
from ppo.outputs.whole_folder import write_folder


def main(source: Path) -> None:
    """Write checkpoints/pretrained/<environment>, replacing nothing.

    The weights and what is said of them stay as the training wrote them.
    """
    manifest = checkpoint.verify(source)
    target = Path("checkpoints") / SHIPPED / default_model_name(manifest.config.run.env_name)
    if target.exists():
        sys.exit(f"{target} exists; move it away first")
    policy_only = replace(manifest, files={MODEL_FILE: manifest.files[MODEL_FILE]})
    contents = {MODEL_FILE: (source / MODEL_FILE).read_bytes(), checkpoint.MANIFEST_FILE: encode_manifest(policy_only)}
    write_folder(target, contents)
    checkpoint.verify(target)
    print(f"wrote {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
