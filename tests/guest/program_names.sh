# A program's name is that of the file that was executed: a script's, a link's. Threads have names of their own.
set -e
place=$(mktemp -d)
cd "$place"
printf '#!/bin/sh\ncat /proc/$$/comm /proc/$$/status | head -2\n' > a-script.sh
chmod +x a-script.sh
[ "$(./a-script.sh | tr '\n' ' ')" = "a-script.sh Name:	a-script.sh " ]
ln -s "$(command -v cat)" another-name-that-is-long
[ "$(./another-name-that-is-long /proc/self/comm)" = another-name-th ]
python3 -c '
import ctypes, os, threading

def name(of):
    with open(f"/proc/{of}/comm") as file:
        return file.read().strip()

def named():
    ctypes.CDLL(None).prctl(15, b"a thread")
    assert name(f"self/task/{threading.get_native_id()}") == name("thread-self") == "a thread"

before = name("self")
thread = threading.Thread(target=named)
thread.start()
thread.join()
assert name("self") == before
with open("/proc/self/comm", "w") as file:
    file.write("written")
assert name("self") == "written"
'
cd / && rm -r "$place"
echo EXIT-SUCCESS
