"""Snapshots as files: a zip of .npy arrays (numpy opens it as .npz) and one JSON header.

A file may come from anywhere, so load() believes nothing: no pickle, no compression (a small
file cannot claim much memory), the exact members with the exact types, every index in range.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ksm_eval.errors import TargetError
from ksm_eval.files import atomic_write
from ksm_eval.memory import Memory
from ksm_eval.save_check import Invalid, check
from ksm_eval.snapshot import (
    Compounds,
    Contents,
    Entry,
    Frames,
    KsmdState,
    Mappings,
    Metadata,
    Processes,
    Snapshot,
    Vmas,
)

FORMAT = "ksm-eval snapshot"
VERSION = 4
"""Any change of Snapshot, Metadata, Rules or Settings needs a new one."""

Array: TypeAlias = NDArray[Any]

_HEADER = "header"
_ARRAYS = {  # member -> dtype, columns: None for one dimension
    "processes.pid": ("<i4", None),
    "processes.uid": ("<u4", None),
    "processes.start_time": ("<u8", None),
    "processes.registered": ("|b1", None),
    "processes.selected": ("|b1", None),
    "processes.observed": ("<i8", 0),  # a row per name in the header, a column per process
    "vmas.process": ("<u4", None),
    "vmas.start": ("<u8", None),
    "vmas.end": ("<u8", None),
    "vmas.flags": ("<u8", None),
    "vmas.offset": ("<i8", None),
    "vmas.entries": ("<u4", len(Entry)),
    "mappings.frame": ("<u4", None),
    "mappings.page": ("<u4", None),
    "mappings.flags": ("|u1", None),
    "frames.pfn": ("<u8", None),
    "frames.hash": ("<u8", None),
    "frames.flags": ("|u1", None),
    "frames.mapcount": ("<u4", None),
    "frames.node": ("<u2", None),
    "frames.compound": ("<u4", None),
    "compounds.head": ("<u8", None),
    "compounds.pages": ("<u4", None),
    "compounds.pinned": ("|b1", None),
    "compounds.pmd_mapcount": ("<u4", None),
}
_KSMD = {  # all of them or none
    "ksmd.item_process": ("<i4", None),
    "ksmd.item_dying": ("|b1", None),
    "ksmd.item_address": ("<u8", None),
    "ksmd.item_unstable": ("|b1", None),
    "ksmd.item_seqnr": ("|u1", None),
    "ksmd.item_node": ("<i8", None),
    "ksmd.item_current": ("|b1", None),
    "ksmd.item_age": ("|u1", None),
    "ksmd.item_skips": ("|u1", None),
    "ksmd.node_pfn": ("<u8", None),
    "ksmd.node_hash": ("<u8", None),
    "ksmd.node_length": ("<i4", None),
    "ksmd.node_chain": ("<i4", None),
    "ksmd.node_stale": ("|b1", None),
    "ksmd.tree": ("<i8", 5),
    "ksmd.batch_pfn": ("<u8", None),
    "ksmd.batch_mlock": ("|b1", None),
}
_CONTENTS = {  # both of them or none
    "contents.hash": ("<u8", None),
    "contents.kind": ("|u1", None),
}
_KSMD_NUMBERS = ("full_scans", "cursor_process", "cursor_address")
_OPTIONAL = {
    "frames.order": ("<u4", None),
    "processes.ppid": ("<i4", None),
    "processes.rss_pages": ("<i8", None),
    "processes.user_ns": ("<u4", None),
    "processes.merge_any": ("|b1", None),
    "compounds.pte_behind": ("|b1", None),
    "ksmd.tree_pruned": ("<i8", None),
    **_CONTENTS,
    **_KSMD,
}


def save(snapshot: Snapshot, path: Path) -> None:
    """Write `snapshot` to `path`, readable by its owner only (it tells addresses and names).

    The file is there in full or not at all. Raises UsageError if it cannot be written,
    TargetError if load() would refuse it.
    """
    try:
        check(snapshot)
    except Invalid as error:
        raise TargetError(
            f"the target's memory contradicts itself: {error}", "it changed while it was dumped"
        ) from error
    processes, vmas = snapshot.processes, snapshot.vmas
    header = {
        "format": FORMAT,
        "version": VERSION,
        "meta": asdict(snapshot.meta),
        "comm": processes.comm,
        "cgroup": processes.cgroup,
        "observed": list(processes.observed),
        "name": vmas.name,
        "reason": vmas.reason,
        "ksmd": snapshot.ksmd and {name: getattr(snapshot.ksmd, name) for name in _KSMD_NUMBERS},
    }
    text = json.dumps(header, allow_nan=False, default=np.generic.item)  # item: counters of numpy
    observed = [processes.observed[name] for name in processes.observed]
    arrays = {
        _HEADER: np.frombuffer(text.encode(), np.uint8),
        "processes.observed": np.array(observed, "<i8").reshape(len(observed), len(processes)),
    }
    for member in (_ARRAYS | _OPTIONAL).keys() - arrays.keys():
        part, column = member.split(".")
        values = getattr(getattr(snapshot, part), column, None)
        if values is not None:
            arrays[member] = values
    with atomic_write(path, 0o600) as file, zipfile.ZipFile(file, "w") as archive:
        for member in (_HEADER, *_ARRAYS, *_OPTIONAL):
            if member not in arrays:
                continue
            dtype = (_ARRAYS | _OPTIONAL).get(member, ("|u1",))[0]
            # ZipInfo's date is fixed: equal snapshots give equal files.
            with archive.open(zipfile.ZipInfo(member + ".npy"), "w", force_zip64=True) as out:
                np.lib.format.write_array(
                    out, np.ascontiguousarray(arrays[member], dtype), (1, 0), allow_pickle=False
                )


def load(path: Path, memory: Memory | None = None) -> Snapshot:
    """The snapshot in `path`. `memory`: refuse with TargetError what does not fit in it.

    Raises TargetError if there is none that can be read, if it is damaged or of another format
    version, or if any value contradicts another.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _load(archive, memory)
    except OSError as error:
        raise TargetError(
            f"cannot read snapshot {path}: {error.strerror or error}",
            "give a file written with --save",
        ) from error
    except _NotASnapshot as error:
        raise TargetError(f"{path} is not a snapshot: {error}", error.hint) from error
    except (Invalid, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TargetError(
            f"snapshot {path} is damaged: {_one_line(error)}", "take it again with --save"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise TargetError(
            f"{path} is not a snapshot or truncated: {_one_line(error)}",
            "give a file written with --save",
        ) from error


class _NotASnapshot(Exception):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def _load(archive: zipfile.ZipFile, memory: Memory | None) -> Snapshot:
    members = archive.infolist()
    names = [info.filename.removesuffix(".npy") for info in members]
    by_name = dict(zip(names, members, strict=True))
    if _HEADER not in by_name:
        raise _NotASnapshot("it has no header", "give a file written with --save")
    text = _read_array(archive, by_name[_HEADER], "|u1", None).tobytes()
    header = json.loads(text)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _NotASnapshot("its header is another program's", "give a file written with --save")
    if header.get("version") != VERSION or isinstance(header["version"], bool):
        raise _NotASnapshot(
            f"format version {header.get('version')!r:.40}, this program reads {VERSION}",
            "use the version of ksm-eval that wrote it, or take it again",
        )
    expected = {_HEADER, *_ARRAYS}
    if len(names) != len(by_name) or not expected <= set(names) <= expected | set(_OPTIONAL):
        raise Invalid("members missing or unknown")
    found = {name for name in names if name.startswith("ksmd.")} - {"ksmd.tree_pruned"}
    if found != (_KSMD.keys() if header["ksmd"] is not None else set()):
        raise Invalid("only a part of ksmd's records")
    if len(_CONTENTS.keys() & set(names)) == 1:
        raise Invalid("only a part of the contents")
    if memory is not None:
        mappings, frames = (
            by_name[name].file_size // np.dtype(_ARRAYS[name][0]).itemsize
            for name in ("mappings.frame", "frames.hash")
        )
        memory.require(mappings, frames)

    arrays = {
        name: _read_array(archive, info, *(_ARRAYS | _OPTIONAL)[name])
        for name, info in by_name.items()
        if name != _HEADER
    }
    strings = {
        key: _typed(header[key], list[str], key)
        for key in ("comm", "cgroup", "observed", "name", "reason")
    }
    observed = arrays.pop("processes.observed")
    counters = strings["observed"]
    if observed.shape != (len(counters), len(arrays["processes.pid"])):
        raise Invalid("processes.observed does not fit its names")
    if len(set(counters)) != len(counters):
        raise Invalid("processes.observed has a name twice")

    def columns(part: str) -> dict[str, Array]:
        return {
            name.removeprefix(part + "."): values
            for name, values in arrays.items()
            if name.startswith(part + ".")
        }

    snapshot = Snapshot(
        meta=_typed(header["meta"], Metadata, "meta"),
        processes=Processes(
            comm=strings["comm"],
            cgroup=strings["cgroup"],
            observed=dict(zip(counters, observed, strict=True)),
            **columns("processes"),
        ),
        vmas=Vmas(name=strings["name"], reason=strings["reason"], **columns("vmas")),
        mappings=Mappings(**columns("mappings")),
        frames=Frames(**columns("frames")),
        compounds=Compounds(**columns("compounds")),
        ksmd=None if header["ksmd"] is None else _ksmd(columns("ksmd"), header["ksmd"]),
        contents=Contents(**columns("contents")) if "contents.hash" in arrays else None,
    )
    check(snapshot)
    return snapshot


def _ksmd(columns: dict[str, Any], numbers: Any) -> KsmdState:
    return KsmdState(**columns, **_typed(numbers, dict[str, int], "ksmd"))


def _read_array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, dtype: str, columns: int | None
) -> Array:
    """One member, of exactly this type. Nothing is allocated that the file does not hold.

    `columns` None: one dimension. 0: any number of columns.
    """
    name = info.filename
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise Invalid(f"{name} is compressed")
    data = archive.read(info)
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise Invalid(f"{name} is of another .npy version")
    shape, fortran, found = np.lib.format.read_array_header_1_0(stream)
    dimensions = 1 if columns is None else 2
    if found.str != dtype or fortran or len(shape) != dimensions or min(shape) < 0:
        raise Invalid(f"{name} is of another type: {found.str:.20} {shape!r:.60}")
    if columns and shape[1] != columns:
        raise Invalid(f"{name} has {shape[1]} columns, not {columns}")
    raw = memoryview(data)[stream.tell() :]
    if len(raw) != math.prod(shape) * found.itemsize:
        raise Invalid(f"{name} has another length than it says")
    if dtype == "|b1" and len(raw) and np.frombuffer(raw, np.uint8).max() > 1:
        raise Invalid(f"{name} has values that are no booleans")
    return np.frombuffer(raw, dtype).reshape(shape)


def _typed(value: Any, kind: Any, where: str) -> Any:
    """`value` from JSON as the type annotation `kind` wants it, a dict made a dataclass."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        known = {f.name for f in fields(kind)}
        late = {"pace"}  # not in every file of this version
        if not isinstance(value, dict) or not known - late <= value.keys() <= known:
            raise Invalid(f"{where} has other fields than this version's")
        return kind(**{key: _typed(value[key], hints[key], f"{where}.{key}") for key in value})
    if origin is list and isinstance(value, list):
        return [_typed(item, arguments[0], where) for item in value]
    if origin is tuple and isinstance(value, list):  # tuple[X, ...]
        return tuple(_typed(item, arguments[0], where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(value[key], arguments[1], where) for key in value}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise Invalid(f"{where} is of another type")
    return value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
