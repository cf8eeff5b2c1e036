"""The BTF index as drgn type and object finders, and the types of variables BTF lacks.

Nothing outside this module and program.py knows whether DWARF or BTF is in use. Kernels
built with pahole < 1.26 (and all so far by default) describe only per-cpu variables in
their BTF, so the other variables that drgn's helpers and we read have their types here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import drgn
from drgn import FindObjectFlags, Object, Program, Qualifiers, Type, TypeKind

from ksm_eval.target.btf import MAX_DEPTH, VOID, Btf, BtfError, Kind

FINDER_NAME: Final = "ksm_eval_btf"
"""Not "btf": that is what drgn calls its own BTF support in a later version."""

_UNSIGNED_LONGS: Final = """
    page_offset_base vmemmap_base vmalloc_base phys_base max_pfn min_low_pfn max_low_pfn
    zero_pfn zero_page_pfn huge_zero_pfn transparent_hugepage_flags __highest_present_section_nr
    ksm_run ksm_pages_shared ksm_pages_sharing ksm_pages_unshared ksm_rmap_items
    ksm_stable_node_chains ksm_stable_node_dups ksm_pages_scanned ksm_pages_skipped
    ksm_advisor_target_scan_time ksm_advisor_min_pages_to_scan ksm_advisor_max_pages_to_scan
"""
_UNSIGNED_INTS: Final = """
    nr_node_ids nr_cpu_ids __pgtable_l5_enabled pgdir_shift ptrs_per_p4d
    ksm_thread_pages_to_scan ksm_thread_sleep_millisecs zero_checksum ksm_merge_across_nodes
    ksm_stable_node_chains_prune_millisecs ksm_advisor_max_cpu
"""
_INTS: Final = "ksm_max_page_sharing ksm_nr_node_ids sysctl_overcommit_memory"
_BOOLS: Final = "ksm_use_zero_pages ksm_smart_scan split_underused_thp"
_OTHERS: Final = {
    # Tasks, cgroups, memory layout: what drgn's helpers ask for.
    "init_task": "struct task_struct",
    "init_mm": "struct mm_struct",
    "init_pid_ns": "struct pid_namespace",
    "init_user_ns": "struct user_namespace",
    "init_uts_ns": "struct uts_namespace",
    "cgrp_dfl_root": "struct cgroup_root",
    "modules": "struct list_head",
    "mem_section": "struct mem_section **",  # SPARSEMEM_EXTREME
    "mem_map": "struct page *",  # FLATMEM
    "contig_page_data": "struct pglist_data",
    "node_data": "struct pglist_data *[]",
    "node_states": "nodemask_t []",
    "__per_cpu_offset": "unsigned long []",
    "__cpu_online_mask": "struct cpumask",
    "__cpu_possible_mask": "struct cpumask",
    "__cpu_present_mask": "struct cpumask",
    "high_memory": "void *",
    "saved_command_line": "char *",
    "linux_banner": "char []",
    "_totalram_pages": "atomic_long_t",
    "vm_zone_stat": "atomic_long_t []",
    "vm_node_stat": "atomic_long_t []",
    # Per-CPU; 5.10's BTF has only those that are exported.
    "lru_pvecs": "struct lru_pvecs",
    "lru_rotate": "struct lru_rotate",
    # arm64
    "kimage_voffset": "u64",
    "memstart_addr": "s64",
    "vabits_actual": "u64",
    # The zero pages.
    "empty_zero_page": "unsigned long []",  # one page, whose size depends on the architecture
    "huge_zero_page": "struct page *",  # before 6.10
    "huge_zero_folio": "struct folio *",
    # mm/ksm.c, the parts that are not plain numbers.
    "ksm_zero_pages": "atomic_long_t",  # unsigned long in 6.6 to 6.9: same size, same reading
    "ksm_advisor": "enum ksm_advisor_type",
    "ksm_scan": "struct ksm_scan",
    "ksm_mm_head": "struct ksm_mm_slot | struct mm_slot",  # the first since 6.1
    "root_stable_tree": "struct rb_root *",
    "root_unstable_tree": "struct rb_root *",
    "one_stable_tree": "struct rb_root []",
    "one_unstable_tree": "struct rb_root []",
    "migrate_nodes": "struct list_head",
}

VARIABLES: Final[dict[str, str]] = {
    **dict.fromkeys(_UNSIGNED_LONGS.split(), "unsigned long"),
    **dict.fromkeys(_UNSIGNED_INTS.split(), "unsigned int"),
    **dict.fromkeys(_INTS.split(), "int"),
    **dict.fromkeys(_BOOLS.split(), "bool"),
    **_OTHERS,
}
"""C type by variable; "A | B" is A, or B where the kernel has no A."""

_KINDS: Final = {
    TypeKind.STRUCT: Kind.STRUCT,
    TypeKind.UNION: Kind.UNION,
    TypeKind.TYPEDEF: Kind.TYPEDEF,
    TypeKind.FLOAT: Kind.FLOAT,
}


class BtfFinder:
    """Builds drgn types from a Btf when they are first asked for, and remembers them."""

    def __init__(self, prog: Program, btf: Btf) -> None:
        self._prog = prog
        self._btf = btf
        self._types: dict[int, Type] = {}
        self._depth = 0
        self._objects: dict[tuple[str, FindObjectFlags], Object | None] = {}
        self._named: dict[tuple[str, tuple[TypeKind, ...]], Type | None] = {}

    def find_type(
        self, _prog: Program, kinds: drgn.TypeKindSet, name: str, filename: str | None
    ) -> Type | None:
        """drgn's type finder. Of several definitions the first wins, as for DWARF."""
        if filename:
            return None  # BTF knows no files
        key = (name, tuple(kinds))
        if key not in self._named:
            ids = [id_ for kind in key[1] for id_ in self._ids(kind, name)]
            self._named[key] = self.type_by_id(ids[0]) if ids else None
        return self._named[key]

    def find_object(
        self, _prog: Program, name: str, flags: FindObjectFlags, filename: str | None
    ) -> Object | None:
        """drgn's object finder: enumerators, functions, variables.

        An absent symbol or type means "not found". Raises BtfError if the type cannot fit
        the symbol, that is if VARIABLES is wrong about this kernel.
        """
        if filename:
            return None
        key = (name, flags)
        if key not in self._objects:
            with _refusals():
                self._objects[key] = self._find_object(name, flags)
        return self._objects[key]

    def _find_object(self, name: str, flags: FindObjectFlags) -> Object | None:
        found = None
        if flags & FindObjectFlags.CONSTANT:
            found = self._constant(name)
        if found is None and flags & FindObjectFlags.FUNCTION:
            found = self._function(name)
        if found is None and flags & FindObjectFlags.VARIABLE:
            found = self._variable(name)
        return found

    def _ids(self, kind: TypeKind, name: str) -> list[int]:
        if kind in (TypeKind.INT, TypeKind.BOOL):
            wants_bool = kind == TypeKind.BOOL
            ids = self._btf.find(name, Kind.INT)
            return [id_ for id_ in ids if self._btf.int_encoding(id_).bool == wants_bool]
        if kind == TypeKind.ENUM:  # without enumerators it is a forward declaration
            ids = self._btf.find(name, Kind.ENUM, Kind.ENUM64)
            return [id_ for id_ in ids if self._btf.enumerators(id_)]
        return self._btf.find(name, _KINDS[kind]) if kind in _KINDS else []

    def _constant(self, name: str) -> Object | None:
        for id_ in self._btf.find_enumerator(name):
            for enumerator in self._btf.enumerators(id_):
                if enumerator.name == name:
                    return Object(self._prog, self.type_by_id(id_), value=enumerator.value)
        return None

    def _function(self, name: str) -> Object | None:
        ids = self._btf.find(name, Kind.FUNC)
        symbol = self._symbol(name) if ids else None
        if symbol is None:
            return None
        return Object(self._prog, self.type_by_id(self._btf.target(ids[0])), address=symbol.address)

    def _variable(self, name: str) -> Object | None:
        ids = self._btf.find(name, Kind.VAR)
        if not ids and name not in VARIABLES:
            return None
        symbol = self._symbol(name)
        if symbol is None:
            return None
        type_ = (
            self.type_by_id(self._btf.target(ids[0])) if ids else self._declared(VARIABLES[name])
        )
        if type_ is None:
            return None
        # A symbol's size is the distance to the next one, never less than the variable's.
        if type_.kind != TypeKind.ARRAY and 0 < symbol.size < drgn.sizeof(type_):
            raise BtfError(f"{name} has {symbol.size} bytes, too few for `{type_.type_name()}`")
        return Object(self._prog, type_, address=symbol.address)

    def _declared(self, declaration: str) -> Type | None:
        for candidate in declaration.split(" | "):
            try:
                return self._prog.type(candidate)
            except LookupError:
                continue
        return None

    def _symbol(self, name: str) -> drgn.Symbol | None:
        """The symbol of that name; None if statics of several files share it."""
        symbols = self._prog.symbols(name)
        if len({symbol.address for symbol in symbols}) != 1:
            return None
        return symbols[0]

    def type_by_id(self, type_id: int) -> Type:
        """The drgn type of a BTF type id."""
        type_ = self._types.get(type_id)
        if type_ is None:
            # Members and parameters are built when asked for, so only chains recurse.
            if self._depth >= MAX_DEPTH:
                raise BtfError(f"type id {type_id} is part of a loop")
            self._depth += 1
            try:
                with _refusals():
                    type_ = self._types[type_id] = self._build(type_id)
            finally:
                self._depth -= 1
        return type_

    def _build(self, type_id: int) -> Type:
        btf, prog = self._btf, self._prog
        kind = btf.kind(type_id)
        if kind == Kind.VOID:
            return prog.void_type()
        if kind in (Kind.INT, Kind.FLOAT) and btf.size(type_id) not in (1, 2, 4, 8, 12, 16):
            # As btf_int_check_meta() of kernel/bpf/btf.c; drgn would refuse its values later.
            raise BtfError(f"a number of {btf.size(type_id)} bytes")
        if kind == Kind.INT:
            encoding = btf.int_encoding(type_id)
            if encoding.bool:
                return prog.bool_type(btf.name(type_id), btf.size(type_id))
            return prog.int_type(btf.name(type_id), btf.size(type_id), encoding.signed)
        if kind == Kind.FLOAT:
            return prog.float_type(btf.name(type_id), btf.size(type_id))
        if kind == Kind.PTR:
            return prog.pointer_type(self.type_by_id(btf.target(type_id)))
        if kind == Kind.TYPEDEF:
            return prog.typedef_type(btf.name(type_id), self.type_by_id(btf.target(type_id)))
        if kind == Kind.ARRAY:
            element, length = btf.array(type_id)
            return prog.array_type(self.type_by_id(element), length or None)
        if kind in (Kind.STRUCT, Kind.UNION):
            return self._compound(type_id, kind)
        if kind in (Kind.ENUM, Kind.ENUM64):
            return self._enum(type_id)
        if kind == Kind.FWD:
            return self._forward(type_id)
        if kind == Kind.FUNC_PROTO:
            return self._prototype(type_id)
        if kind == Kind.FUNC:
            return self.type_by_id(btf.target(type_id))
        if kind == Kind.TYPE_TAG:
            return self.type_by_id(btf.target(type_id))
        qualifiers = {
            Kind.CONST: Qualifiers.CONST,
            Kind.VOLATILE: Qualifiers.VOLATILE,
            Kind.RESTRICT: Qualifiers.RESTRICT,
        }
        if kind not in qualifiers:  # VAR, DATASEC, DECL_TAG
            raise BtfError(f"type id {type_id} is a {kind.name}, not a type")
        inner = self.type_by_id(btf.target(type_id))
        return inner.qualified(inner.qualifiers | qualifiers[kind])

    def _compound(self, type_id: int, kind: Kind) -> Type:
        members = [
            drgn.TypeMember(self._member(m.type, m.bit_size), m.name or None, m.bit_offset)
            for m in self._btf.members(type_id)
        ]
        make = self._prog.struct_type if kind == Kind.STRUCT else self._prog.union_type
        return make(self._btf.name(type_id) or None, self._btf.size(type_id), members)

    def _member(self, type_id: int, bit_size: int) -> Callable[[], Object | Type]:
        def make() -> Object | Type:
            type_ = self.type_by_id(type_id)
            with _refusals():
                return Object(self._prog, type_, bit_field_size=bit_size) if bit_size else type_

        return make

    def _enum(self, type_id: int) -> Type:
        name, size = self._btf.name(type_id) or None, self._btf.size(type_id)
        values = self._btf.enumerators(type_id)
        if not values:
            return self._prog.enum_type(name)
        signed = self._btf.flag(type_id) or any(value.value < 0 for value in values)
        integer = {1: "char", 2: "short", 4: "int", 8: "long"}.get(size)
        if integer is None:
            raise BtfError(f"an enum of {size} bytes")
        compatible = self._prog.int_type(integer if signed else f"unsigned {integer}", size, signed)
        return self._prog.enum_type(
            name, compatible, [drgn.TypeEnumerator(value.name, value.value) for value in values]
        )

    def _forward(self, type_id: int) -> Type:
        """A forward declaration: the complete type if there is one."""
        name, union = self._btf.name(type_id), self._btf.flag(type_id)
        complete = self._btf.find(name, Kind.UNION if union else Kind.STRUCT)
        if complete:
            return self.type_by_id(complete[0])
        return self._prog.union_type(name) if union else self._prog.struct_type(name)

    def _prototype(self, type_id: int) -> Type:
        params = self._btf.params(type_id)
        variadic = bool(params) and params[-1] == ("", VOID)
        return self._prog.function_type(
            self.type_by_id(self._btf.target(type_id)),
            [
                drgn.TypeParameter(self._member(param.type, 0), param.name or None)
                for param in (params[:-1] if variadic else params)
            ],
            variadic,
        )


@contextmanager
def _refusals() -> Iterator[None]:
    """drgn refuses what no compiler writes (an integer of 3 bytes, a variable of type void)."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise BtfError(str(error)) from None


def install(prog: Program, btf: Btf) -> BtfFinder:
    """Make `btf` the last type and object finder of the program, which needs its symbols first."""
    finder = BtfFinder(prog, btf)
    prog.register_type_finder(FINDER_NAME, finder.find_type, enable_index=-1)
    prog.register_object_finder(FINDER_NAME, finder.find_object, enable_index=-1)
    return finder
