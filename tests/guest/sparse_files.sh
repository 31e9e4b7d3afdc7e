# Files with holes: what stat, du, ls, find, cp and tar tell and make of them.
set -e
failed=0
is() { # what, blocks of 512 bytes: expected
    found=$(stat -c %b "$1")
    [ "$found" = "$2" ] || { echo "$1: $found blocks, not $2"; failed=1; }
}
truncate -s 100M hole; is hole 0
truncate -s 100 small; is small 0
truncate -s 3G huge; is huge 0; du -k huge; rm huge
dd if=/dev/zero of=last bs=1 count=1 seek=10M status=none; is last 8
dd if=/dev/zero of=zeros bs=1M count=3 status=none; is zeros 6144
printf x | dd of=far bs=1 seek=10000000 status=none; is far 8
fallocate -l 5M reserved; is reserved 10240
for copy in auto always never; do cp --sparse=$copy far far-$copy; done
is far-auto 8; is far-always 8; is far-never 19536
yes | head -c 1000000 > punched; is punched 1960
fallocate -p -o 40960 -l 81920 punched; is punched 1800
echo >> hole; is hole 8
printf y | dd of=hole bs=1 seek=50M conv=notrunc status=none; is hole 16
truncate -s 60M hole; is hole 8
truncate -s 0 punched; is punched 0; printf z >> punched; is punched 8
tar -cSf archive.tar far hole; mkdir out; tar -xSf archive.tar -C out; is out/far 8; is out/hole 8
[ "$(stat -c %s archive.tar)" = 10240 ] || failed=1
cat far > dense; is dense 19536; cmp far dense
ls -s far hole small; du -sk out; find . -name 'far*' -printf '%f %S %b\n' | sort
python3 -c "
import os
fd = os.open('mixed', os.O_RDWR | os.O_CREAT)
for page in (1, 4, 5, 300, 301, 700): os.pwrite(fd, b'page', page * 4096 + 7)
assert os.fstat(fd).st_blocks == 48, os.fstat(fd)
assert os.stat('mixed').st_blocks == 48"
[ $failed = 0 ] && echo EXIT-SUCCESS
