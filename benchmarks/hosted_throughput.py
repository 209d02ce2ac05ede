"""Measure `encode` with a hosted model against what the server can do: 50 ms a request, 64 requests at once.

    python benchmarks/hosted_throughput.py --rows 200000

The server is an asyncio program in a process of its own; what it can do is measured first, by a client that sends the
same number of requests of the same size, 64 at once, and reads no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DIM = 64
LATENCY_SECONDS = 0.05
ROOM = 64
# As embedcli estimates the tokens of the rows below.
TOKENS_PER_ROW = 4


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, room: asyncio.Semaphore) -> None:
    """Answer the requests of one connection."""
    vector = base64.b64encode(b"\x00\x00\x80\x3e" * DIM).decode()
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = json.loads(await reader.readexactly(length))
            async with room:
                await asyncio.sleep(LATENCY_SECONDS)
            numbers = vector if body.get("encoding_format") == "base64" else [0.25] * DIM
            items = ",".join(
                f'{{"index":{place},"embedding":{json.dumps(numbers)}}}' for place in range(len(body["input"]))
            )
            tokens = len(body["input"])
            content = f'{{"model":"m","data":[{items}],"usage":{{"total_tokens":{tokens}}}}}'.encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve() -> None:
    """Serve until the process is ended; the port is printed."""
    room = asyncio.Semaphore(ROOM)
    server = await asyncio.start_server(lambda reader, writer: answer(reader, writer, room), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def send(port: int, body: bytes, requests: list[int]) -> None:
    """Send requests over one connection until none is left."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while requests:
        requests.pop()
        writer.write(b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    writer.close()


async def measure_server(port: int, requests: int, rows: int) -> float:
    """Seconds that the server needs for these requests of some rows each."""
    texts = [f"row {number:06}" for number in range(rows)]
    body = json.dumps({"model": "m", "input": texts, "encoding_format": "base64"}).encode()
    waiting = list(range(requests))
    start = time.perf_counter()
    await asyncio.gather(*(send(port, body, waiting) for _ in range(ROOM)))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--request-rows", type=int, default=64, help="rows of one request")
    parser.add_argument("--max-concurrency", type=int, help="as for encode; default: adaptive")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
        return
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            compare(port, arguments.rows, arguments.request_rows, arguments.max_concurrency)
        finally:
            server.terminate()


def compare(port: int, rows: int, request_rows: int, max_concurrency: int | None) -> None:
    """Print what the server can do, and what encode reaches."""
    by_latency = -(-rows // request_rows) * LATENCY_SECONDS / ROOM
    alone = asyncio.run(measure_server(port, -(-rows // request_rows), request_rows))
    with tempfile.TemporaryDirectory() as folder:
        source, report = Path(folder, "in.jsonl"), Path(folder, "report.json")
        source.write_text("".join(f'{{"id": {row}, "text": "row {row:06}"}}\n' for row in range(rows)))
        command = [
            sys.executable, "-m", "embedcli", "encode", str(source), str(Path(folder, "out.npy")), "-m", "openai:m",
            "--base-url", f"http://127.0.0.1:{port}/v1", "--batch-tokens", str(request_rows * TOKENS_PER_ROW),
            "--report", str(report),
        ]  # fmt: skip
        if max_concurrency:
            command += ["--max-concurrency", str(max_concurrency)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        content = json.loads(report.read_text())
    reached = rows / content["rows_per_second"]
    print(f"{rows:,} rows, {request_rows} rows a request, {LATENCY_SECONDS * 1000:.0f} ms, {ROOM} requests at once")
    print(f"by latency alone   {rows / by_latency:10,.0f} rows/s")
    print(f"a bare client      {rows / alone:10,.0f} rows/s")
    print(f"requests of encode {content['usage']['requests']:,}, bare client {-(-rows // request_rows):,}")
    print(f"encode             {rows / reached:10,.0f} rows/s ({alone / reached:.0%} of the bare client)")


if __name__ == "__main__":
    main()
