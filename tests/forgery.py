"""Forges checkpoints: changes a file and recomputes every hash, since none is secret."""

import hashlib
import json
from pathlib import Path

MODEL, TRAINING, MANIFEST = "model.safetensors", "training.safetensors", "manifest.json"


def sealed(data):
    """Return a manifest's data with the sha256 of the rest of it."""
    rest = {key: value for key, value in data.items() if key != "manifest_sha256"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "manifest_sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def edit_manifest(folder, change):
    """Let `change(data)` alter a manifest in place and make its hash fit."""
    path = Path(folder) / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(sealed(data)))


def replace_file(folder, name, content):
    """Replace a checkpoint's file and make the hashes fit."""
    (Path(folder) / name).write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(folder, lambda data: data["files"].update({name: entry}))


def tensor_file(header, data=b""):
    """Return a safetensors file with this header, a JSON value or its bytes."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def taken_apart(content):
    """Return the header and the data of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def edit_tensors(folder, name, change):
    """Let `change(header, data)` alter a checkpoint's tensors, data being a bytearray, and make the hashes fit."""
    header, data = taken_apart((Path(folder) / name).read_bytes())
    changed = bytearray(data)
    change(header, changed)
    replace_file(folder, name, tensor_file(header, bytes(changed)))


def overwrite(tensor, start, content):
    """Return a change that writes bytes into a tensor, from one of its bytes on."""

    def change(header, data):
        begin, end = header[tensor]["data_offsets"]
        assert start >= 0 and begin + start + len(content) <= end
        data[begin + start : begin + start + len(content)] = content

    return change
