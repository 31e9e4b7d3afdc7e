# Changes files of the system, which belong to nobody that an ordinary user's container knows, in every way.
[ "$(uname -n)" = detbox ] || { echo "this changes the machine: only in a container" >&2; exit 99; }
set -e
shown() { stat -c '%A %u %g %h %s %i %n' "$@"; }
# The name of the machine is its own in full, too, and leads to it: what makes a name of it (Erlang's nodes) finds itself.
[ "$(hostname -f)" = detbox ]; getent hosts detbox localhost
# What a machine has that is not its software is empty, and can be filled (a kernel's package writes to /boot).
for place in /boot /home /media /mnt /root /srv; do
    [ -z "$(ls -A $place)" ]; echo new > $place/new; shown $place $place/new; rm $place/new
done
doc=/usr/share/doc
for file in /etc/debian_version /usr/bin/ldd $doc/bash/copyright /var/lib/dpkg/status /usr/lib/os-release; do
    shown $file
    echo more >> $file; tail -n 1 $file
    chmod 640 $file; chown 5:6 $file; touch $file; shown $file
    truncate -s 5 $file; wc -c < $file
    mv $file $file.moved; shown $file.moved
    cp -p $file.moved $file; ln $file $file.linked; shown $file $file.linked
    rm $file.moved $file.linked; shown $file
done
before=$(stat -c %i /usr/bin/env); ln /usr/bin/env $doc/env; [ /usr/bin/env -ef $doc/env ]
[ "$(stat -c %i /usr/bin/env)" = "$before" ] && [ "$(stat -c %h $doc/env)" = 2 ]
mkdir $doc/bash/new /opt/new /usr/local/bin/new /var/lib/dpkg/info/new; rmdir $doc/bash/new
mv $doc/bash $doc/moved; [ ! -e $doc/bash ]; [ -d $doc/moved ]
(cd $doc/tar; echo x > y; chmod 600 copyright; rm -f changelog*; ls -la)
rm -r $doc/tar; mkdir $doc/tar; ls -A $doc/tar
ln -sfn elsewhere /usr/bin/awk; readlink /usr/bin/awk
chown -h 7:8 /etc/mtab; shown /etc/mtab; mv /etc/mtab /etc/mtab2; readlink /etc/mtab2
sed -i s/root/toor/ /etc/group; head -n 1 /etc/group
install -D -o root -g staff -m 4755 /usr/bin/true /usr/local/lib/deep/er/true; shown /usr/local/lib/deep/er/true
cp -r $doc/sed /var/tmp; tar -C / -cf /root/sed.tar usr/share/doc/sed; tar -C / -xf /root/sed.tar; ls -la $doc/sed
exec 3< $doc/gzip/copyright; chmod 604 /proc/self/fd/3; shown - <&3 | cut -d" " -f1-5; exec 3<&-
# What an ordinary user may not see is refused to everybody, unless it is the guest's own.
umask 077; echo mine > /etc/private; cat /etc/private; umask 022
chmod 600 /etc/issue; cat /etc/issue > /dev/null
for file in $(find /etc -type f -size +0 ! -perm -004 ! -newer /etc/hosts ! -path /etc/private ! -path /etc/issue ! -path /etc/shadow | head -n 3); do
    if cat "$file" 2>/dev/null || chmod 644 "$file" 2>/dev/null || mv "$file" /tmp 2>/dev/null; then echo "private: $file"; exit 1; fi
    [ ! -r "$file" ]; rm -f "$file"; echo new > "$file"; cat "$file"
done
# What the host's root alone may read, and the guest's table knows.
cat /proc/sys/kernel/cad_pid /proc/sys/vm/mmap_rnd_bits; [ ! -r /proc/slabinfo ] || ! cat /proc/slabinfo 2>/dev/null
groupadd --system made; grep -c ^made: /etc/group
su nobody -s /bin/sh -c 'id -un; cat /etc/shadow 2>&1 || :'; grep -v '^[^:]*:\*:::::::$' /etc/shadow || useradd -m one; su one -c whoami; tail -n 1 /etc/shadow
echo EXIT-SUCCESS
