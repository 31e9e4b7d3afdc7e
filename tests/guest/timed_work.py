"""Work that is doubled until it takes long enough, with its time written after each turn."""

import os
import time

null = open("/dev/null", "w")


def calibrate(name: str) -> None:
    look = getattr(time, name)
    turns = 1024
    while True:
        start = look()
        for _ in range(turns):
            pass
        took = look() - start
        print(name, turns, took, file=null, flush=True)
        if took > 0.05:
            break
        turns *= 2
        assert turns < 1 << 30
    print(name, turns, took, flush=True)


for clock in ("perf_counter", "process_time", "time", "thread_time"):
    calibrate(clock)
if os.fork() == 0:
    calibrate("monotonic")
    os._exit(0)
assert os.wait()[1] == 0
print("EXIT-SUCCESS")
