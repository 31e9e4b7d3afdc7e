"""Child processes that compute without a call until a time limit of their parent: by descriptors, by a thread."""

import multiprocessing
import select
import subprocess
import sys
import threading
import time

LOOP = "x = 0\nwhile True: x += 1"


def busy() -> None:
    x = 0
    while True:
        x += 1


def count(flag: "multiprocessing.sharedctypes.Synchronized[int]", results: "multiprocessing.SimpleQueue[int]") -> None:
    n = 0
    while not flag.value:
        n += 1
    results.put(n)


def processes() -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=busy)
    process.start()
    process.join(0.5)
    process.terminate()
    process.join()
    print("exit code", process.exitcode)
    flag, results = context.Value("i", 0), context.SimpleQueue()
    process = context.Process(target=count, args=(flag, results))
    process.start()
    time.sleep(0.2)
    flag.value = 1
    print("counted", results.get())
    process.join()


def programs() -> None:
    child = subprocess.Popen([sys.executable, "-I", "-c", LOOP])
    try:
        child.wait(timeout=0.5)
    except subprocess.TimeoutExpired as expired:
        print(expired)
    child.kill()
    print("status", child.wait())
    try:
        program = f"print('begun', flush=True)\n{LOOP}"
        subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, timeout=0.5, check=False)
    except subprocess.TimeoutExpired as expired:
        print(expired, expired.stdout)


def beside() -> None:
    """A program that computes while another one is waited for, or read from, that was started later."""
    shell = "n=0; while :; do n=$((n + 1)); done"
    for command in ([sys.executable, "-I", "-c", LOOP], ["sh", "-c", shell]):
        child = subprocess.Popen(command)
        subprocess.run(["sleep", "0.3"], check=True)
        print(subprocess.check_output(["echo", "read"]))
        child.kill()
        print("status", child.wait())


def rounded() -> None:
    """A limit that is rounded down, and another wait for its rest, behind many short ones."""
    child = subprocess.Popen([sys.executable, "-I", "-c", "import json, argparse"])
    while child.poll() is None:
        time.sleep(0.001)
    child = subprocess.Popen([sys.executable, "-I", "-c", LOOP], stdout=subprocess.PIPE)
    assert child.stdout is not None
    poll = select.poll()
    poll.register(child.stdout)
    print("events", poll.poll(300), poll.poll(1))
    child.kill()
    print("status", child.wait())
    child.stdout.close()


def timer() -> None:
    """The parent waits for the child, and another thread of it for the time."""
    child = subprocess.Popen([sys.executable, "-I", "-c", LOOP])
    thread = threading.Timer(0.3, child.kill)
    thread.start()
    print("status", child.wait())
    thread.join()


rounded()
processes()
programs()
timer()
beside()
print(time.monotonic_ns(), time.process_time_ns())
print("EXIT-SUCCESS")
