#!/bin/sh
# Makes .venv in the current folder, from the Python given as $1 or the newest fitting one, and fills it from
# requirements.txt. Called by the Makefile when that is missing, half-finished or out of date.
set -eu

fits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    if [ -n "$1" ]; then
        fits "$1" || { echo "PYTHON=$1 is not a Python 3.11 or newer." >&2; return 1; }
        command -v "$1"
        return
    fi
    for name in python3.14 python3.13 python3.12 python3.11 python3 python; do
        if fits "$name"; then
            command -v "$name"
            return
        fi
    done
    echo 'bankcore needs Python 3.11 or newer, and found none: install one, or name it: make PYTHON=/path/to/python' >&2
    return 1
}

make_venv() {
    echo "[install] making .venv with $("$1" --version) ($1)" >&2
    rm -rf .venv
    if "$1" -m venv .venv >/dev/null 2>&1; then
        return
    fi
    rm -rf .venv
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ] && command -v apt-get >/dev/null; then
        echo "[install] this Python lacks venv: installing python$version-venv with apt-get" >&2
        export DEBIAN_FRONTEND=noninteractive
        { apt-get -qq -y install "python$version-venv" ||
            { apt-get -qq update && apt-get -qq -y install "python$version-venv"; }; } >/dev/null 2>&1 || true
        if "$1" -m venv .venv >/dev/null 2>&1; then
            return
        fi
        rm -rf .venv
    fi
    echo "$1 cannot make virtual environments: install its venv module (on Debian and Ubuntu: the package" \
        "python$version-venv), or name another Python: make PYTHON=/path/to/python" >&2
    return 1
}

# Two targets started at once in a fresh clone must not fill one folder; a lock whose owner is dead is taken over.
mkdir -p .bankcore
lock=.bankcore/install.lock
until mkdir "$lock" 2>/dev/null; do
    owner=$(cat "$lock/pid" 2>/dev/null || true)
    if [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null; then
        rm -rf "$lock"
    else
        sleep 1
    fi
done
echo $$ >"$lock/pid"
trap 'rm -rf "$lock"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if cmp -s requirements.txt .venv/.installed && .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi
# A virtual environment that was moved, or whose Python is gone, is made anew; any other is brought up to date.
if ! fits .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python "${1:-}")
    make_venv "$python"
fi
rm -f .venv/.installed
echo '[install] installing requirements.txt into .venv (a minute or so, the first time)' >&2
.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.txt >&2
cp requirements.txt .venv/.installed
