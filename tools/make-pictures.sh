#!/bin/sh
# Renews the pictures of the user guide: tools/make-pictures.sh (needs chromium, and root for all perturbations).
set -e
here=$(cd "$(dirname "$0")/.." && pwd)
python=$here/.venv/bin/python
export PYTHONPATH="$here"
work=$(mktemp -d /tmp/pictures.XXXXXX)
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
mkdir "$work/project"
cd "$work/project"
cat > hello.c <<'C'
#include <stdio.h>
int main(void) { puts("built " __DATE__ " " __TIME__); return 0; }
C
cat > build.sh <<'SH'
echo "building in $(pwd) on $(hostname) with $(nproc) processors"
gcc -o hello hello.c
./hello > version
head -c 64 /dev/urandom > key
SH
set -- verify --native
"$python" "$here/tools/terminal_svg.py" "$here/docs/pictures/verify-terminal.svg" \
    "detbox $* -- sh build.sh" "$python" -m detbox "$@" -- sh build.sh
"$python" -m detbox "$@" --html "$work/page.html" -- sh build.sh > "$work/said"
printf 'list:\n\tls -U > $@\n\tgzip -k $@\n' > Makefile
"$python" -m detbox verify --leak getdents64 --html "$work/event.html" --keep "$work/kept" -- \
    make > "$work/said" 2>&1 || true
for name in page event; do
    chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1180,1180 \
        --screenshot="$here/docs/pictures/verify-$name.png" "file://$work/$name.html" > "$work/said" 2>&1
done
