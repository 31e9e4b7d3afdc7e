# Device nodes, as what makes a root file system makes them: root alone may.
set -e
place=$(mktemp -d)
cd "$place"
umask 022 && chmod 755 .
if [ "$(id -u)" != 0 ]; then
    ! mknod null c 1 3 2> error && grep -q "not permitted" error
    echo EXIT-SUCCESS
    exit
fi
mkdir dev && cd dev
mknod -m 666 null c 1 3
mknod -m 666 zero c 1 5
mknod -m 666 full c 1 7
mknod random c 1 8
mknod -m 600 console c 5 1
mknod disk b 511 7
stat -c "%n %F %t:%T %a %s %b %u:%g" null zero full random console disk
[ -c null ] && [ ! -f null ] && [ -b disk ] && [ ! -e none ]
find . -type c | sort | tr '\n' ' ' && find . -type b
ls -F | tr '\n' ' '
echo gone > null && echo more >> null && [ ! -s null ]
cat null | wc -c
head -c 3 zero | od -An -tx1
! echo x > full 2> /dev/null
[ "$(head -c 8 random | wc -c)" = 8 ]
cd ..
# Copied, archived, renamed and linked they stay what they are.
cp -a dev copy && tar cf dev.tar dev && mkdir out && tar xf dev.tar -C out
tar tvf dev.tar | awk '{print $1, $3}' | sort
ln dev/null null && mv dev/zero zero && chmod 600 null && chown 7:8 zero
stat -c "%n %F %t:%T %a %u:%g %h" copy/null out/dev/disk null zero
chmod 644 null && setpriv --reuid 1000 --clear-groups sh -c '
! mknod mine c 1 3 2> /dev/null && ! mknod mine b 1 3 2> /dev/null && cat null && ! cat copy/console 2> /dev/null'
python3 -c '
import errno, os
for name in ("dev/disk", "null/x"):
    try:
        os.open(name, os.O_RDONLY | (os.O_CREAT if "x" in name else 0))
    except OSError as error:
        print(name, errno.errorcode[error.errno])
fd = os.open("null", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
print(os.write(fd, b"x"), os.read(fd, 1), os.fstat(fd).st_rdev == os.makedev(1, 3))
'
rm -r "$place"
echo EXIT-SUCCESS
