"""The tree has the shape that the kernel's lib/rbtree.c gives.

The expected shapes were printed by lib/rbtree.c of 6.12, compiled in user space: each node
as (key, b or r for its colour, left, right), "." for none.
"""

from __future__ import annotations

import pytest

from ksm_eval.replay.rbtree import Node, RedBlackTree


def shape(node: Node | None) -> str:
    if node is None:
        return "."
    return f"({node.rank}{'r' if node.red else 'b'}{shape(node.left)}{shape(node.right)})"


def grown(*steps: int) -> RedBlackTree:
    """Insert each key, remove each negated one."""
    tree = RedBlackTree()
    nodes: dict[int, Node] = {}
    for key in steps:
        if key < 0:
            tree.erase(nodes.pop(-key))
            continue
        parent, at, left = None, tree.root, False
        while at is not None:
            parent, left = at, key < at.rank
            at = at.left if left else at.right
        nodes[key] = Node(item=key, rank=key)
        tree.insert(nodes[key], parent, left)
    return tree


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (range(1, 11), "(4b(2b(1b..)(3b..))(6b(5b..)(8r(7b..)(9b.(10r..)))))"),
        (
            (8, 3, 10, 1, 6, 14, 4, 7, 13, 5),
            "(6b(3r(1b..)(4b.(5r..)))(8r(7b..)(13b(10r..)(14r..))))",
        ),
        ((*range(1, 11), -4, -8, -1), "(5b(2b.(3r..))(9r(6b.(7r..))(10b..)))"),
        (
            (*range(1, 17), -8, -16, -3, -9, -12, -1),
            "(10b(4b(2b..)(6r(5b..)(7b..)))(13b(11b..)(14b.(15r..))))",
        ),
        ((1, -1), "."),
    ],
)
def test_shape_is_the_kernels(steps: tuple[int, ...], expected: str) -> None:
    assert shape(grown(*steps).root) == expected
