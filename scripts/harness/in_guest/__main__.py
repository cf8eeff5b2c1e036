"""Each part prints one line: @seen PART JSON."""

from __future__ import annotations

import json
import sys
import time

from in_guest import processes


def main() -> None:
    names = sys.argv[1:]
    # Before numpy and drgn make a fork expensive.
    keeper, inner = processes.Keeper(), processes.Keeper(nested=True)
    churners = [processes.Churner(kind) for kind in ("storm", "threads", "vmas")]
    from in_guest import compare, namespaces, races, rights

    parts = {
        "compare": compare.compared,
        "recycled": lambda: races.recycled(keeper),
        "races": lambda: races.raced(churners),
        "rights": lambda: rights.tried(keeper),
        "namespaces": lambda: namespaces.nested(keeper, inner),
        "lockdown": rights.locked_down,
    }
    try:
        for name in names:
            start = time.monotonic()
            seen = {**parts[name](), "seconds": round(time.monotonic() - start, 1)}
            print(f"\n@seen {name} {json.dumps(seen)}", flush=True)
    finally:
        keeper.close()
        inner.close()
        for churner in churners:
            churner.close()


if __name__ == "__main__":
    main()
