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
for package in "--native $here/debian-builds/many-causes" hello; do
    # An option and a source.
    # shellcheck disable=SC2086
    "$detbox" deb verify --no-perturb load $package > "$report" || verdict=$?
    sed 's/^/  /' "$report"
done
exit $verdict
