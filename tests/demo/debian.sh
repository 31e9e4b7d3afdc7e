#!/bin/sh
# Builds two Debian source packages twice each on hosts that differ, and without detbox; prints digests.
# usage: debian.sh DETBOX; exit status 0 if everything is identical under detbox.
# Installs the Debian packages that this needs by name; as an ordinary user that asks for sudo.
set -eu
detbox=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
here=$(cd "$(dirname "$0")/../.." && pwd)

"$here/tools/debian-packages.sh" mmdebstrap uidmap dpkg gpgv

echo
echo 'Debian packages, built twice on hosts that differ in time, name, path, locale, umask and more:'
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
test -e "$here/rootfs-builder/$suite-buildd.toml" || suite=bookworm # as `detbox deb` does
"$detbox" image show "$suite-buildd" > /dev/null 2>&1 || "$detbox" image build "$suite-buildd"
verdict=0
report=$(mktemp)
trap 'rm -f "$report"' EXIT

# show WORD…: a package's results; the exit status of `detbox deb verify`.
show() {
    status=0
    "$detbox" deb verify --no-perturb load "$@" > "$report" || status=$?
    sed 's/^/  /' "$report"
    return $status
}

show --native "$here/debian-builds/many-causes" || verdict=$?
# A mirror may list sources that it does not serve (status 125): then another one.
show hello || { [ $? = 125 ] && show hostname; } || verdict=$?
exit $verdict
