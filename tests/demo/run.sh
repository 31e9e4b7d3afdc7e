#!/bin/sh
# Shows what detbox does: a restless program and a build from source, natively and under detbox.
# usage: run.sh DETBOX; exit status 0 if every pair under detbox is identical.
set -eu
detbox=$(command -v "$1")
detbox=$(cd "$(dirname "$detbox")" && pwd)/$(basename "$detbox")
here=$(cd "$(dirname "$0")" && pwd)
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
verdict=0

# One hash of everything below a directory: names, kinds, modes, sizes, times, links, contents.
tree_hash() {
    (
        cd "$1"
        find . -mindepth 1 -printf '%P %y %m %n %l %T@\n' | LC_ALL=C sort
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    ) | sha256sum | cut -c 1-32
}

# compare TITLE HASH HASH: says whether two runs were the same.
compare() {
    if [ "$2" = "$3" ]; then same=identical; else same=different; fi
    printf '  %-16s %s  %s  %s\n' "$1" "$2" "$3" "$same"
}

must_be_same() {
    compare "$@"
    [ "$2" = "$3" ] || verdict=1
}

# restless DIR PREFIX…: runs the program in a fresh directory whose files are made in random order.
restless() {
    dir=$1
    shift
    mkdir "$dir" "$dir/files"
    for name in $(printf 'one\ntwo\nthree\nfour\nfive\n' | shuf); do echo "$name" > "$dir/files/$name"; done
    cp -p "$top/restless" "$dir/"
    (cd "$dir" && "$@" ./restless files) > "$dir.out"
}

# build DIR PREFIX…: builds the project in a fresh copy.
build() {
    dir=$1
    shift
    mkdir "$dir"
    cp -pR "$here/project/." "$dir/"
    (cd "$dir" && "$@" make -j4) > "$dir.log"
}

cc -O1 -pthread -o "$top/restless" "$here/restless.c"
echo 'A program that differs on each run:'
restless "$top/native-1"
restless "$top/native-2"
restless "$top/box-1" "$detbox" run --
restless "$top/box-2" "$detbox" run --
sed 's/^/    /' "$top/native-1.out"
echo 'and the same program under detbox:'
sed 's/^/    /' "$top/box-1.out"
hash_of() { sha256sum < "$1" | cut -c 1-32; }
compare native "$(hash_of "$top/native-1.out")" "$(hash_of "$top/native-2.out")"
must_be_same detbox "$(hash_of "$top/box-1.out")" "$(hash_of "$top/box-2.out")"

echo
echo 'A C project, built with make -j4 in two directories (contents and metadata of all files):'
build "$top/build-native-1"
build "$top/build-native-number-two"
build "$top/build-box-1" "$detbox" run --
build "$top/build-box-number-two" "$detbox" run --
compare native "$(tree_hash "$top/build-native-1")" "$(tree_hash "$top/build-native-number-two")"
must_be_same detbox "$(tree_hash "$top/build-box-1")" "$(tree_hash "$top/build-box-number-two")"
printf '  greet says: %s\n' "$("$top/build-box-1/greet")"
exit $verdict
