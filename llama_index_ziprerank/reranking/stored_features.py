"""Vision features as a cache keeps them: smaller types, one file a page, of which single rows can be read.

Letters: P visual tokens of a page, K deepstack layers, D width of the language model, R rows asked for, G numbers that
share a scale.
"""

import logging
import math
import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llama_index_ziprerank.reranking.features import PageFeatures
from llama_index_ziprerank.reranking.inputs import Grid

StoredType = Literal["float32", "bfloat16", "float16", "int8"]
"""``"int8"``: how far a row lies from the page's mean row; every `GROUP` numbers of it have a scale of their own, their
largest number divided by 127. The mean holds most of what visual tokens are (seven tenths with nano), and is exact."""

FORMAT = "ziprerank-features-1"
"""Changes when older files can no longer be read and their shapes do not show it; unread ones are written again."""

GROUP = 32
"""Few enough that one large number of a row does not take the precision of all others (as ggml's Q8_0 has it)."""

_SCALE = torch.bfloat16  # two bytes, and the range of float32

_MEAN = torch.float32

TORCH_TYPES: dict[StoredType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}

_log = logging.getLogger(__name__)


def check_stored_type(name: str) -> StoredType:
    """Return the type of this name, or raise ValueError."""
    for known in TORCH_TYPES:
        if known == name:
            return known
    raise ValueError(f"Features are stored as {', '.join(TORCH_TYPES)}, got {name!r}.")


@dataclass(frozen=True)
class FeatureShape:
    """What the features of one checkpoint look like."""

    width: int
    """D."""
    layers: int
    """K."""
    merge: int
    """A visual token is ``merge**2`` patches."""

    def tokens(self, grid: Grid) -> int:
        """Return P of a page."""
        return grid[0] * grid[1] * grid[2] // self.merge**2

    def stored_bytes(self, tokens: int, stored: StoredType) -> int:
        """Return how many bytes the features of so many visual tokens take, on disk or in memory."""
        row = self.width * TORCH_TYPES[stored].itemsize
        if stored != "int8":
            return tokens * (1 + self.layers) * row
        scales = self.width // _group(self.width) * _SCALE.itemsize
        return (1 + self.layers) * (tokens * (row + scales) + self.width * _MEAN.itemsize)


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows of features in a stored type."""

    values: torch.Tensor  # (P, ..., D) stored type
    scales: torch.Tensor | None = None  # (P, ..., D / G) bfloat16, of int8 alone
    mean: torch.Tensor | None = None  # (..., D) float32, of int8 alone

    @classmethod
    def pack(cls, rows: torch.Tensor, stored: StoredType) -> "StoredRows":
        """Convert (P, ..., D) features to memory of their own. float16 holds ±65,504: larger numbers become that."""
        kind = TORCH_TYPES[stored]
        if kind != torch.int8:
            values = rows.to(kind, copy=True).contiguous()
            limit = torch.finfo(kind).max
            if torch.finfo(rows.dtype).max > limit:
                values.clamp_(-limit, limit)  # in the stored type: bfloat16 would round the limit itself upwards
            return cls(values)
        mean = rows.to(_MEAN).mean(dim=0)  # (..., D)
        groups = (rows - mean).unflatten(-1, (-1, _group(rows.shape[-1])))  # (P, ..., D / G, G)
        scales = (groups.abs().amax(dim=-1) / 127).clamp_min(torch.finfo(_SCALE).tiny).to(_SCALE)
        values = (groups / scales[..., None].float()).round().clamp(-127, 127)
        return cls(values.flatten(-2).to(kind), scales, mean)

    def read(self, dtype: torch.dtype, device: torch.device, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Convert back, all rows or these (R,) alone; of what lies on disk nothing else is read."""
        values, scales = self.values, self.scales
        if rows is not None:
            rows = rows.to(values.device)
            values, scales = values[rows], None if scales is None else scales[rows]
        if scales is None or self.mean is None:
            return values.to(device, dtype)
        groups = values.to(device).unflatten(-1, (scales.shape[-1], -1))
        apart = (groups * scales.to(device, _MEAN)[..., None]).flatten(-2)
        return apart.add_(self.mean.to(device)).to(dtype)

    def to(self, device: torch.device) -> "StoredRows":
        """Move to a device; what is there already stays as it is, on disk too."""
        scales, mean = (None if part is None else part.to(device) for part in (self.scales, self.mean))
        return StoredRows(self.values.to(device), scales, mean)

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(part.nbytes for part in (self.values, self.scales, self.mean) if part is not None)


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """The features of one page, in memory or in a mapped file."""

    merged: StoredRows  # (P, D)
    deepstack: StoredRows  # (P, K, D): what belongs to one visual token lies together
    grid: Grid

    @classmethod
    def pack(cls, features: PageFeatures, stored: StoredType) -> "StoredFeatures":
        """Convert to a stored type."""
        none = features.merged.new_empty(len(features.merged), 0, features.merged.shape[1])
        deepstack = torch.stack(features.deepstack, dim=1) if features.deepstack else none
        return cls(StoredRows.pack(features.merged, stored), StoredRows.pack(deepstack, stored), features.grid)

    def unpack(self, dtype: torch.dtype, device: torch.device) -> PageFeatures:
        """Convert back; deepstack features are read when they are asked for."""
        return _ReadFeatures(self, dtype, device)

    def to(self, device: torch.device) -> "StoredFeatures":
        """Move to a device; what is there already stays as it is, on disk too."""
        return StoredFeatures(self.merged.to(device), self.deepstack.to(device), self.grid)

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.merged.nbytes + self.deepstack.nbytes

    def write(self, path: Path, name: str, unfinished: Path) -> None:
        """Write a file that is there whole or not at all, whoever else writes it; ``name`` says whose it is.

        It grows in the folder ``unfinished``, on the same file system.

        Raises:
            OSError: when the folder cannot be written to.
        """
        for folder in (path.parent, unfinished):  # each time: someone may have emptied the cache
            folder.mkdir(parents=True, exist_ok=True)
        part = unfinished / f"{path.name}.{secrets.token_hex(8)}"
        metadata = {"format": FORMAT, "name": name, "grid": " ".join(map(str, self.grid))}
        try:
            save_file(_tensors(self), part, metadata)
            os.replace(part, path)
        except SafetensorError as error:  # how safetensors reports a full disk or a folder that is read-only
            raise OSError(f"{path}: {error}") from error
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def map(cls, path: Path, name: str, shape: FeatureShape, stored: StoredType) -> "StoredFeatures | None":
        """Map a file into memory; None when there is none, or none that `write` wrote for this name and shape."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            if metadata.get("format") != FORMAT or metadata.get("name") != name:
                raise ValueError(f"it says {metadata}")
            read = _from_tensors(tensors, metadata["grid"])
            read._check(shape, TORCH_TYPES[stored])
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            _log.warning("%s holds no page features of %s and is written again: %s", path, FORMAT, error)
            return None
        return read

    def _check(self, shape: FeatureShape, kind: torch.dtype) -> None:
        """Raise ValueError unless the features are such as ``shape`` says, and the merged ones finite."""
        tokens = shape.tokens(self.grid)
        expected = [(tokens, shape.width), (tokens, shape.layers, shape.width)]
        for rows, size in zip((self.merged, self.deepstack), expected, strict=True):
            if tuple(rows.values.shape) != size or rows.values.dtype != kind:
                raise ValueError(f"{tuple(rows.values.shape)} {rows.values.dtype}, wanted {size} {kind}")
            if kind == torch.int8:
                _check_part(rows.scales, (*size[:-1], shape.width // _group(shape.width)), "scales")
                _check_part(rows.mean, size[1:], "mean row")
        if not self.merged.values.isfinite().all():
            raise ValueError("features that are not finite")


class _ReadFeatures(PageFeatures):
    """Features of a cache: the merged ones are at hand, since pruning compares all of them; deepstack is not yet."""

    stored: StoredFeatures

    def __init__(self, stored: StoredFeatures, dtype: torch.dtype, device: torch.device) -> None:
        merged = stored.merged.read(dtype, device)
        for name, value in {"stored": stored, "merged": merged, "grid": stored.grid}.items():
            object.__setattr__(self, name, value)  # the class is frozen

    @cached_property
    def deepstack(self) -> tuple[torch.Tensor, ...]:
        return self._layers(None)

    def deepstack_rows(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._layers(rows)

    def _layers(self, rows: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return self.stored.deepstack.read(self.merged.dtype, self.merged.device, rows).unbind(1)


def _group(width: int) -> int:
    """Return how many numbers share a scale: `GROUP`, or what is left of it in widths that it does not divide."""
    return math.gcd(width, GROUP)


def _check_part(part: torch.Tensor | None, size: tuple[int, ...], what: str) -> None:
    if part is None or tuple(part.shape) != size or not part.isfinite().all():
        raise ValueError(f"int8 with a {what} of {None if part is None else tuple(part.shape)}, wanted {size}, finite")


def _tensors(features: StoredFeatures) -> dict[str, torch.Tensor]:
    return {
        name + suffix: part
        for name, rows in (("merged", features.merged), ("deepstack", features.deepstack))
        for suffix, part in (("", rows.values), (".scales", rows.scales), (".mean", rows.mean))
        if part is not None
    }


def _from_tensors(tensors: dict[str, torch.Tensor], grid: str) -> StoredFeatures:
    time, height, width = map(int, grid.split())
    merged, deepstack = (
        StoredRows(tensors[name], tensors.get(f"{name}.scales"), tensors.get(f"{name}.mean"))
        for name in ("merged", "deepstack")
    )
    return StoredFeatures(merged, deepstack, (time, height, width))
