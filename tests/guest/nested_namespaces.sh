# Namespaces of the guest's own: a procfs with its own numbers, mounts, and a host name.
set -e
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
[ ! -e /mnt/file ] && [ ! -e /made ]
[ "$(hostname)" != inside ]
echo EXIT-SUCCESS
