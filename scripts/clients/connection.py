"""An HTTP client on asyncio that can be slow, impatient or wrong, which libraries take care not to be."""

import asyncio
import json
import socket


class Connection:
    """One request on a connection of its own."""

    def __init__(self, port, small_buffer=False):
        self.port, self.small_buffer = port, small_buffer

    async def __aenter__(self):
        sock = socket.socket()
        sock.setblocking(False)
        if self.small_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        limit = 4096 if self.small_buffer else 1 << 20
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=limit)
        return self

    async def __aexit__(self, *_):
        self.writer.transport.abort()

    async def write(self, data, pieces=1, pause=0.0):
        """Sends bytes, in so many pieces with a pause between."""
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            self.writer.write(data[start : start + size])
            await self.writer.drain()
            await asyncio.sleep(pause if start + size < len(data) else 0)

    async def send(self, path, body=None, pieces=1, pause=0.0):
        content = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\nconnection: close\r\n"
        head += "" if body is None else f"content-type: application/json\r\ncontent-length: {len(content)}\r\n"
        await self.write(head.encode() + b"\r\n" + content, pieces, pause)

    async def head(self):
        """The status and the headers of the answer."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1])

    async def chunks(self, pause=0.0):
        """The body, as it comes."""
        if self.headers.get("transfer-encoding") != "chunked":
            yield await self.reader.readexactly(int(self.headers["content-length"]))
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            content = bytearray()
            while len(content) < size:
                piece = await self.reader.read(min(4096, size - len(content)))
                assert piece, "the body ended within a chunk"
                content += piece
                await asyncio.sleep(pause)
            yield bytes(content)
            await self.reader.readexactly(2)

    async def body(self, pause=0.0):
        return b"".join([chunk async for chunk in self.chunks(pause)])

    async def frames(self, pause=0.0):
        """The frames of a stream of events, which are JSON or `[DONE]`."""
        rest = b""
        async for chunk in self.chunks(pause):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.startswith(b"data: "):
                    frame = line.removeprefix(b"data: ")
                    yield frame.decode() if frame == b"[DONE]" else json.loads(frame)
