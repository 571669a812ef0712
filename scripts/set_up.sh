#!/usr/bin/env bash
# Set up a fresh clone: poppler (renders pages) and a virtual environment in .venv.
# `make` calls this once, and again when pyproject.toml changes. With the argument "browser" it adds what the tests of
# report and app in a real browser need: playwright (170 MB), and a Chromium where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH="torch==2.13.0" # what everything is measured with; llama_index_ziprerank/compat.py says why it must stay put
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    echo "error: $*" >&2
    exit 1
}

apt_install() {
    local as_root=""
    [ "$(id -u)" -eq 0 ] || as_root="sudo -n"
    $as_root apt-get install -qq -y "$1" >/dev/null 2>&1 ||
        { $as_root apt-get update -qq && $as_root apt-get install -qq -y "$1"; } >/dev/null 2>&1 || true
}

install_poppler() {
    if command -v pdftoppm >/dev/null; then return; fi
    echo "[1/4] poppler-utils (pdftoppm is missing)"
    if command -v apt-get >/dev/null; then
        apt_install poppler-utils
    elif command -v brew >/dev/null; then
        brew install --quiet poppler || true
    fi
    command -v pdftoppm >/dev/null || fail "poppler renders the PDF pages and could not be installed from here." \
        "Install it (Debian, Ubuntu: apt-get install poppler-utils; macOS: brew install poppler), then run make again."
}

has_browser() {
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null
}

install_browser() {
    if has_browser; then return; fi
    echo "chromium (some 100 MB)"
    if command -v apt-get >/dev/null; then apt_install chromium; fi
    has_browser || fail "found no Chromium, and could not install one from here. Install chromium or google-chrome."
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c \
            'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "found no Python 3.10 to 3.14 with the venv module. Install one (Debian, Ubuntu: apt-get install python3-venv)" \
        "or name one: make PYTHON=/path/to/python3 demo"
}

pip_install() { # of pip's own lines, show the downloads of 10 MB and more
    .venv/bin/python -m pip install "$@" | { grep -E 'Downloading .*\([0-9]{2,}(\.[0-9]+)? [MG]B' || true; }
}

if [ "${1:-}" = browser ]; then
    install_browser
    pip_install "$TORCH" --editable '.[dev,browser]'
    exit
fi
install_poppler
python=$(find_python)
if ! .venv/bin/python -c '' 2>/dev/null; then
    echo "[2/4] virtual environment in .venv ($("$python" --version))"
    rm -rf .venv
    "$python" -m venv .venv
fi
echo "[3/4] $TORCH"
pip_install "$TORCH"
echo "[4/4] llama-index-ziprerank and what it needs"
pip_install "$TORCH" --editable '.[dev]' # torch is named again so that nothing may replace it
