"""ksmd's stable nodes: chains, dups, the cap (mm/ksm.c: stable_node_dup() and its callers)."""

from __future__ import annotations

from collections import deque


class Chain:
    """Stable nodes of equal contents, newest first but for those moved to the front."""

    __slots__ = ("dups", "open", "stamp")

    def __init__(self, dups: deque[int], open_dups: int, stamp: int) -> None:
        self.dups = dups
        self.open = open_dups  # how many of them are not full
        self.stamp = stamp  # chain_prune_time, ms


class StableTree:
    """Stable nodes are numbered; `tree` has the one of a content, or the chain of them.

    Frozen contents, so a dictionary stands for the red-black tree, and no node is ever
    stale: nothing that ksmd merged goes away in one snapshot.
    """

    def __init__(self, cap: int, prune_millisecs: int) -> None:
        self.cap = cap
        self.prune_millisecs = prune_millisecs
        self.now = 0  # ms
        self.tree: dict[int, int | Chain] = {}
        self.length: list[int] = []  # rmap_hlist_len of each node
        self.content: list[int] = []
        self.shared = 0
        self.sharing = 0
        self.chains = 0
        self.dups = 0

    def insert(self, content: int) -> int:
        """A new, empty node (stable_tree_insert()); content -1: known to no search."""
        node = len(self.length)
        self.length.append(0)
        self.content.append(content)
        if content < 0:
            return node
        found = self.tree.get(content)
        if found is None:
            self.tree[content] = node
        elif isinstance(found, Chain):
            found.dups.appendleft(node)
            found.open += 1
            self.dups += 1
        else:
            still_open = self.length[found] < self.cap
            self.tree[content] = Chain(deque((node, found)), 1 + still_open, self.now)
            self.chains += 1
            self.dups += 2
        return node

    def attach(self, node: int) -> None:
        """stable_tree_append(): one more rmap_item, above the cap too."""
        length = self.length[node] + 1
        self.length[node] = length
        if length == 1:
            self.shared += 1
        else:
            self.sharing += 1
        if length == self.cap:
            self._full(node)

    def adopt(self, content: int, items: int, length: int) -> int:
        """A node that the target has already: `items` selected mappings, `length` in all."""
        node = self.insert(content)
        self.length[node] = length
        self.shared += 1
        self.sharing += items - 1
        if length >= self.cap:
            self._full(node)
        return node

    def _full(self, node: int) -> None:
        found = self.tree.get(self.content[node])
        if isinstance(found, Chain):
            found.open -= 1

    def search(self, found: int | Chain) -> int:
        """The node to merge into, -1 if all are full (stable_node_dup(), chain_prune())."""
        if not isinstance(found, Chain):
            return found if 0 < self.length[found] < self.cap else -1
        prune = self.now - found.stamp >= self.prune_millisecs
        if prune:
            found.stamp = self.now
        if not found.open:
            return -1
        length, cap, dups = self.length, self.cap, found.dups
        best = -1
        # Once the prune interval has passed the longest one is chosen, else the first.
        for dup in dups:
            if length[dup] < cap and (best < 0 or length[dup] > length[best]):
                best = dup
                if not prune or found.open == 1:
                    break
        if dups[0] != best and length[best] + 1 < cap:
            dups.remove(best)
            dups.appendleft(best)
        return best
