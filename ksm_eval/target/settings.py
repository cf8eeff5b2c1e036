"""The target's own KSM tunables and counters, where its variables can be found."""

from __future__ import annotations

from dataclasses import replace

from drgn import FaultError, Object, Program

from ksm_eval.replay.rules import Rules, Settings

# sysfs name -> variable of mm/ksm.c, the same from 5.10 to 7.3. All but ksm_zero_pages are
# static: found with CONFIG_KALLSYMS_ALL or DWARF only.
_TUNABLES = {
    "max_page_sharing": "ksm_max_page_sharing",
    "use_zero_pages": "ksm_use_zero_pages",
    "merge_across_nodes": "ksm_merge_across_nodes",
    "smart_scan": "ksm_smart_scan",
    "pages_to_scan": "ksm_thread_pages_to_scan",
    "sleep_millisecs": "ksm_thread_sleep_millisecs",
    "stable_node_chains_prune_millisecs": "ksm_stable_node_chains_prune_millisecs",
}
_COUNTERS = {
    "run": "ksm_run",
    "pages_shared": "ksm_pages_shared",
    "pages_sharing": "ksm_pages_sharing",
    "pages_unshared": "ksm_pages_unshared",
    "pages_scanned": "ksm_pages_scanned",
    "pages_skipped": "ksm_pages_skipped",
    "stable_node_chains": "ksm_stable_node_chains",
    "stable_node_dups": "ksm_stable_node_dups",
    "ksm_zero_pages": "ksm_zero_pages",
    "ksm_rmap_items": "ksm_rmap_items",
}


def _variable(prog: Program, name: str) -> Object | None:
    try:
        value = prog[name].read_()
    except (LookupError, FaultError):
        return None
    try:
        return value.counter  # atomic_long_t ksm_zero_pages, 6.10+
    except AttributeError:
        return value


def read_settings(prog: Program, rules: Rules) -> tuple[Settings, dict[str, str]]:
    """The tunables, and for each "target" or "kernel default"."""
    settings = Settings(smart_scan=rules.smart_scan)
    source = dict.fromkeys(_TUNABLES, "kernel default")
    for name, variable in _TUNABLES.items():
        value = _variable(prog, variable)
        if value is not None:
            kind = type(getattr(settings, name))
            settings = replace(settings, **{name: kind(value.value_())})
            source[name] = "target"
    return settings, source


def read_counters(prog: Program) -> dict[str, int]:
    """/sys/kernel/mm/ksm counters by file name, as show functions of mm/ksm.c compute them."""
    found = {}
    for name, variable in _COUNTERS.items():
        value = _variable(prog, variable)
        if value is not None:
            found[name] = int(value.value_())
    scan = _variable(prog, "ksm_scan")
    if scan is not None:
        found["full_scans"] = int(scan.seqnr.value_())
    parts = ("ksm_rmap_items", "pages_shared", "pages_sharing", "pages_unshared")
    if all(name in found for name in parts):
        items, shared, sharing, unshared = (found[name] for name in parts)
        found["pages_volatile"] = max(0, items - shared - sharing - unshared)
    return found
