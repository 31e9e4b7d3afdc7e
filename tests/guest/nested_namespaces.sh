# Namespaces of the guest's own: a procfs with its own numbers, mounts, and a host name.
set -e
PATH=$PATH:/usr/sbin # which users of Debian have not: pivot_root
unshare --map-root-user --fork --pid --mount-proc --mount --uts --ipc bash -c '
set -e
hostname inside
[ "$(hostname)" = inside ]
[ "$(cat /proc/sys/kernel/hostname)" = inside ]
[ $$ = 1 ]
[ "$(readlink /proc/self)" != "" ]
[ "$(cut -d" " -f1 /proc/$$/stat)" = 1 ]
[ "$(cat /proc/1/comm)" = bash ]
grep -q "^PPid:.0$" /proc/1/status
sleep 100 & other=$!
grep -q "^PPid:.1$" /proc/$other/status
until [ "$(tr "\0" " " < /proc/$other/cmdline)" = "sleep 100 " ]; do :; done
kill -TERM $other
wait $other || [ $? = 143 ]
[ ! -e /proc/$other ]
ps -e -o pid=,comm= | grep -q "^ *1 bash"
mount -t tmpfs t /mnt
echo kept > /mnt/file
[ "$(cat /mnt/file)" = kept ]
python3 -c "
import os, subprocess
assert subprocess.run([\"true\"]).returncode == 0
child = os.fork()
if not child:
    os._exit(7)
assert os.waitpid(child, 0) == (child, 7 << 8)
assert str(os.getpid()) == os.readlink(\"/proc/self\") == os.readlink(\"/proc/thread-self\").split(\"/\")[0]
"
ls /proc | grep -c "^[0-9]"
'
# The procfs of the PID namespace that it is in, which is for root alone.
if [ "$(id -u)" = 0 ]; then
    unshare -m bash -ec '
mount -t tmpfs t /mnt
mkdir /mnt/proc
mount -t proc -o ro proc /mnt/proc
[ "$(cat /mnt/proc/self/comm)" = cat ] && [ "$(cat /mnt/proc/$$/comm)" = bash ] && [ -d /mnt/proc/1 ]
[ "$(readlink /mnt/proc/self/root)" = / ] && cmp /proc/version /mnt/proc/version
[ "$(findmnt -n -o FSTYPE /mnt/proc)" = proc ] && findmnt -n -o OPTIONS /mnt/proc | grep -q "^ro"
umount /mnt/proc
[ -z "$(ls /mnt/proc)" ]
'
fi
if unshare -Urm mount -t proc proc /mnt 2> /dev/null; then exit 9; fi
# A root of its own: the old one goes.
unshare -Urm sh -ec '
mount -t tmpfs t /mnt
mkdir /mnt/old /mnt/usr
mount --rbind /usr /mnt/usr
ln -s usr/bin usr/lib usr/lib64 /mnt
cd /mnt
pivot_root . old
cd /
[ -d /old/etc ] && [ ! -e /etc ]
echo x > /made && [ "$(cat made)" = x ] && [ "$(cd /usr && pwd)" = /usr ]
mkdir -p /deep/er && cd /deep/er && echo y > made && [ "$(cat /deep/er/made)" = y ]
sh -c "ls -d /usr/bin/ls /made"
'
# The mount table: what is mounted there, and the rest of the container as one piece.
unshare -Urm bash -ec '
exists() { findmnt -rn -o TARGET,FSTYPE,OPTIONS "$@"; }
mount -t tmpfs -o mode=700,size=1m own /mnt
[ "$(findmnt -n -o SOURCE,FSTYPE /mnt | tr -s " ")" = "own tmpfs" ]
exists /mnt | grep -q size=1024k
[ "$(stat -f -c %T /mnt)" = tmpfs ] && [ "$(stat -c %d /mnt)" != "$(stat -c %d /)" ]
grep -q "^own /mnt tmpfs rw" /proc/mounts
mkdir /mnt/a /mnt/b "/mnt/c d"
mount --bind /mnt/a "/mnt/c d"
grep -q " /a /mnt/c.040d " /proc/$$/mountinfo
echo x > /mnt/a/x && [ "$(cat "/mnt/c d/x")" = x ]
umount "/mnt/c d"
! grep -q /mnt/c /proc/self/mountinfo
mount --rbind / /mnt/a
[ -x /mnt/a/usr/bin/ls ]
mount --bind /usr /mnt/b && [ -x /mnt/b/bin/ls ]
mount -o remount,bind,ro,nosuid /mnt/b
exists /mnt/b | grep -q " ro,nosuid"
! touch /mnt/b/made 2> /mnt/error && grep -q Read-only /mnt/error
umount /mnt/b && [ ! -e /mnt/b/bin ]
mount -t tmpfs other /mnt/b && umount -l /mnt/a && umount /mnt/b && umount /mnt
! findmnt /mnt
'
# Parts of procfs in other places: what is there is the same.
unshare -Urm sh -ec '
mount -t tmpfs own /mnt
mkdir /mnt/sys /mnt/all && touch /mnt/file
mount --bind /proc/sys /mnt/sys
[ "$(cat /mnt/sys/kernel/osrelease)" = "$(uname -r)" ]
[ "$(cat /mnt/sys/kernel/random/boot_id)" = "$(cat /proc/sys/kernel/random/boot_id)" ]
[ "$(ls /mnt/sys)" = "$(ls /proc/sys)" ] && [ "$(stat -c %s,%A /mnt/sys/kernel)" = "$(stat -c %s,%A /proc/sys/kernel)" ]
mount --bind /proc/version /mnt/file && cmp /mnt/file /proc/version
mount --bind /proc/sys/kernel/random/boot_id /proc/version && cmp /proc/version /mnt/sys/kernel/random/boot_id
umount /proc/version && umount /mnt/file
mount --rbind /proc /mnt/all
[ "$(cat /mnt/all/self/comm)" = cat ] && cmp /mnt/all/cpuinfo /proc/cpuinfo && ls -d /mnt/all/$$ /mnt/all/loadavg
mkdir /mnt/root && mount --rbind / /mnt/root
[ "$(chroot /mnt/root cat /mnt/sys/kernel/osrelease /proc/sys/kernel/ostype | tail -1)" = Linux ]
[ "$(chroot /mnt/root cat /proc/version)" = "$(cat /proc/version)" ]
'
# Owners that file systems are given when they are mounted (what makes a root file system mounts devpts for group 5).
# Natively only root can do that.
[ "$(id -u)" != 0 ] || unshare -m sh -ec '
mount -t tmpfs -o uid=7,mode=751,gid=8 t /mnt
[ "$(stat -c %u:%g:%a /mnt)" = 7:8:751 ]
mkdir /mnt/pts && mount -t devpts -o noexec,gid=5,mode=620,ptmxmode=666 none /mnt/pts
[ "$(stat -c %t:%T:%a /mnt/pts/ptmx)" = 5:2:666 ]
python3 -c "
import ctypes, os
os.mkdir(\"/mnt/t\")
mount = ctypes.CDLL(None, use_errno=True).mount
assert mount(b\"t\", b\"/mnt/t\", b\"tmpfs\", 0, options := b\"gid=9,size=64k\") == 0, ctypes.get_errno()
assert options == b\"gid=9,size=64k\" and os.stat(\"/mnt/t\").st_gid == 9
assert mount(b\"t\", b\"/mnt/t\", b\"tmpfs\", 0, b\"gid=x\") == -1 and ctypes.get_errno() == 22
"
'
# Whether a user namespace may allow setgroups does not tell who runs the container.
unshare -U sleep 3 &
sleep 1
allowed=yes
(echo allow > "/proc/$!/setgroups") 2> /dev/null || allowed=no
echo "setgroups: $allowed $(cat "/proc/$!/setgroups")"
wait
# The first process of a PID namespace ends while it has threads, and others are there.
cat > /tmp/first.py << 'END'
import ctypes, os, threading, time
unshare = ctypes.CDLL(None).unshare
assert unshare(0x10000000 | 0x20000000) == 0
ends = os.pipe()
first = os.fork()
if not first:
    for _ in range(5):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    for _ in range(2):
        if not os.fork():
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
            time.sleep(1000)
    time.sleep(0.1)
    os._exit(3)
os.close(ends[1])
assert os.waitpid(first, 0) == (first, 3 << 8)
assert os.read(ends[0], 1) == b""  # nobody has the other end any more
os.close(ends[0])
END
timeout 20 python3 /tmp/first.py
# Namespaces are told apart by their numbers, and found again by them.
names="cgroup ipc mnt net pid user uts"
own() { for name in $names; do readlink "/proc/${1:-self}/ns/$name"; done; }
before=$(own)
[ "$(own)" = "$before" ] && [ "$(sh -c 'readlink /proc/self/ns/net')" = "$(readlink /proc/$$/ns/net)" ]
unshare -U true
[ "$(own)" = "$before" ]
[ "$(unshare -Ur readlink /proc/self/ns/user)" != "$(readlink /proc/self/ns/user)" ]
[ "$(unshare -Ur readlink /proc/self/ns/uts)" = "$(readlink /proc/self/ns/uts)" ]
outside=$before unshare -UrmuinC bash -ec '
for name in cgroup ipc mnt net user uts; do
    here=$(readlink /proc/self/ns/$name)
    ! grep -qF "$here" <<< "$outside" && [ "$here" = "$name:[$(stat -L -c %i /proc/self/ns/$name)]" ]
    stat -L -c "%F %s" /proc/self/ns/$name
done
'
[ "$(unshare -Urpf --mount-proc readlink /proc/self/ns/pid)" != "$(readlink /proc/self/ns/pid)" ]
# As build tools do it, where the tool is there: it looks for its mounts in the table to make them read-only.
if command -v bwrap > /dev/null; then
    bwrap --ro-bind / / --tmpfs /tmp --unshare-all --proc /proc --dev /dev sh -ec '
    ! touch /usr/made 2> /tmp/error && grep -q Read-only /tmp/error
    echo x > /tmp/made && [ "$(cat /proc/self/comm)" = cat ] && [ -c /dev/null ] && kill -0 1
    '
fi
[ ! -e /mnt/file ] && [ ! -e /made ]
[ "$(hostname)" != inside ]
echo EXIT-SUCCESS
