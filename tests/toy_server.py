"""A small HTTP server with faults on order, in a process of its own: it must not share an interpreter with a load.

Run as ``toy_server.py STALL_S EVERY_S STATUS``. It prints its port; each stall is printed when it is over, as two
moments on the monotonic clock.
"""

from __future__ import annotations

import asyncio
import sys
import time

_ANSWER = b'{"outputs": {"y": [1.0]}}'
_LARGE = 1_000_000


class _Server(asyncio.Protocol):
    status = b"200 OK"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if len(self.buffer) < end + 4 + size:
                return
            self.buffer = self.buffer[end + 4 + size :]
            assert isinstance(self.transport, asyncio.Transport)
            if self.status == b"pieces":
                self.piecemeal(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % _LARGE + bytes(_LARGE))
                continue
            self.transport.write(self.answer())
            if self.status.startswith(b"old"):  # HTTP/1.0 ends its connections, and need not say so
                self.transport.close()

    def piecemeal(self, answer: bytes) -> None:
        """Send the start of the head, its rest with the start of the body, and the rest, each by itself."""
        assert isinstance(self.transport, asyncio.Transport)
        loop, first, second = asyncio.get_running_loop(), 20, 200
        self.transport.write(answer[:first])
        loop.call_later(0.01, self.transport.write, answer[first:second])
        loop.call_later(0.02, self.transport.write, answer[second:])

    def answer(self) -> bytes:
        if self.status == b"chunked":
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        if self.status == b"204 No Content":
            return b"HTTP/1.1 204 No Content\r\n\r\n"
        if self.status == b"endless":
            return b"HTTP/1.0 200 OK\r\n\r\n" + _ANSWER
        if self.status.startswith(b"old"):
            length = b"Content-Length: %d\r\n" % len(_ANSWER) if self.status == b"old" else b""
            return b"HTTP/1.0 200 OK\r\n" + length + b"\r\n" + _ANSWER
        head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (self.status, len(_ANSWER))
        return head + _ANSWER


async def main(stall_s: float, every_s: float, status: str) -> None:
    _Server.status = status.encode()
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    while stall_s:
        await asyncio.sleep(every_s - stall_s)
        begin = time.monotonic()
        time.sleep(stall_s)
        print(begin, time.monotonic(), flush=True)  # noqa: T201
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
