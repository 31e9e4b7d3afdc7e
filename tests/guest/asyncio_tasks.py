"""asyncio: timers, gathered tasks, subprocesses, streams on loopback, executors and signals in one loop."""

import asyncio
import os
import signal
import time


async def sleeper(name: int, delay: float, log: list[int]) -> int:
    await asyncio.sleep(delay)
    log.append(name)
    return name


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


async def client(port: int, text: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{text}\n".encode())
    answer = (await reader.readline()).decode().strip()
    writer.close()
    await writer.wait_closed()
    return answer


async def main() -> None:
    log: list[int] = []
    begin = time.monotonic()
    await asyncio.gather(*(sleeper(i, (5 - i) * 0.03, log) for i in range(5)))
    assert log == [4, 3, 2, 1, 0] and time.monotonic() - begin >= 0.15

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print("port", port, await asyncio.gather(*(client(port, f"hello {i}") for i in range(5))))
    server.close()

    process = await asyncio.create_subprocess_shell("read x; echo got $x; exit 3", stdin=-1, stdout=-1)
    out, _ = await process.communicate(b"it\n")
    assert out == b"got it\n" and process.returncode == 3

    loop = asyncio.get_running_loop()
    results = await asyncio.gather(*(loop.run_in_executor(None, lambda i=i: i * i) for i in range(8)))
    assert results == [i * i for i in range(8)]

    caught = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, caught.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(caught.wait(), 5)
    try:
        await asyncio.wait_for(asyncio.sleep(10), 0.05)
    except TimeoutError:
        pass
    else:
        raise AssertionError("no timeout")
    print("loop time", loop.time())


asyncio.run(main())
print("EXIT-SUCCESS")
