#!/bin/sh
# Makes .venv with detbox and its test tools, from Debian's own Python.
# Installs the Debian packages that are missing by name; as an ordinary user that asks for sudo.
set -eu
cd "$(dirname "$0")/.."

missing=
for package in python3-venv python3-dev gcc libc6-dev make mmdebstrap uidmap; do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    echo "installing Debian packages:$missing"
    if [ "$(id -u)" = 0 ]; then as_root=; else as_root=sudo; fi
    $as_root apt-get update -qq
    # $missing is a list of words.
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -qq -y --no-install-recommends $missing
fi

# A directory that was moved, or made by a Python that is gone, is made again.
.venv/bin/python -c '' 2>/dev/null || /usr/bin/python3 -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,images]'
touch .venv/installed
