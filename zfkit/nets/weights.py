"""Weights in files: safetensors in and out, with provenance; of checkpoints from outside no code is ever run."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import as_path
from ..checksums import CHECKSUM, sealed
from ..errors import ModelError
from ..files import write_whole

Provenance = dict[str, Any]  # architecture, data, recipe, accuracy, ...: whatever JSON holds

KEY = "zfkit"  # where in the file's metadata the provenance lies


def read_provenance(path: str | Path) -> Provenance:
    """Provenance of a file that zfkit wrote, reading its header only.

    Raises ModelError for a missing, damaged or pickled file, or one without provenance.
    """
    path = as_path(path)
    return _provenance(path, _read(path, names=())[1])


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], Provenance]:
    """Tensors (as float32, on the CPU) and provenance of a safetensors file that zfkit wrote.

    Raises ModelError for a missing, damaged or pickled file, one without provenance, or one that holds
    values that are not finite.
    """
    path = as_path(path)
    tensors, metadata = _read(path)
    return _finite(path, tensors), _provenance(path, metadata)


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of any file of weights by name: safetensors, or a checkpoint of torch, of which no code is run.

    Of a checkpoint that holds other things, too, what lies under "state_dict", "model" or the like.

    Raises ModelError for a file that is missing, damaged or holds anything but weights, and for values that are not
    finite.
    """
    path = as_path(path)
    if path.suffix == ".safetensors":
        state: Any = _read(path)[0]
    elif not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}; check the path")
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # whatever torch raises for what is no checkpoint
            raise ModelError(
                f"{path.name} is damaged, or holds more than weights, which would have to be run to be read; where you "
                "trust it, load it and write its weights alone: torch.save(net.state_dict(), 'weights.pt')"
            ) from None
    for key in ("state_dict", "model_state_dict", "model", "net", "weights"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = (
        {str(k): t for k, t in state.items() if isinstance(t, Tensor)} if isinstance(state, Mapping) else {}
    )
    if not tensors:
        keys = (
            f"a dictionary with {', '.join(map(str, state))}"
            if isinstance(state, Mapping)
            else type(state).__name__
        )
        raise ModelError(f"{path.name} holds no weights by name but {keys:.200}")
    return _finite(path, tensors)


def save_weights(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    provenance: Provenance,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write tensors with their provenance, by default in half precision; the file appears whole or not at all.

    Raises ModelError, and writes nothing, where a value is not finite in `dtype`.
    """
    from safetensors.torch import save_file

    path = as_path(path)
    kept = {name: t.detach().to("cpu", dtype).contiguous() for name, t in tensors.items()}
    lost = [name for name, t in kept.items() if not torch.isfinite(t).all()]
    if lost:
        raise ModelError(
            f"{', '.join(lost)} hold values that are not finite in {str(dtype).removeprefix('torch.')}: nothing was "
            "written; check the weights, or save them with dtype=torch.float32"
        )
    metadata = sealed(kept, {KEY: json.dumps(provenance)})
    write_whole(path, lambda part: save_file(kept, part, metadata))
    return path


def _finite(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    broken = [name for name, t in tensors.items() if not torch.isfinite(t).all()]
    if broken:
        raise ModelError(f"{path.name}: {', '.join(broken)} hold NaN or infinite values; train it again")
    return tensors


def _read(path: Path, names: Iterable[str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of these names, None for all, and the file's metadata; floating-point numbers in float32."""
    from safetensors import SafetensorError, safe_open

    _check_is_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            # Copies, as the file's own are mapped from the disk.
            tensors = {n: file.get_tensor(n).clone() for n in (file.keys() if names is None else names)}
        checksum = metadata.pop(CHECKSUM, None)  # others' files have none
        if names is None and checksum not in (None, sealed(tensors, metadata)[CHECKSUM]):
            raise OSError("it is not as zfkit wrote it")
        return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}, metadata
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path.name} is damaged ({error}); download or copy it again") from None


def _provenance(path: Path, metadata: Mapping[str, str]) -> Provenance:
    try:
        provenance: Provenance = json.loads(metadata[KEY])
        return provenance
    except (KeyError, ValueError):
        raise ModelError(
            f"{path.name} does not say which network it belongs to: it was not written by zfkit. {_how_to_load(path)}"
        ) from None


def _how_to_load(path: Path) -> str:
    given = f"weights={str(path)!r}"
    return (
        f"Name the network: zfkit.load_model('torchvision:resnet18', {given}), or with a function of yours that makes "
        f"it, zfkit.load_model('my_module.py:make_net', {given}, mean=..., scale=..., input_size=...)"
    )


def _check_is_safetensors(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}; check the path")
    with path.open("rb") as file:
        head = file.read(9)
    # The format first: the header's length may happen to begin with a pickle's byte.
    length = struct.unpack("<Q", head[:8])[0] if len(head) == 9 else -1
    if head[8:] == b"{" and 0 < length <= path.stat().st_size - 8:
        return
    if head[:2] == b"PK" or head[:1] == b"\x80":
        raise ModelError(
            f"{path.name} is a checkpoint that does not say which network it belongs to. {_how_to_load(path)}"
        )
    raise ModelError(
        f"{path.name} is no checkpoint: it is not in safetensors format, or it is cut short; download or copy "
        "it again"
    )
