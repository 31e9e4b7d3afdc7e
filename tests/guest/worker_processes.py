"""multiprocessing and concurrent.futures: pools, queues, locks, shared memory, both start methods."""

import concurrent.futures
import multiprocessing
import os
from multiprocessing import shared_memory
from typing import Any


def square(n: int) -> int:
    return n * n


def produce(out: "multiprocessing.Queue[tuple[int, int]]", me: int) -> None:
    for i in range(5):
        out.put((me, i))


def use_lock(lock: Any, value: Any) -> None:
    for _ in range(50):
        with lock:
            value.value += 1


def fill(name: str) -> None:
    block = shared_memory.SharedMemory(name=name)
    block.buf[:5] = b"child"
    block.close()


def main() -> None:
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with context.Pool(3) as pool:
            assert pool.map(square, range(20)) == [n * n for n in range(20)]
            print(method, list(pool.imap_unordered(square, range(12))))
    results: multiprocessing.Queue[tuple[int, int]] = multiprocessing.Queue()
    workers = [multiprocessing.Process(target=produce, args=(results, i)) for i in range(3)]
    for worker in workers:
        worker.start()
    print([results.get() for _ in range(15)])
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    lock, value = multiprocessing.Lock(), multiprocessing.Value("i", 0)
    workers = [multiprocessing.Process(target=use_lock, args=(lock, value)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert value.value == 150
    block = shared_memory.SharedMemory(create=True, size=64)
    worker = multiprocessing.Process(target=fill, args=(block.name,))
    worker.start()
    worker.join()
    print(block.name, bytes(block.buf[:5]))
    block.close()
    block.unlink()
    with concurrent.futures.ProcessPoolExecutor(3) as executor:
        futures = [executor.submit(square, n) for n in range(10)]
        finished = [f.result() for f in concurrent.futures.as_completed(futures)]
    assert sorted(finished) == [n * n for n in range(10)]
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        assert list(executor.map(square, range(10))) == [n * n for n in range(10)]
    print(os.cpu_count(), os.getpid(), os.times())


if __name__ == "__main__":
    main()
    print("EXIT-SUCCESS")
