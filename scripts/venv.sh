# Sourced by the other scripts: makes .venv from the locked requirements the first time,
# and again whenever the lock or pyproject.toml changes. Sets $top.
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lock=$top/scripts/requirements.txt
stamp=$top/.venv/.lock
wanted=$(cat "$lock" "$top/pyproject.toml" | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "python3 is missing or older than 3.10" >&2
        exit 3
    }
    echo "setting up $top/.venv (once)" >&2
    rm -rf "$top/.venv"
    python3 -m venv "$top/.venv" || {
        echo "python3 -m venv failed: its venv and pip modules are needed (Debian: python3-venv)" >&2
        exit 3
    }
    pip=("$top/.venv/bin/python" -m pip --quiet --disable-pip-version-check install)
    "${pip[@]}" --require-hashes --requirement "$lock" >&2 &&
        "${pip[@]}" --no-deps --no-build-isolation --editable "$top" >&2 || {
        echo "installing the locked packages failed: is a package index reachable?" >&2
        exit 3
    }
    echo "$wanted" >"$stamp"
fi
