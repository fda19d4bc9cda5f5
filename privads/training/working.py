"""The working checkpoint: one file from which an interrupted run can go on, and which nobody else may see.

It is a secret. The weights in it may owe noise, the optimizer's state is no part of what was released, and the lease
lets whoever holds it go on under the run's charge. So its mode is 0600 before its first byte, it lies outside the run
folder, and it takes its place by a rename: a writer killed at any point leaves the last checkpoint whole.

It is a safetensors file, and so never code. Its metadata hold the tree that the tensors hang in, as JSON, and a SHA-256
of tree and tensors, which finds damage (whoever may write the file could make a sum that fits). The state of a random
generator is refused with every other object: batches and noise after a resume come from fresh entropy.
"""

import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

KIND, FORMAT = "privads working checkpoint", "1"
_DRAFT = ".draft"
_DTYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    }
)


class CheckpointError(ValueError):
    """A working checkpoint that cannot be written or read; the message is one line with the remedy."""


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path``, whole or not at all, in place of an earlier checkpoint.

    state: mappings (keys: texts and whole numbers), lists and tuples, in any depth, of dense tensors, numbers, texts,
    truth values and None, such as an optimizer's ``state_dict()``; anything else is refused. Each tensor is stored by
    itself, also where two share their memory.

    Costs one pass over the tensors for the checksum and one to the disk. In memory it adds nothing for contiguous
    tensors of the CPU; those of another device, views with gaps and tensors that share memory are copied first. On the
    disk there are two checkpoints while the new one is written.
    """
    check_place(path)
    tensors: list[Tensor] = []
    tree = json.dumps(_packed(state, "state", tensors), allow_nan=False)
    own = _apart(tensors)
    metadata = {"kind": KIND, "format": FORMAT, "state": tree, "sha256": _checksum(tree, own)}
    # The library makes files of its own choosing: in a folder of mode 0700 their mode cannot matter.
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-", suffix=_DRAFT))
    try:
        file = draft / path.name
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        save_file({str(number): tensor for number, tensor in enumerate(own)}, file, metadata=metadata)
        file.chmod(0o600)
        _sync(file)
        file.replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read(path: Path) -> dict[str, Any]:
    """Returns the state that `write` was given, on the CPU; mappings come back as dicts.

    The tensors are private mappings of the file: they may be written to, and take memory only as they are touched. The
    checksum reads all of them once.
    """
    _check_secret(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != KIND:
                raise CheckpointError(f"{path} is not a working checkpoint of privads: give the path of one")
            if metadata["format"] != FORMAT:
                raise CheckpointError(
                    f"{path} has format {metadata['format']} and this version of privads reads {FORMAT}: resume it "
                    "with the version that wrote it"
                )
            tensors = [file.get_tensor(str(number)) for number in range(len(file.keys()))]
    except (SafetensorError, KeyError, OSError):
        raise _damaged(path) from None
    tree = metadata.get("state", "")
    if metadata.get("sha256") != _checksum(tree, tensors):
        raise _damaged(path)
    state: dict[str, Any] = _unpacked(json.loads(tree), tensors)
    return state


def remove(path: Path) -> None:
    """Remove the checkpoint, if there is one, and what writers killed on the way left beside it."""
    _refuse_link(path)
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        for draft in path.parent.iterdir():
            if draft.name.startswith(f".{path.name}-") and draft.name.endswith(_DRAFT):
                shutil.rmtree(draft)
        _sync(path.parent)


def check_outside(path: Path, run_folder: Path) -> None:
    """Refuse a checkpoint inside the run folder: that folder is handed out, and the checkpoint is a secret."""
    if path.resolve().is_relative_to(run_folder.resolve()):
        raise CheckpointError(
            f"the working checkpoint {path} is a secret and cannot lie in the run folder {run_folder}, which is handed "
            "out: choose a path outside it"
        )


def check_place(path: Path) -> None:
    """Refuse a path where a secret cannot be kept or something else lies; makes its folder, for its owner alone.

    Call it before anything is charged.
    """
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        found = path.parent.stat()
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CheckpointError(
            f"cannot write the working checkpoint {path} ({error.strerror}): choose another path"
        ) from None
    if found.st_uid not in (os.geteuid(), 0):
        raise CheckpointError(f"{path.parent} belongs to another user, who could exchange the checkpoint: choose yours")
    if found.st_mode & 0o022:
        raise CheckpointError(
            f"others can write to {path.parent} and exchange the checkpoint: chmod go-w {path.parent}, or choose "
            "another folder"
        )
    _refuse_link(path)
    if path.exists() and not _is_ours(path):
        raise CheckpointError(f"{path} is in the way of the working checkpoint and holds something else: move it")


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise CheckpointError(f"{path} is a symbolic link: give the path of the working checkpoint itself")


def _check_secret(path: Path) -> None:
    """Refuse to read what others may have read or written."""
    _refuse_link(path)
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot read the working checkpoint {path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is not a file: give the path of the working checkpoint")
    if found.st_uid != os.geteuid():
        raise CheckpointError(f"{path} belongs to another user: a run is resumed by the user who started it")
    if found.st_mode & 0o077:
        raise CheckpointError(
            f"others can open {path}, which is a secret (mode {stat.S_IMODE(found.st_mode):04o}): find out who did, "
            f"then chmod 600 {path}"
        )


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("kind") == KIND
    except (SafetensorError, OSError):
        return False


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or no working checkpoint: it cannot be resumed; start the run anew")


# State to tree and back: JSON lists are lists, and a JSON object has one key that says what it stands for.


def _packed(value: Any, where: str, tensors: list[Tensor]) -> Any:
    """Returns ``value`` as JSON, with its tensors put into ``tensors``. where: what errors call it."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, Tensor):
        tensors.append(_checked(value, where))
        return {"tensor": len(tensors) - 1}
    if kind in (list, tuple):
        items = [_packed(one, f"{where}[{number}]", tensors) for number, one in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if isinstance(value, Mapping):
        unknown = [key for key in value if type(key) not in (int, str)]
        if unknown:
            raise CheckpointError(f"{where} has the key {unknown[0]!r}: a checkpoint's keys are texts or whole numbers")
        return {"mapping": [[key, _packed(one, f"{where}[{key!r}]", tensors)] for key, one in value.items()]}
    raise CheckpointError(
        f"{where} is of type {kind.__module__}.{kind.__qualname__}: a checkpoint holds tensors, numbers, texts, lists "
        "and mappings; leave it out"
    )


def _unpacked(tree: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpacked(one, tensors) for one in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    match kind:
        case "tensor":
            return tensors[value]
        case "float":
            return float(value)
        case "tuple":
            return tuple(_unpacked(one, tensors) for one in value)
    return {key: _unpacked(one, tensors) for key, one in value}


def _checked(tensor: Tensor, where: str) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
        raise CheckpointError(
            f"{where} is a tensor of {tensor.dtype}, {tensor.layout} on {tensor.device}: a checkpoint holds dense "
            "tensors of real numbers, with their values"
        )
    return tensor.detach()


def _apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the tensors as the file holds them: contiguous, on the CPU, and none in another's memory."""
    own: list[Tensor] = []
    places: set[int] = set()
    for tensor in tensors:
        plain = tensor.cpu().contiguous()
        plain = plain.clone() if plain.untyped_storage().data_ptr() in places else plain
        places.add(plain.untyped_storage().data_ptr())
        own.append(plain)
    return own


def _checksum(tree: str, tensors: Sequence[Tensor]) -> str:
    """Returns the SHA-256 of the tree and of each tensor's type, shape and bytes."""
    total = hashlib.sha256(tree.encode())
    for tensor in tensors:
        total.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
