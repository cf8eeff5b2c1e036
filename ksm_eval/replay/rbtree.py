"""A red-black tree of the same shape as the kernel's lib/rbtree.c.

Only used where a search can end on the way down, so that the shape of ksmd's unstable
tree decides the counters. Search is the caller's: it must look at every node it passes.
"""

from __future__ import annotations


class Node:
    """One item of the tree, with the memcmp rank of its page."""

    __slots__ = ("item", "left", "parent", "rank", "red", "right")

    def __init__(self, item: int, rank: int) -> None:
        self.item = item
        self.rank = rank
        self.left: Node | None = None
        self.right: Node | None = None
        self.parent: Node | None = None
        self.red = True


class RedBlackTree:
    """Insertion and removal only. `root` is where a search starts."""

    __slots__ = ("root",)

    def __init__(self) -> None:
        self.root: Node | None = None

    def insert(self, node: Node, parent: Node | None, left: bool) -> None:
        """Link a leaf below `parent` (None: it is the root) and rebalance."""
        node.parent = parent
        if parent is None:
            self.root = node
        elif left:
            parent.left = node
        else:
            parent.right = node
        while (parent := node.parent) is not None and parent.red:
            grand = parent.parent
            assert grand is not None  # a red node is never the root
            left_side = parent is grand.left
            uncle = grand.right if left_side else grand.left
            if uncle is not None and uncle.red:
                parent.red = uncle.red = False
                grand.red = True
                node = grand
                continue
            if node is (parent.right if left_side else parent.left):
                self._rotate(parent, left_side)
                parent = node
            parent.red = False
            grand.red = True
            self._rotate(grand, not left_side)
            break
        assert self.root is not None
        self.root.red = False

    def erase(self, node: Node) -> None:
        """Remove a node; with two children its successor takes its place."""
        if node.left is None or node.right is None:
            child = node.left or node.right
            parent, removed_red = node.parent, node.red
            self._replace(node, child)
        else:
            successor = node.right
            while successor.left is not None:
                successor = successor.left
            child, removed_red = successor.right, successor.red
            if successor.parent is node:
                parent = successor
            else:
                parent = successor.parent
                self._replace(successor, child)
                successor.right = node.right
                successor.right.parent = successor
            self._replace(node, successor)
            successor.left = node.left
            successor.left.parent = successor
            successor.red = node.red
        if not removed_red:
            self._repair(child, parent)
        node.left = node.right = node.parent = None

    def _repair(self, node: Node | None, parent: Node | None) -> None:
        """Paths through `node` (below `parent`) have one black node too few."""
        while parent is not None and (node is None or not node.red):
            left_side = node is parent.left
            sibling = parent.right if left_side else parent.left
            assert sibling is not None  # or the other paths would be the shorter ones
            if sibling.red:
                sibling.red, parent.red = False, True
                self._rotate(parent, left_side)
                sibling = parent.right if left_side else parent.left
                assert sibling is not None
            near, far = sibling.left, sibling.right
            if not left_side:
                near, far = far, near
            if (near is None or not near.red) and (far is None or not far.red):
                sibling.red = True
                node, parent = parent, parent.parent
                continue
            if far is None or not far.red:
                assert near is not None
                near.red, sibling.red = False, True
                self._rotate(sibling, not left_side)
                sibling, far = near, sibling
            sibling.red, parent.red, far.red = parent.red, False, False
            self._rotate(parent, left_side)
            return
        if node is not None:
            node.red = False

    def _rotate(self, node: Node, left: bool) -> None:
        """The child on the other side takes the place of `node`."""
        child = node.right if left else node.left
        assert child is not None
        if left:
            inner = node.right = child.left
            child.left = node
        else:
            inner = node.left = child.right
            child.right = node
        if inner is not None:
            inner.parent = node
        self._replace(node, child)
        node.parent = child

    def _replace(self, node: Node, child: Node | None) -> None:
        parent = node.parent
        if parent is None:
            self.root = child
        elif node is parent.left:
            parent.left = child
        else:
            parent.right = child
        if child is not None:
            child.parent = parent
