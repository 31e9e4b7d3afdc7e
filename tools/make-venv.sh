#!/bin/sh
# Makes .venv with detbox and its test tools, from Debian's own Python.
set -eu
cd "$(dirname "$0")/.."

tools/debian-packages.sh python3-venv python3-dev gcc libc6-dev make mmdebstrap gpgv uidmap

# A directory that was moved, or made by a Python that is gone, is made again.
.venv/bin/python -c '' 2>/dev/null || /usr/bin/python3 -m venv --clear .venv
# "compat": a path, not a finder whose imports would add 20 ms to every start.
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --config-settings editable_mode=compat --editable '.[test,images]'
# Once for every user, also one that cannot write here.
.venv/bin/python -m compileall -q detbox
.venv/bin/python -c 'from detbox import bundle; bundle.make()'
touch .venv/installed
