#!/bin/sh
# Builds two Debian source packages twice each on hosts that differ, and without detbox; prints digests.
# usage: debian.sh DETBOX; exit status 0 if everything is identical under detbox.
# Installs the Debian packages that this needs by name; as an ordinary user that asks for sudo.
set -eu
detbox=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
here=$(cd "$(dirname "$0")/../.." && pwd)

missing=
for package in mmdebstrap uidmap dpkg gpgv; do
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

echo
echo 'Debian packages, built twice on hosts that differ in time, name, path, locale, umask and more:'
"$detbox" image show bookworm-buildd > /dev/null 2>&1 || "$detbox" image build bookworm-buildd
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
