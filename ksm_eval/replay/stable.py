"""ksmd's stable nodes: chains, dups, the cap (mm/ksm.c: stable_node_dup() and its callers)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ksm_eval.replay.rbtree import Node, RedBlackTree

FULL = -1
"""Instead of a node: none has room, or there is none."""
GONE = -2
"""Instead of a node: what was there was stale and is dropped; the search starts again."""


class Chain:
    """Stable nodes of equal contents, newest first but for those moved to the front."""

    __slots__ = ("dups", "open", "stamp")

    def __init__(self, dups: deque[int], open_dups: int, stamp: int) -> None:
        self.dups = dups
        self.open = open_dups  # how many of them are not full
        self.stamp = stamp  # chain_prune_time, ms


class StableTree:
    """Stable nodes are numbered; `tree` has the one of a content, or the chain of them.

    Each chain and node that a search passes is pruned or dropped, not only the one that is
    sought. That needs `trees`, the red-black trees by NUMA node, and the memcmp rank of each
    content; without them a search touches the entry of its own content only.
    """

    def __init__(
        self,
        cap: int,
        prune_millisecs: int,
        *,
        collapse_always: bool,
        drop: Callable[[int], int],
        shaped: bool,
    ) -> None:
        self.cap = cap
        self.prune_millisecs = prune_millisecs
        self.collapse_always = collapse_always  # 6.11+: at any walk, before: only when pruning
        self.drop = drop  # a stale node's items leave; returns how many there were
        self.now = 0  # ms
        self.tree: dict[int, int | Chain] = {}
        self.trees: dict[int, RedBlackTree] | None = {} if shaped else None
        self.tree_nodes: dict[int, tuple[RedBlackTree, Node]] = {}  # by content
        self.length: list[int] = []  # rmap_hlist_len of each node
        self.content: list[int] = []
        self.stale: set[int] = set()  # their frames are mapped no more; still in the tree
        self.shared = 0
        self.sharing = 0
        self.chains = 0
        self.dups = 0

    def search(self, content: int, rank: int = 0, numa: int = 0) -> int:
        """The node to merge into, or FULL (stable_tree_search())."""
        while True:
            found = self._descend(content, rank, numa, True)
            if found != GONE:
                return found

    def insert(self, content: int, rank: int = 0, numa: int = 0) -> int:
        """A new, empty node (stable_tree_insert()); content -1: known to no search."""
        node = len(self.length)
        self.length.append(0)
        self.content.append(content)
        if content < 0:
            return node
        while self._descend(content, rank, numa, False) == GONE:
            pass
        found = self.tree.get(content)
        if found is None:
            self.tree[content] = node
            self._link(content, rank, numa)
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
            self._opened(node, -1)

    def detach(self, node: int) -> None:
        """remove_rmap_item_from_tree() of a node that is not stale."""
        length = self.length[node] - 1
        self.length[node] = length
        if length:
            self.sharing -= 1
        else:
            self.shared -= 1
        if length == self.cap - 1:
            self._opened(node, 1)

    def adopt(self, content: int, rank: int, numa: int, items: int, length: int) -> int:
        """A node that the target has already: `items` selected mappings, `length` in all."""
        node = self.insert(content, rank, numa)
        self.length[node] = length
        self.shared += 1
        self.sharing += items - 1
        if length >= self.cap:
            self._opened(node, -1)
        return node

    def remove(self, node: int) -> None:
        """remove_node_from_stable_tree(): the node is stale, all its items leave at once."""
        self.stale.discard(node)
        items = self.drop(node)
        if items:
            self.shared -= 1
            self.sharing -= items - 1
        content = self.content[node]
        found = self.tree.get(content)
        if isinstance(found, Chain):
            found.dups.remove(node)
            found.open -= self.length[node] < self.cap
            self.dups -= 1
        elif found == node:
            self._unlink(content)
        self.length[node] = 0

    def _opened(self, node: int, change: int) -> None:
        found = self.tree.get(self.content[node])
        if isinstance(found, Chain):
            found.open += change

    def _link(self, content: int, rank: int, numa: int) -> None:
        if self.trees is None:
            return
        tree = self.trees.setdefault(numa, RedBlackTree())
        parent, at, left = None, tree.root, False
        while at is not None:
            parent, left = at, rank < at.rank
            at = at.left if left else at.right
        node = Node(content, rank)
        tree.insert(node, parent, left)
        self.tree_nodes[content] = tree, node

    def _unlink(self, content: int) -> None:
        del self.tree[content]
        if self.trees is not None:
            tree, node = self.tree_nodes.pop(content)
            tree.erase(node)

    def _descend(self, content: int, rank: int, numa: int, prune: bool) -> int:
        if self.trees is None:
            return self._touch(content, prune) if content in self.tree else FULL
        tree = self.trees.get(numa)
        at = None if tree is None else tree.root
        while at is not None:
            found = self._touch(at.item, prune)
            if found == GONE or at.rank == rank:
                return found
            at = at.left if rank < at.rank else at.right
        return FULL

    def _touch(self, content: int, prune: bool) -> int:
        """chain_prune(), or chain() without `prune`: the node that has room, FULL or GONE."""
        entry, length, cap = self.tree[content], self.length, self.cap
        if not isinstance(entry, Chain):
            if entry in self.stale:
                self.remove(entry)
                return GONE
            return entry if 0 < length[entry] < cap else FULL
        prune = prune and self.now - entry.stamp >= self.prune_millisecs
        if prune:
            entry.stamp = self.now
        dups = entry.dups
        if not entry.open and not self.stale and len(dups) > 1:
            return FULL
        best, count = FULL, 0
        # Once the prune interval has passed the longest one is chosen, else the first.
        for dup in tuple(dups) if self.stale else dups:
            if dup in self.stale:
                self.remove(dup)
                continue
            count += 1
            if 0 < length[dup] < cap and (best < 0 or length[dup] > length[best]):
                best = dup
                if not prune or (entry.open == 1 and not self.stale):
                    break
        if not dups:
            self._unlink(content)
            self.chains -= 1
            return GONE
        if len(dups) == 1 and (self.collapse_always or (prune and count == 1 and best >= 0)):
            self.tree[content] = dups[0]
            self.chains -= 1
            self.dups -= 1
        elif best >= 0 and dups[0] != best and length[best] + 1 < cap:
            dups.remove(best)
            dups.appendleft(best)
        return best
