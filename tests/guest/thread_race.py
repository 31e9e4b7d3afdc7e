"""Threads that race: an unprotected counter, queues, events, a timer, and the order in which they end."""

import queue
import random
import sys
import threading
import time

sys.setswitchinterval(1e-6)
counter = 0
order: list[int] = []


def add(me: int) -> None:
    global counter
    for _ in range(20_000):
        value = counter
        counter = value + 1
    order.append(me)


threads = [threading.Thread(target=add, args=(i,)) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("counter", counter, "order", order)

work: queue.Queue[int] = queue.Queue(3)
done: list[tuple[int, int]] = []


def take(me: int) -> None:
    while (item := work.get()) >= 0:
        done.append((me, item))
        time.sleep(0.001)


takers = [threading.Thread(target=take, args=(i,)) for i in range(3)]
for thread in takers:
    thread.start()
for item in range(30):
    work.put(item)
for _ in takers:
    work.put(-1)
for thread in takers:
    thread.join()
assert sorted(item for _, item in done) == list(range(30))
print(done)

flag = False


def raise_flag() -> None:
    global flag
    time.sleep(0.2)
    flag = True


thread = threading.Thread(target=raise_flag)
thread.start()
while not flag:  # some hundred instructions of the interpreter's, and no call
    pass
thread.join()
print("flag", time.monotonic_ns(), time.process_time_ns())

event = threading.Event()
timer = threading.Timer(0.05, event.set)
timer.start()
assert not event.wait(0.01) and event.wait(5)
condition = threading.Condition()
with condition:
    assert not condition.wait(0.01)
print(random.random(), hash("text"), id(order), threading.get_native_id())
print(time.time_ns(), time.perf_counter_ns())
print("EXIT-SUCCESS")
