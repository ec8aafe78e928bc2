"""Nested states as named tensors plus plain JSON, and back, bit for bit.

Dictionaries, lists and tuples may hold tensors, NumPy arrays and scalars, integers of any size,
floats (infinities and NaN too), strings, booleans and None. Nothing is ever executed to read
them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tree = Any
Json = Any

NUMPY = frozenset(getattr(torch, name) for name in (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "float32", "float64", "complex64", "complex128",
))  # fmt: skip
"""Types of tensors that NumPy knows."""

_TENSOR, _ARRAY, _SCALAR = "$tensor", "$array", "$numpy"  # of torch, of NumPy, 0-d of NumPy
_FLOAT, _TUPLE, _DICT = "$float", "$tuple", "$dict"


def flatten(tree: Tree) -> tuple[Json, dict[str, Tensor]]:
    """Flatten a state.

    Args:
        tree: the state; it is neither changed nor kept.

    Returns:
        Its structure as JSON values, and its tensors and arrays by path: contiguous, on the CPU,
        sharing no memory with each other.

    Raises:
        TypeError: it holds something else than the types above; the message names the path.
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def store(tensor: Tensor, path: str) -> str:
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        if address in storages:
            plain = plain.clone()
        storages.add(address)
        name = path or "state"
        while name in tensors:  # two keys may read alike, such as 1 and "1"
            name += "'"
        tensors[name] = plain
        return name

    def walk(node: Tree, path: str) -> Json:
        if node is None or isinstance(node, (bool, str)) or type(node) is int:
            return node
        if type(node) is float:
            return node if math.isfinite(node) else {_FLOAT: struct.pack(">d", node).hex()}
        if isinstance(node, Tensor):
            return {_TENSOR: store(node, path)}
        if isinstance(node, (np.ndarray, np.generic)):
            if node.dtype.kind not in "biufc" or not node.dtype.isnative:
                raise TypeError(f"{path or 'state'}: arrays of {node.dtype} cannot be saved")
            array = np.array(node, order="C")
            kind = _ARRAY if isinstance(node, np.ndarray) else _SCALAR
            return {kind: store(torch.from_numpy(array), path)}
        if isinstance(node, Mapping):
            for key in node:
                if type(key) not in (str, int):
                    raise TypeError(f"{path or 'state'}: keys must be str or int, got {key!r}")
            items = [(key, walk(inner, f"{path}.{key}" if path else str(key)))
                     for key, inner in node.items()]  # fmt: skip
            if any(not isinstance(key, str) or key.startswith("$") for key, _ in items):
                return {_DICT: [list(item) for item in items]}
            return dict(items)
        if isinstance(node, (list, tuple)):
            inner = [walk(item, f"{path}.{index}" if path else str(index))
                     for index, item in enumerate(node)]  # fmt: skip
            return inner if isinstance(node, list) else {_TUPLE: inner}
        raise TypeError(f"{path or 'state'}: {type(node).__name__} cannot be saved")

    return walk(tree, ""), tensors


def unflatten(json: Json, tensors: Mapping[str, Tensor]) -> Tree:
    """Rebuild what ``flatten`` returned; tensors are on the CPU, tuples are plain.

    Raises:
        ValueError: the structure is not one of ``flatten``, or a tensor is missing.
    """
    if isinstance(json, list):
        return [unflatten(item, tensors) for item in json]
    if not isinstance(json, dict):
        return json
    tag = next(iter(json), "")
    if len(json) != 1 or not tag.startswith("$"):
        return {key: unflatten(item, tensors) for key, item in json.items()}
    value: Any = json[tag]
    _check_tag(tag, value)
    if tag in (_TENSOR, _ARRAY, _SCALAR):
        if value not in tensors:
            raise ValueError(f"tensor {value!r} is missing")
        if tag == _SCALAR and tensors[value].ndim:
            raise ValueError(f"tensor {value!r} is no scalar")
        if tag == _TENSOR:
            return tensors[value]
        if tensors[value].dtype not in NUMPY:
            raise ValueError(f"tensor {value!r} is no array of NumPy: {tensors[value].dtype}")
        array = tensors[value].numpy()
        return array if tag == _ARRAY else array[()]
    if tag == _FLOAT:
        return struct.unpack(">d", bytes.fromhex(value))[0]
    if tag == _TUPLE:
        return tuple(unflatten(item, tensors) for item in value)
    if tag == _DICT:
        return {key: unflatten(item, tensors) for key, item in value}
    raise ValueError(f"unknown tag {tag!r}")


def _check_tag(tag: str, value: Json) -> None:
    """Raise ValueError where a tag holds what `flatten` never writes."""
    if not isinstance(value, list if tag in (_TUPLE, _DICT) else str):
        raise ValueError(f"{tag} holds a {type(value).__name__}")
    if tag == _FLOAT and len(value) != 16:
        raise ValueError(f"{value!r} is no number")
    if tag == _DICT:
        for pair in value:
            if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) not in (str, int):
                raise ValueError("a group is no list of pairs")


def first_not_finite(node: Tree, path: str = "") -> str | None:
    """Path of the first tensor, array or float that holds a NaN or an infinity, or None."""
    if isinstance(node, (Tensor, np.ndarray)):
        values = torch.as_tensor(node)
        return None if bool(values.isfinite().all()) else path
    if isinstance(node, float):
        return None if math.isfinite(node) else path
    pairs: Any = ()
    if isinstance(node, Mapping):
        pairs = node.items()
    elif isinstance(node, (list, tuple)):
        pairs = enumerate(node)
    found = (first_not_finite(inner, f"{path}.{key}" if path else str(key)) for key, inner in pairs)
    return next((bad for bad in found if bad is not None), None)


def _kind(node: Tree) -> str:
    if isinstance(node, (Tensor, np.ndarray)):
        return f"{str(node.dtype).removeprefix('torch.')} {list(node.shape)}"
    if isinstance(node, Mapping):
        return "a group"
    return f"a {type(node).__name__}"


def first_difference(saved: Tree, fresh: Tree, path: str = "") -> str | None:
    """Where the structure of a saved state differs from that of a fresh one, in words, or None.

    Keys, lengths, shapes and dtypes are compared, numbers are not. An empty dictionary or a None
    in the fresh state accepts anything: optimisers have no moments before their first step.
    """
    name = path or "state"
    if fresh is None or (isinstance(fresh, Mapping) and not fresh):
        return None
    if isinstance(fresh, Mapping) and isinstance(saved, Mapping):
        for key in fresh:
            if key not in saved:
                return f"{path}.{key} is missing" if path else f"{key} is missing"
        for key in saved:
            if key not in fresh:
                return f"{path}.{key} is not known" if path else f"{key} is not known"
            inner = first_difference(saved[key], fresh[key], f"{path}.{key}" if path else str(key))
            if inner:
                return inner
        return None
    if isinstance(fresh, (list, tuple)) and isinstance(saved, (list, tuple)):
        if len(saved) != len(fresh):
            return f"{name} has length {len(saved)}, expected {len(fresh)}"
        for index, (one, other) in enumerate(zip(saved, fresh, strict=True)):
            inner = first_difference(one, other, f"{path}.{index}" if path else str(index))
            if inner:
                return inner
        return None
    if isinstance(fresh, float) and type(saved) is int:
        return None
    if _kind(saved) != _kind(fresh):
        return f"{name} is {_kind(saved)}, expected {_kind(fresh)}"
    return None
