"""Snapshot files: round trip, and what load() makes of files that are none."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksm_eval.errors import TargetError, UsageError
from ksm_eval.replay.rules import Rules, Settings
from ksm_eval.save import VERSION, load, save
from ksm_eval.snapshot import (
    NO_COMPOUND,
    Compounds,
    ContentKind,
    Contents,
    Entry,
    Frames,
    Mappings,
    Metadata,
    Processes,
    Snapshot,
    Vmas,
)

PAGE = 4096
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)  # surrogates, controls
COUNT = st.integers(0, 2**40)


def metadata(**changes: Any) -> Metadata:
    made = Metadata(
        kind="vmcore",
        path="/var/crash/vmcore",
        release="6.12.117",
        arch="x86_64",
        page_size=PAGE,
        time=1.7e9,
        debug_info="BTF + kallsyms",
        rules=Rules(),
        settings=Settings(),
        settings_source={"max_page_sharing": "target"},
        counters={"pages_shared": 3},
        sizeof={"rmap_item": 64, "stable_node": 64, "mm_slot": 48},
        question="merge_any",
    )
    return replace(made, **changes)


def snapshot() -> Snapshot:
    """Two processes; four VMAs, one not mergeable; three frames, one of a THP."""
    return Snapshot(
        meta=metadata(),
        processes=Processes(
            pid=np.array([7, 9], np.int32),
            comm=["a", "b"],
            cgroup=["/x", ""],
            uid=np.array([0, 1000], np.uint32),
            start_time=np.array([1, 2], np.uint64),
            registered=np.array([True, False]),
            selected=np.array([True, True]),
            observed={"ksm_rmap_items": np.array([5, 6], np.int64)},
        ),
        vmas=Vmas(
            process=np.array([0, 0, 1, 1], np.uint32),
            start=np.array([1, 9, 1, 4], np.uint64) * PAGE,
            end=np.array([5, 12, 4, 5], np.uint64) * PAGE,
            flags=np.array([3, 3, 3, 3], np.uint64),
            name=["[heap]", "", "", "/lib/x"],
            reason=["", "", "shared mapping", ""],
            offset=np.array([0, 2, 2, 2, 3], np.int64),
            entries=np.ones((4, len(Entry)), np.uint32),
        ),
        mappings=Mappings(
            frame=np.array([2, 0, 1], np.uint32),
            page=np.array([0, 3, 0], np.uint32),
            flags=np.array([0, 4, 1], np.uint8),
        ),
        frames=Frames(
            pfn=np.array([100, 513, 700], np.uint64),
            hash=np.array([1, 2**64 - 1, 3], np.uint64),
            flags=np.array([0, 2, 32], np.uint8),
            mapcount=np.array([1, 1, 2], np.uint32),
            node=np.array([0, 1, 0], np.uint16),
            compound=np.array([NO_COMPOUND, 0, NO_COMPOUND], np.uint32),
        ),
        compounds=Compounds(
            head=np.array([512], np.uint64),
            pages=np.array([512], np.uint32),
            pinned=np.array([False]),
            pmd_mapcount=np.array([2], np.uint32),
        ),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Small snapshots of any shape, empty parts included."""
    n_processes = draw(st.integers(0, 3))
    owners = sorted(
        draw(st.lists(st.integers(0, n_processes - 1), max_size=5)) if n_processes else []
    )
    starts, ends, lengths, pages = [], [], [], []
    at = 1
    for _ in owners:
        size = draw(st.integers(1, 6))
        present = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        starts.append(at * PAGE)
        ends.append((at + size) * PAGE)
        pages += [page for page, is_present in enumerate(present) if is_present]
        lengths.append(sum(present))
        at += size + draw(st.integers(0, 2))
    n_mappings = len(pages)
    wild = draw(st.lists(st.integers(0, 5), min_size=n_mappings, max_size=n_mappings))
    used, frame = np.unique(np.array(wild, np.int64), return_inverse=True)
    n_frames = len(used)

    def column(low: int, high: int, rows: int, dtype: type[np.generic]) -> Any:
        values = st.lists(st.integers(low, high), min_size=rows, max_size=rows)
        return np.array(draw(values), dtype)

    compound = np.full(n_frames, NO_COMPOUND, np.uint32)
    n_compounds = min(n_frames, draw(st.integers(0, 2)))
    compound[:n_compounds] = np.arange(n_compounds)
    pfn = np.cumsum(column(1, 1 << 40, n_frames, np.uint64), dtype=np.uint64)

    def texts(rows: int) -> list[str]:
        return draw(st.lists(ANY_TEXT, min_size=rows, max_size=rows))

    def optional(low: int, high: int, rows: int, dtype: type[np.generic]) -> Any:
        return column(low, high, rows, dtype) if draw(st.booleans()) else None

    contents = None
    if draw(st.booleans()):
        distinct = draw(st.lists(st.integers(0, 2**64 - 1), max_size=4, unique=True))
        kind = column(0, len(ContentKind) - 1, len(distinct), np.uint8)
        contents = Contents(np.array(distinct, np.uint64), kind)
    order = column(0, max(0, n_frames - 1), n_frames, np.uint32) if draw(st.booleans()) else None
    number = st.integers(0, 31)
    rules: dict[str, Any] = {
        f.name: draw(st.booleans() if f.type == "bool" else number) for f in fields(Rules)
    }
    return Snapshot(
        meta=metadata(
            path=draw(ANY_TEXT),
            time=draw(st.floats(0, 1 << 33)),
            rules=Rules(**rules),
            settings=Settings(
                max_page_sharing=draw(st.integers(2, 1 << 31)), use_zero_pages=draw(st.booleans())
            ),
            counters=draw(st.dictionaries(ANY_TEXT, st.integers(-(2**40), 2**40), max_size=3)),
            unreadable=draw(st.dictionaries(ANY_TEXT, COUNT, max_size=3)),
            notes=texts(draw(st.integers(0, 2))),
            question=draw(st.sampled_from(["merge_any", "mergeable_only"])),
            total_ram_pages=draw(COUNT),
        ),
        processes=Processes(
            pid=column(1, 1 << 22, n_processes, np.int32),
            comm=texts(n_processes),
            cgroup=texts(n_processes),
            uid=column(0, 2**32 - 1, n_processes, np.uint32),
            start_time=column(0, 2**64 - 1, n_processes, np.uint64),
            registered=column(0, 1, n_processes, np.bool_),
            selected=column(0, 1, n_processes, np.bool_),
            observed={
                name: column(-(2**63), 2**63 - 1, n_processes, np.int64)
                for name in draw(st.lists(ANY_TEXT, max_size=2, unique=True))
            },
            ppid=optional(0, 1 << 22, n_processes, np.int32),
            rss_pages=optional(0, 1 << 44, n_processes, np.int64),
            user_ns=optional(0, 2**32 - 1, n_processes, np.uint32),
            merge_any=optional(0, 1, n_processes, np.bool_),
        ),
        vmas=Vmas(
            process=np.array(owners, np.uint32),
            start=np.array(starts, np.uint64),
            end=np.array(ends, np.uint64),
            flags=column(0, 2**64 - 1, len(owners), np.uint64),
            name=texts(len(owners)),
            reason=["" if length else draw(ANY_TEXT) for length in lengths],
            offset=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            entries=column(0, 2**32 - 1, len(owners) * len(Entry), np.uint32).reshape(
                len(owners), len(Entry)
            ),
        ),
        mappings=Mappings(
            frame=frame.astype(np.uint32),
            page=np.array(pages, np.uint32),
            flags=column(0, 15, n_mappings, np.uint8),
        ),
        frames=Frames(
            pfn=pfn,
            hash=column(0, 2**64 - 1, n_frames, np.uint64),
            flags=column(0, 127, n_frames, np.uint8),
            mapcount=column(0, 2**32 - 1, n_frames, np.uint32),
            node=column(0, 2**16 - 1, n_frames, np.uint16),
            compound=compound,
            order=order,
        ),
        compounds=Compounds(
            head=pfn[:n_compounds].copy(),
            pages=np.full(n_compounds, 512, np.uint32),
            pinned=column(0, 1, n_compounds, np.bool_),
            pmd_mapcount=column(0, 2**32 - 1, n_compounds, np.uint32),
            pte_behind=optional(0, 1, n_compounds, np.bool_),
        ),
        contents=contents,
    )


def assert_equal(one: Any, two: Any) -> None:
    """Equal values, dtypes and shapes, all the way down."""
    assert type(one) is type(two)
    if isinstance(one, np.ndarray):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two, strict=True)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            assert_equal(one[key], two[key])
    elif hasattr(one, "__dataclass_fields__"):
        assert_equal(vars(one), vars(two))
    else:
        assert one == two


@given(snapshots())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_round_trip(tmp_path: Path, made: Snapshot) -> None:
    path = tmp_path / "round"
    save(made, path)
    assert_equal(load(path), made)


def with_facts() -> Snapshot:
    """With what older files do not have."""
    made = snapshot()
    processes = replace(
        made.processes,
        rss_pages=np.array([5, 1 << 44], np.int64),
        user_ns=np.array([0xEFFFFFFD, 0], np.uint32),
    )
    return replace(
        made,
        processes=processes,
        contents=Contents(np.array([3, 1], np.uint64), np.array([4, 1], np.uint8)),
    )


def test_older_files(tmp_path: Path) -> None:
    """They lack some members, in any combination."""
    path = tmp_path / "older"
    save(with_facts(), path)
    assert_equal(load(path), with_facts())
    members = ("processes.rss_pages", "processes.user_ns", "contents.hash", "contents.kind")
    for member in members[:2]:
        edited(path, drop(member))
    edited(path, lambda found: [found.pop(member) for member in members[2:]].clear())
    assert_equal(load(path), snapshot())
    save(with_facts(), path)
    found = load(edited(path, drop("processes.rss_pages")))
    assert found.processes.rss_pages is None
    assert found.processes.user_ns is not None
    assert found.contents is not None
    for member in members[2:]:
        save(with_facts(), path)
        refused(edited(path, drop(member)), "is damaged: only a part of the contents")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda: put("processes.rss_pages", [5]), "processes.rss_pages has another length"),
        (lambda: put("processes.rss_pages", [5, -1]), "processes.rss_pages out of range"),
        (lambda: put("processes.rss_pages", [5, (1 << 44) + 1]), "rss_pages out of range"),
        (lambda: put("processes.rss_pages", [5, 6], np.int32), "is of another type"),
        (lambda: put("processes.user_ns", [5]), "processes.user_ns has another length"),
        (lambda: put("processes.user_ns", [5, 6], np.uint64), "is of another type"),
        (lambda: put("contents.kind", [4]), "contents.kind has another length"),
        (lambda: put("contents.kind", [[4, 1]]), "is of another type"),
        (lambda: put("contents.kind", [4, 5]), "contents.kind out of range"),
        (lambda: put("contents.kind", [255, 0]), "contents.kind out of range"),
        (lambda: put("contents.hash", [3, 3]), "a content twice"),
    ],
)
def test_facts_that_cannot_be(tmp_path: Path, change: Callable[[], Edit], match: str) -> None:
    path = tmp_path / "facts"
    save(with_facts(), path)
    refused(edited(path, change()), f"is damaged: .*{match}")


def test_equal_snapshots_give_equal_files_their_owner_can_read(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    save(snapshot(), one)
    two.write_bytes(b"older")
    two.chmod(0o644)
    save(load(one), two)
    assert one.read_bytes() == two.read_bytes()
    assert stat.S_IMODE(one.stat().st_mode) == 0o600
    assert stat.S_IMODE(two.stat().st_mode) == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "two"]
    assert np.load(one, allow_pickle=False)["mappings.page"].tolist() == [0, 3, 0]


def test_counters_may_be_numpy_numbers(tmp_path: Path) -> None:
    counters: Any = {"pages_shared": np.int64(3)}
    save(replace(snapshot(), meta=metadata(counters=counters, time=5)), tmp_path / "x")
    meta = load(tmp_path / "x").meta
    assert type(meta.counters["pages_shared"]) is int
    assert type(meta.time) is float


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    monkeypatch.setattr(np.lib.format, "write_array", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(snapshot(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_through_a_link_and_to_a_device(tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(file)
    save(snapshot(), link)
    assert link.is_symlink()
    assert len(load(file).mappings) == 3
    save(snapshot(), Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["missing/x", "."])
def test_save_where_one_cannot(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"^cannot write .*(No such file|Is a directory)"):
        save(snapshot(), tmp_path / name)


def refused(path: Path, match: str) -> None:
    """One clear line, exit code 3, and what to do."""
    with pytest.raises(TargetError, match=match) as caught:
        load(path)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "snapshot.npz"
    save(snapshot(), path)
    return path


def test_missing_and_directory(tmp_path: Path) -> None:
    refused(tmp_path / "none", "^cannot read snapshot .*No such file")
    refused(tmp_path, "^cannot read snapshot .*Is a directory")


@pytest.mark.parametrize("content", [b"", b"KDUMP   ", b"\x7fELF" * 999, b"PK\x03\x04", b"\0" * 99])
def test_not_a_zip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    refused(path, "is not a snapshot or truncated")


def test_other_zips(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, a=np.arange(3))
    refused(path, "is not a snapshot: it has no header")
    np.savez(path, header=np.frombuffer(b'{"format": "x"}', np.uint8))
    refused(path, "is not a snapshot: its header is another program's")
    np.savez(path, header=np.frombuffer(b"[]", np.uint8))
    refused(path, "its header is another program's")


def test_truncated_at_every_length(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in range(0, len(whole), 61):
        saved.write_bytes(whole[:length])
        refused(saved, "is not a snapshot or truncated")


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_flipped_bits_are_found_or_harmless(saved: Path, data: st.DataObject) -> None:
    """Only what the checksums do not cover (dates, attributes) may change unnoticed."""
    damaged = bytearray(saved.read_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    path = saved.with_suffix(".damaged")
    path.write_bytes(damaged)
    try:
        loaded = load(path)
    except TargetError:
        return
    assert_equal(loaded, snapshot())


Edit = Callable[[dict[str, Any]], None]


def edited(path: Path, change: Edit, **zip_options: Any) -> Path:
    """`path` after `change` of its members: arrays by name, `header` a dict."""
    with np.load(path, allow_pickle=False) as archive:
        members: dict[str, Any] = dict(archive)
    members["header"] = json.loads(members["header"].tobytes())
    change(members)
    header = members.pop("header", None)
    with zipfile.ZipFile(path, "w", **zip_options) as archive:
        if header is not None:
            members["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        for name, values in members.items():
            data = io.BytesIO()
            np.save(data, values, allow_pickle=True)
            archive.writestr(name + ".npy", data.getvalue())
    return path


def test_editing_nothing_is_accepted(saved: Path) -> None:
    assert_equal(load(edited(saved, lambda _: None)), snapshot())


def put(name: str, values: object, dtype: Any = None) -> Edit:
    def change(members: dict[str, Any]) -> None:
        members[name] = np.array(values, dtype or members[name].dtype)

    return change


def put_header(*keys: str, value: object) -> Edit:
    def change(members: dict[str, Any]) -> None:
        place = members["header"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def drop(name: str) -> Edit:
    def change(members: dict[str, Any]) -> None:
        del members[name]

    return change


@pytest.mark.parametrize("version", [0, VERSION - 1, VERSION + 1, str(VERSION), None, True])
def test_other_versions(saved: Path, version: object) -> None:
    edited(saved, put_header("version", value=version))
    refused(saved, f"is not a snapshot: format version .* this program reads {VERSION}")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (drop("mappings.frame"), "members missing or unknown"),
        (put("extra", [1], np.uint8), "members missing or unknown"),
        # types
        (put("mappings.frame", [0, 0, 0], np.int64), "mappings.frame.npy is of another type"),
        (put("mappings.frame", [2, 0, 1], ">u4"), "mappings.frame.npy is of another type"),
        (put("mappings.frame", [None, {}, 0], object), "mappings.frame.npy is of another type"),
        (put("mappings.frame", [[2, 0, 1]]), "mappings.frame.npy is of another type"),
        (put("processes.pid", ["a", "b"], "U1"), "processes.pid.npy is of another type"),
        (put("vmas.entries", np.ones((4, 2))), "has 2 columns, not 9"),
        # lengths
        (put("mappings.page", [0, 3]), "mappings.page has another length"),
        (put("frames.hash", [1]), "frames.hash has another length"),
        (put("vmas.offset", [0, 2, 2, 3]), "vmas.offset has another length"),
        (put("vmas.offset", []), "vmas.offset has another length"),
        (put("processes.uid", [0]), "processes.uid has another length"),
        (put("processes.observed", [[5]]), "processes.observed does not fit"),
        (put_header("comm", value=["a"]), "processes.comm has another length"),
        (put_header("name", value=[]), "vmas.name has another length"),
        (put_header("observed", value=[]), "processes.observed does not fit"),
        (put("frames.order", [0], np.uint32), "frames.order has another length"),
        # indices and ranges
        (put("mappings.frame", [2, 0, 3]), "mappings.frame out of range"),
        (put("mappings.frame", [2, 0, 0]), "a frame that nothing maps"),
        (put("mappings.page", [0, 4, 0]), "a mapping outside its VMA"),
        (put("mappings.page", [3, 3, 0]), "mappings are not by address"),
        (put("mappings.flags", [0, 16, 0]), "mappings.flags has unknown bits"),
        (put("frames.flags", [0, 128, 0]), "frames.flags has unknown bits"),
        (put("frames.pfn", [100, 700, 700]), "frames are not by PFN"),
        (put("frames.pfn", [100, 513, 1 << 52]), "a PFN out of range"),
        (put("frames.compound", [NO_COMPOUND, 1, NO_COMPOUND]), "frames.compound out of range"),
        (put("frames.compound", [NO_COMPOUND] * 3), "a compound without a frame"),
        (put("frames.order", [0, 0, 3], np.uint32), "frames.order out of range"),
        (put("compounds.pages", [3]), "an impossible compound size"),
        (put("compounds.pages", [0]), "an impossible compound size"),
        (put("vmas.process", [0, 0, 1, 2]), "vmas.process out of range"),
        (put("vmas.process", [0, 1, 0, 1]), "vmas are not by process"),
        (put("vmas.offset", [1, 2, 2, 2, 3]), "vmas.offset does not span"),
        (put("vmas.offset", [0, 2, 2, 2, 2**40]), "vmas.offset does not span"),
        (put("vmas.offset", [0, 2, 3, 2, 3]), "vmas.offset is not ascending"),
        (put("vmas.offset", [0, -1, 2, 2, 3]), "vmas.offset is not ascending"),
        (put("vmas.offset", [0, 1, 1, 2, 3]), "mappings of a VMA that is not mergeable"),
        (put("vmas.start", np.array([5, 9, 1, 4]) * PAGE), "a VMA ends before it starts"),
        (put("vmas.start", np.array([1, 4, 1, 4]) * PAGE), "VMAs overlap"),
        (put("vmas.start", np.array([1, 9, 1, 4]) * PAGE + 1), "a VMA within a page"),
        (put("processes.pid", [7, -9]), "a pid below 0"),
        # the header
        (put_header("meta", "page_size", value=0), "page size 0"),
        (put_header("meta", "page_size", value=5000), "page size 5000"),
        (put_header("meta", "page_size", value="4096"), "meta.page_size is of another type"),
        (put_header("meta", "page_size", value=4096.0), "meta.page_size is of another type"),
        (put_header("meta", "time", value=float("nan")), "meta.time is of another type"),
        (put_header("meta", "time", value=-1), "time out of range"),
        (put_header("meta", "question", value="x"), "unknown question"),
        (put_header("meta", "rules", "smart_scan", value=1), "meta.rules.smart_scan is of another"),
        (put_header("meta", "rules", "new", value=True), "meta.rules has other fields"),
        (put_header("meta", "rules", value=[]), "meta.rules has other fields"),
        (put_header("meta", "settings", "max_page_sharing", value=1), "max_page_sharing below 2"),
        (put_header("meta", "sizeof", "rmap_item", value=0), "an impossible sizeof"),
        (put_header("meta", "counters", "x", value=10**30), "a number out of range"),
        (put_header("meta", "unreadable", "x", value=-1), "a negative page count"),
        (put_header("meta", value=None), "meta has other fields"),
        (put_header("comm", value=["a", 1]), "comm is of another type"),
        (put_header("comm", value="ab"), "comm is of another type"),
    ],
)
def test_contradictions(saved: Path, change: Edit, match: str) -> None:
    refused(edited(saved, change), f"is damaged: .*{match}")


def test_booleans_other_than_0_and_1(saved: Path) -> None:
    edited(saved, put("processes.registered", [7, 0], np.uint8))
    refused(saved, "processes.registered.npy is of another type")
    whole = saved.read_bytes()
    with zipfile.ZipFile(saved, "w") as archive, zipfile.ZipFile(io.BytesIO(whole)) as old:
        for info in old.infolist():
            data = old.read(info)
            if info.filename == "processes.registered.npy":
                data = data.replace(b"'|u1'", b"'|b1'")
            archive.writestr(info.filename, data)
    refused(saved, "values that are no booleans")


def test_claims_of_size_cost_nothing(saved: Path) -> None:
    """A header that claims 4 EiB, and a bomb of compressed zeros, are refused unread."""
    whole = saved.read_bytes()
    claim = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        claim, {"descr": "<u4", "fortran_order": False, "shape": (1 << 60,)}
    )
    with zipfile.ZipFile(saved, "w") as archive, zipfile.ZipFile(io.BytesIO(whole)) as old:
        for info in old.infolist():
            is_frame = info.filename == "mappings.frame.npy"
            archive.writestr(info.filename, claim.getvalue() if is_frame else old.read(info))
    refused(saved, "mappings.frame.npy has another length than it says")
    saved.write_bytes(whole)
    edited(saved, lambda _: None, compression=zipfile.ZIP_DEFLATED)
    refused(saved, "is compressed")


def test_a_header_nested_without_end(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, header=np.frombuffer(b"[" * 100_000, np.uint8))
    refused(path, "is damaged: .*recursion")


def test_members_twice(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        data = archive.read("mappings.page.npy")
    with (
        zipfile.ZipFile(saved, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("mappings.page.npy", data)
    refused(saved, "members missing or unknown")


def test_save_refuses_what_load_would(tmp_path: Path) -> None:
    made = replace(snapshot(), meta=metadata(page_size=1))
    with pytest.raises(TargetError, match="contradicts itself: page size 1"):
        save(made, tmp_path / "x")
    assert not list(tmp_path.iterdir())
