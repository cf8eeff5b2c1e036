"""BTF: every kind from a synthetic blob in both byte orders, damage, and real kernels."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import drgn
import pytest
from drgn import Architecture, Platform, PlatformFlags, Program, Qualifiers, TypeKind
from hypothesis import given
from hypothesis import strategies as st

from ksm_eval.target import btf_finder
from ksm_eval.target.btf import Btf, BtfError, Kind, Member, SectionVar
from ksm_eval.target.program import open_core, read_btf

VMCORES = Path(__file__).parent.parent / "fixtures" / "vmcores"
DWARF = os.environ.get("KSM_EVAL_TEST_DWARF", "")
BASE = 0xFFFFFFFF81000000


class Blob:
    """Writes BTF. Ids count from 1 in the order of the calls."""

    def __init__(self, order: str = "<") -> None:
        self.order = order
        self.types = b""
        self.strings = b"\0"
        self.count = 0

    def string(self, text: str) -> int:
        if not text:
            return 0
        at = self.strings.find(b"\0" + text.encode() + b"\0")
        if at < 0:
            at = len(self.strings) - 1
            self.strings += text.encode() + b"\0"
        return at + 1

    def add(
        self,
        kind: int,
        name: str,
        size: int,
        words: list[int],
        *,
        vlen: int = 0,
        flag: bool = False,
    ) -> int:
        info = int(flag) << 31 | kind << 24 | vlen
        row = [self.string(name), info, size, *words]
        self.types += struct.pack(f"{self.order}{len(row)}I", *(w & 0xFFFFFFFF for w in row))
        self.count += 1
        return self.count

    def bytes(self) -> bytes:
        head = struct.pack(
            f"{self.order}HBBIIIII",
            *(0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)),
        )
        return head + self.types + self.strings


def all_kinds(order: str) -> tuple[bytes, dict[str, int]]:
    """A blob of all 19 kinds, and the id of each type by a short name."""
    b, ids = Blob(order), {}
    s = b.string
    ids["int"] = b.add(1, "int", 4, [1 << 24 | 32])
    ids["ulong"] = b.add(1, "long unsigned int", 8, [64])
    ids["bool"] = b.add(1, "_Bool", 1, [4 << 24 | 8])
    ids["char"] = b.add(1, "char", 1, [2 << 24 | 8])
    ids["const char"] = b.add(10, "", ids["char"], [])
    ids["char *"] = b.add(2, "", ids["const char"], [])
    ids["array"] = b.add(3, "", 0, [ids["ulong"], ids["int"], 7])
    ids["flexible"] = b.add(3, "", 0, [ids["int"], ids["int"], 0])
    ids["volatile"] = b.add(9, "", ids["int"], [])
    ids["restrict"] = b.add(11, "", ids["char *"], [])
    ids["typedef"] = b.add(8, "pgoff_t", ids["ulong"], [])
    ids["tag"] = b.add(18, "rcu", ids["typedef"], [])
    ids["fwd struct"] = b.add(7, "page", 0, [])
    ids["fwd union"] = b.add(7, "nowhere", 0, [], flag=True)
    ids["page *"] = b.add(2, "", ids["fwd struct"], [])
    ids["enum"] = b.add(6, "ttu_flags", 4, [s("TTU_A"), 1, s("TTU_B"), 0xFFFFFFFF], vlen=2)
    ids["signed enum"] = b.add(6, "sign", 4, [s("MINUS"), -1, s("PLUS"), 1], vlen=2, flag=True)
    ids["fwd enum"] = b.add(6, "declared", 4, [])
    ids["enum64"] = b.add(19, "wide", 8, [s("WIDE"), 2, 1], vlen=1)
    ids["signed enum64"] = b.add(19, "swide", 8, [s("SWIDE"), -2, -1], vlen=1, flag=True)
    ids["union"] = b.add(
        5, "", 8, [s("next"), ids["page *"], 0, s("word"), ids["ulong"], 0], vlen=2
    )
    ids["struct"] = b.add(
        4,
        "page",
        80,
        [
            *(s("flags"), ids["tag"], 0),
            *(0, ids["union"], 64),  # anonymous
            *(s("low"), ids["int"], 3 << 24 | 128),  # bit fields of 3 and 29
            *(s("high"), ids["int"], 29 << 24 | 131),
            *(s("array"), ids["array"], 160),
            *(s("more"), ids["flexible"], 640),
        ],
        vlen=6,
        flag=True,
    )
    ids["proto"] = b.add(
        13, "", ids["int"], [s("page"), ids["page *"], s("fmt"), ids["char *"], 0, 0], vlen=3
    )
    ids["func"] = b.add(12, "printk_page", ids["proto"], [], vlen=1)
    ids["var"] = b.add(14, "counter", ids["ulong"], [1])
    ids["datasec"] = b.add(15, ".data..percpu", 8, [ids["var"], 16, 8], vlen=1)
    ids["float"] = b.add(16, "double", 8, [])
    ids["decl_tag"] = b.add(17, "user", ids["struct"], [-1])
    assert b.count == len(ids)
    return b.bytes(), ids


@pytest.mark.parametrize("order", ["<", ">"])
def test_all_kinds(order: str) -> None:
    data, ids = all_kinds(order)
    btf = Btf(data)
    assert btf.big_endian == (order == ">")
    assert len(btf) == len(ids) + 1
    assert {btf.kind(id_) for id_ in range(len(btf))} == set(Kind)
    assert (btf.name(ids["ulong"]), btf.size(ids["ulong"])) == ("long unsigned int", 8)
    assert btf.int_encoding(ids["int"]) == (True, False, False, 0, 32)
    assert btf.int_encoding(ids["bool"]) == (False, False, True, 0, 8)
    assert btf.int_encoding(ids["char"]) == (False, True, False, 0, 8)
    assert btf.array(ids["array"]) == (ids["ulong"], 7)
    assert btf.skip_modifiers(ids["tag"]) == ids["ulong"]
    assert (btf.flag(ids["fwd struct"]), btf.flag(ids["fwd union"])) == (False, True)
    assert btf.enumerators(ids["enum"]) == [("TTU_A", 1), ("TTU_B", 0xFFFFFFFF)]
    assert btf.enumerators(ids["signed enum"]) == [("MINUS", -1), ("PLUS", 1)]
    assert btf.enumerators(ids["enum64"]) == [("WIDE", (1 << 32) + 2)]
    assert btf.enumerators(ids["signed enum64"]) == [("SWIDE", -2)]
    assert btf.members(ids["struct"])[1:4] == [
        Member("", ids["union"], 64, 0),
        Member("low", ids["int"], 128, 3),
        Member("high", ids["int"], 131, 29),
    ]
    assert btf.params(ids["proto"]) == [("page", ids["page *"]), ("fmt", ids["char *"]), ("", 0)]
    assert btf.target(ids["func"]) == ids["proto"]
    assert (btf.linkage(ids["func"]), btf.linkage(ids["var"])) == (1, 1)
    assert btf.section(ids["datasec"]) == [SectionVar(ids["var"], 16, 8)]
    assert btf.component(ids["decl_tag"]) == -1


@pytest.mark.parametrize("order", ["<", ">"])
def test_find(order: str) -> None:
    data, ids = all_kinds(order)
    btf = Btf(data)
    assert btf.find("page", Kind.STRUCT, Kind.FWD) == [ids["fwd struct"], ids["struct"]]
    assert btf.find("page", Kind.STRUCT) == [ids["struct"]]
    assert btf.find("page", Kind.UNION) == btf.find("pag", Kind.STRUCT) == []
    assert btf.find("", Kind.PTR) == []
    assert btf.find_enumerator("WIDE") == [ids["enum64"]]
    assert btf.find_enumerator("SWIDE") == [ids["signed enum64"]]
    assert btf.find_enumerator("TTU_B") == [ids["enum"]]
    assert btf.find_enumerator("page") == btf.find_enumerator("TTU") == []


def test_names_that_share_a_tail() -> None:
    """A writer may store "page" as the end of "subpage"."""
    b = Blob()
    b.string("subpage")
    b.add(4, "subpage", 4, [])
    b.add(4, "", 8, [])
    data = bytearray(b.bytes())
    data[24 + 12 : 24 + 16] = struct.pack("<I", 1 + len("sub"))
    btf = Btf(bytes(data))
    assert btf.name(2) == "page"
    assert (btf.find("page", Kind.STRUCT), btf.find("subpage", Kind.STRUCT)) == ([2], [1])


def test_enums_before_the_sign_flag() -> None:
    """pahole < 1.24 set no flag on any enum: values are signed."""
    b = Blob()
    id_ = b.add(6, "old", 4, [b.string("OLD_ERROR"), -5], vlen=1)
    assert Btf(b.bytes()).enumerators(id_) == [("OLD_ERROR", -5)]


def test_bit_fields_before_the_member_flag() -> None:
    """BTF of 4.18 and 4.19 has them in the integer type."""
    b = Blob()
    field = b.add(1, "unsigned int", 4, [4 << 16 | 3])
    id_ = b.add(4, "old", 4, [b.string("a"), field, 8], vlen=1)
    assert Btf(b.bytes()).members(id_) == [Member("a", field, 12, 3)]


def damaged(change: Callable[[bytearray], Any]) -> bytes:
    data = bytearray(all_kinds("<")[0])
    change(data)
    return bytes(data)


def put(at: int, format_: str, value: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(format_, data, at, value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are no header"),
        (bytes(64), "wrong magic"),
        (damaged(put(2, "B", 2)), "version 2"),
        (damaged(put(4, "<I", 8)), "damaged header"),
        (damaged(put(12, "<I", 1 << 30)), "truncated"),
        (damaged(put(12, "<I", 30)), "damaged header"),
        (damaged(put(20, "<I", 0)), "damaged string section"),
        (damaged(put(24 + 7, "B", 20)), "unknown kind or truncated at type id 1"),
        (damaged(put(24 + 7, "B", 0)), "unknown kind or truncated at type id 1"),
        (damaged(lambda data: data.pop()), "truncated"),
        (all_kinds("<")[0][:100], "truncated"),
    ],
)
def test_damaged(data: bytes, message: str) -> None:
    with pytest.raises(BtfError, match=message) as error:
        Btf(data)
    assert error.value.exit_code == 3
    assert error.value.hint


def test_every_truncation_is_noticed() -> None:
    data = all_kinds("<")[0]
    for length in range(len(data)):
        with pytest.raises(BtfError):
            Btf(data[:length])


def program(order: str = "<") -> Program:
    flags = PlatformFlags.IS_64_BIT
    if order == "<":
        flags |= PlatformFlags.IS_LITTLE_ENDIAN
    return Program(Platform(Architecture.X86_64 if order == "<" else Architecture.PPC64, flags))


def with_btf(data: bytes, symbols: dict[str, tuple[int, int]], order: str = "<") -> Program:
    """A Program that knows this BTF and symbols name -> (address, size)."""
    prog = program(order)
    index = drgn.SymbolIndex(
        drgn.Symbol(n, a, s, drgn.SymbolBinding.GLOBAL, drgn.SymbolKind.OBJECT)
        for n, (a, s) in symbols.items()
    )
    prog.register_symbol_finder("test", index, enable_index=0)
    btf_finder.install(prog, Btf(data))
    return prog


@pytest.mark.parametrize("order", ["<", ">"])
def test_drgn_types(order: str) -> None:
    prog = with_btf(all_kinds(order)[0], {}, order)
    page = prog.type("struct page")
    assert [(m.name, m.bit_offset, m.bit_field_size) for m in page.members] == [
        ("flags", 0, None),
        (None, 64, None),
        ("low", 128, 3),
        ("high", 131, 29),
        ("array", 160, None),
        ("more", 640, None),
    ]
    assert [m.type.type_name() for m in page.members] == [
        "pgoff_t",
        "union <anonymous>",
        "int",
        "int",
        "unsigned long [7]",
        "int []",
    ]
    assert drgn.sizeof(page) == 80
    assert drgn.offsetof(page, "word") == 8
    # The forward declaration that `next` points to is the complete type.
    pointer = prog.type("struct page *").type.member("next").type
    assert pointer.type.is_complete()
    assert (prog.type("_Bool").kind, prog.type("double").kind) == (TypeKind.BOOL, TypeKind.FLOAT)
    assert prog.type("unsigned long").size == 8
    wide = prog.type("enum wide")
    assert (wide.type.size, wide.type.is_signed) == (8, False)
    assert prog.type("enum swide").type.is_signed
    assert prog.type("pgoff_t").type.type_name() == "unsigned long"
    with pytest.raises(LookupError):
        prog.type("struct nowhere")
    with pytest.raises(LookupError):
        prog.type("union nowhere")  # only declared
    with pytest.raises(LookupError):
        prog.type("enum declared")


def test_drgn_objects() -> None:
    prog = with_btf(all_kinds("<")[0], {"counter": (0x100, 8), "printk_page": (BASE, 64)})
    assert prog.constant("TTU_B").value_() == 0xFFFFFFFF
    assert prog["MINUS"].value_() == -1
    assert prog["WIDE"].value_() == (1 << 32) + 2
    assert prog["counter"].address_ == 0x100
    function = prog.function("printk_page")
    assert function.address_ == BASE
    assert function.type_.type_name() == "int (struct page *page, const char *fmt, ...)"
    assert function.type_.is_variadic
    for name in ("absent", "page", "ksm_run"):
        assert name not in prog


def test_qualifiers_add_up() -> None:
    b = Blob()
    integer = b.add(1, "int", 4, [1 << 24 | 32])
    b.add(8, "both", b.add(10, "", b.add(9, "", integer, []), []), [])
    both = with_btf(b.bytes(), {}).type("both").type
    assert both.qualifiers == Qualifiers.CONST | Qualifiers.VOLATILE


def test_table_of_variables() -> None:
    b = Blob()
    b.add(1, "long unsigned int", 8, [64])
    b.add(4, "mm_slot", 48, [])
    symbols = {"ksm_run": (BASE, 8), "ksm_mm_head": (BASE + 64, 48), "ksm_scan": (BASE + 128, 32)}
    prog = with_btf(b.bytes(), symbols)
    assert prog["ksm_run"].type_.type_name() == "unsigned long"
    assert prog["ksm_mm_head"].type_.type_name() == "struct mm_slot"  # no ksm_mm_slot: before 6.1
    assert "ksm_scan" not in prog  # a symbol, but no struct ksm_scan
    assert "ksm_pages_shared" not in prog  # no symbol


def test_variable_that_cannot_fit_its_symbol() -> None:
    b = Blob()
    b.add(1, "long unsigned int", 8, [64])
    prog = with_btf(b.bytes(), {"ksm_run": (BASE, 4)})
    with pytest.raises(BtfError, match="ksm_run has 4 bytes, too few for `unsigned long`"):
        prog["ksm_run"]


def test_statics_of_one_name_are_refused() -> None:
    prog = program()
    index = drgn.SymbolIndex(
        drgn.Symbol("ksm_run", a, 8, drgn.SymbolBinding.LOCAL, drgn.SymbolKind.OBJECT)
        for a in (BASE, BASE + 8)
    )
    prog.register_symbol_finder("test", index, enable_index=0)
    btf_finder.install(prog, Btf(all_kinds("<")[0]))
    assert "ksm_run" not in prog


@pytest.mark.parametrize("kind", [2, 8, 10, 18])
def test_loops_end(kind: int) -> None:
    """A pointer, typedef, const or tag that is its own target."""
    b = Blob()
    b.add(8, "loop", 2, [])
    b.add(kind, "", 1, [])
    prog = with_btf(b.bytes(), {})
    with pytest.raises(BtfError, match="part of a loop"):
        prog.type("loop")
    if kind != 2:
        with pytest.raises(BtfError, match="typedefs in a row"):
            Btf(b.bytes()).skip_modifiers(1)


def test_type_ids_and_strings_out_of_range() -> None:
    b = Blob()
    b.add(8, "dangling", 77, [])
    b.add(4, "holder", 8, [1 << 20, 0, 0], vlen=1)
    prog = with_btf(b.bytes(), {})
    with pytest.raises(BtfError, match="type id 77 of 3"):
        prog.type("dangling")
    with pytest.raises(BtfError, match="string offset"):
        prog.type("struct holder")


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=6))
def test_any_damage_is_a_btf_error(place: int, junk: bytes) -> None:
    """Overwritten anywhere, in whatever way: it works or it is a BtfError."""
    data = bytearray(all_kinds("<")[0])
    place %= len(data)
    data[place : place + len(junk)] = junk
    try:
        prog = with_btf(bytes(data), {"counter": (BASE, 8), "printk_page": (BASE, 8)})
        for name in ("struct page", "pgoff_t", "enum wide", "enum sign", "double", "_Bool"):
            try:
                type_ = prog.type(name)
            except LookupError:
                continue
            if type_.kind == TypeKind.STRUCT:
                assert len([member.type for member in type_.members]) == len(type_.members)
        for name in ("counter", "printk_page", "TTU_A", "SWIDE"):
            assert isinstance(name in prog, bool)
    except BtfError:
        pass


@cache
def fixture(name: str) -> Program:
    prog: Program = open_core(VMCORES / f"{name}.kdump").prog
    return prog


@pytest.mark.parametrize(
    ("name", "head", "lru", "anon_vma", "zero_pages"),
    [  # as the DWARF of these kernels has them
        ("x86_64-6.1-tiny", 16, 4, 88, False),
        ("x86_64-6.12-tiny", 6, 5, 88, True),
        ("x86_64-6.12-debian-cloud", 6, 5, 104, True),
    ],
)
def test_real_kernels(name: str, head: int, lru: int, anon_vma: int, zero_pages: bool) -> None:
    prog = fixture(name)
    page = prog.type("struct page")
    offsets = [drgn.offsetof(page, member) for member in ("mapping", "_mapcount", "_refcount")]
    assert (page.size, offsets) == (64, [24, 48, 52])
    assert (prog["PG_head"].value_(), prog["PG_lru"].value_()) == (head, lru)
    assert prog.type("struct ksm_rmap_item").size == 64
    assert prog["ksm_mm_head"].type_.type_name() == "struct ksm_mm_slot"
    assert drgn.offsetof(prog.type("struct vm_area_struct"), "anon_vma") == anon_vma
    assert ("ksm_zero_pages" in prog) == ("split_underused_thp" in prog) == zero_pages
    assert ("ksm_smart_scan" in prog) == zero_pages
    assert prog["init_task"].pid == 0
    assert prog["init_pid_ns"].level == 0
    assert "mm_slots_hash" not in prog  # ksm.c and khugepaged.c each have one


@pytest.mark.parametrize("name", ["x86_64-6.1-tiny", "x86_64-6.12-tiny"])
def test_every_type_of_a_real_kernel_can_be_built(name: str) -> None:
    btf = Btf(read_btf(fixture(name)))
    prog = program()
    finder = btf_finder.install(prog, btf)
    built = 0
    for id_ in range(len(btf)):
        if btf.kind(id_) in (Kind.VAR, Kind.DATASEC, Kind.DECL_TAG):
            continue
        type_ = finder.type_by_id(id_)
        if type_.kind in (TypeKind.STRUCT, TypeKind.UNION) and type_.is_complete():
            for member in type_.members or ():
                end = member.bit_offset + (member.bit_field_size or 8 * size_of(member.type))
                assert end <= 8 * type_.size, (type_.type_name(), member.name)
                built += 1
    assert built > 20_000


def size_of(type_: drgn.Type) -> int:
    try:
        return int(drgn.sizeof(type_))
    except TypeError:  # a flexible array
        return 0


@pytest.mark.skipif(not DWARF, reason="KSM_EVAL_TEST_DWARF=VMLINUX:VMCORE is not set")
def test_every_named_type_equals_dwarf() -> None:
    """Sizes, offsets, bit fields, values: all named types, against DWARF of the same kernel."""
    vmlinux, core = DWARF.split(":")
    by_dwarf = open_core(Path(core), symbols=[Path(vmlinux)]).prog
    by_btf = open_core(Path(core)).prog
    btf = Btf(read_btf(by_btf))
    words = {Kind.STRUCT: "struct ", Kind.UNION: "union ", Kind.ENUM: "enum ", Kind.TYPEDEF: ""}
    equal, different, local = 0, [], []
    for id_ in range(len(btf)):
        kind, name = btf.kind(id_), btf.name(id_)
        if kind not in words or not name or len(btf.find(name, kind)) > 1:
            continue  # of several definitions DWARF may find another
        spelled = f"{words[kind]}{name}"
        if kind == Kind.ENUM and not btf.enumerators(id_):
            continue  # only declared
        mine = describe(by_btf.type(spelled))
        try:
            theirs = describe(by_dwarf.type(spelled))
        except LookupError:
            local.append(spelled)  # drgn's DWARF index has no types that are local to a function
            continue
        if mine == theirs:
            equal += 1
        else:
            different.append(spelled)
    print(f"{equal} equal; different: {different}; local: {local}")
    assert equal > 3000
    assert len(local) < equal / 50
    assert different == []


def describe(type_: drgn.Type, depth: int = 0) -> object:
    """What must agree. Arrays by their number of elements in all: pahole flattens a[2][3]."""
    if type_.kind == TypeKind.ARRAY:
        count = type_.length
        while type_.type.kind == TypeKind.ARRAY:
            type_ = type_.type
            count = None if count is None or type_.length is None else count * type_.length
        return "array", count or 0, describe(type_.type, depth + 1)
    if type_.kind in (TypeKind.STRUCT, TypeKind.UNION) and (depth == 0 or type_.tag is None):
        if not type_.is_complete():
            return type_.kind, type_.tag
        return (
            *(type_.kind, type_.tag, type_.size),
            tuple(
                (m.name, m.bit_offset, m.bit_field_size, describe(m.type, depth + 1))
                for m in type_.members
            ),
        )
    if type_.kind == TypeKind.ENUM and (depth == 0 or type_.tag is None):
        return type_.kind, type_.tag, type_.type.size, [tuple(e) for e in type_.enumerators]
    if type_.kind == TypeKind.TYPEDEF and depth == 0:
        return "typedef", type_.name, describe(type_.type, depth + 1)
    if type_.kind in (TypeKind.POINTER, TypeKind.FUNCTION):
        return type_.kind  # what they point to is a type of its own
    return type_.kind, type_.qualifiers, type_.type_name()
