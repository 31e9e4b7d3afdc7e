"""Threads of an interpreter that compute without a call: they give its lock up when another one has asked for it."""

import sys
import threading
import time

done = False
counts = []


def count() -> None:
    n = 0
    while not done:
        n += 1
    counts.append(n)


def end_it(after: float) -> None:
    global done
    time.sleep(after)
    done = True


def tight_loops() -> None:
    """The main thread goes on while another one computes."""
    started, go_on, rounds = [False], [True], [0]

    def work() -> None:
        started[0] = True
        while go_on[0]:
            rounds[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    while not started[0]:
        pass
    go_on[0] = False
    thread.join()
    print("rounds", rounds)


def report() -> None:
    times = []
    while not stop.wait(0.05):
        times.append(time.monotonic_ns())
    print("reports", times)


other = threading.Thread(target=end_it, args=(0.5,))
other.start()
count()
other.join()
done = False
threads = [threading.Thread(target=count) for _ in range(3)]
for thread in threads:
    thread.start()
end_it(0.1)
for thread in threads:
    thread.join()
print("counts", counts, time.monotonic_ns(), time.process_time_ns())
assert min(counts) > 0
tight_loops()
stop = threading.Event()
reporter = threading.Thread(target=report)
reporter.start()
sys.setswitchinterval(0.001)
print(sum(i * i % 7 for i in range(300_000)))
stop.set()
reporter.join()
print("EXIT-SUCCESS")
