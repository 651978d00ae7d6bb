"""Python aiohttp, which knows no proxy unless the program says trust_env: aiohttp_calls.py URL [trust_env]"""

import asyncio
import hashlib
import os
import sys

import aiohttp


async def main(base: str) -> None:
    headers = {"Authorization": os.environ["AUTH"]} if "AUTH" in os.environ else {}
    async with aiohttp.ClientSession(headers=headers, trust_env="trust_env" in sys.argv) as session:

        async def call(method: str, path: str, json: object = None) -> None:
            async with session.request(method, base + path, json=json) as response:
                print(f"> {method} {path}")
                print(response.status, response.reason)
                for name, value in response.raw_headers:
                    print(f"{name.decode()}: {value.decode()}")
                print(hashlib.sha256(await response.read()).hexdigest())

        for name in ("/json?x=1&y=%2F", "/gzip", "/missing", "/moved", "/chunked", "/large"):
            await call("GET", name)
        await call("HEAD", "/json")
        await call("POST", "/items", {"name": "bolt"})


asyncio.run(main(sys.argv[1]))
