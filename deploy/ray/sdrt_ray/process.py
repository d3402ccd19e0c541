"""One `sdrt serve` process, on a free port of this machine."""

import asyncio
import os
import socket
import time

import aiohttp

POLL_SECONDS = 0.2


class ProcessGone(Exception):
    """The process died, or dropped a connection, before it had answered in full."""


class Process:
    """Ends with the thread that starts it, however that ends."""

    def __init__(self, process, port):
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    @classmethod
    async def start(cls, command, environment):
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            # A killed replica cannot stop its process, which would keep the GPU's memory: the kernel does it.
            *["setpriv", "--pdeathsig", "KILL", "--"],
            *[*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | environment,
        )
        return cls(process, port)

    async def wait_until_ready(self, session, seconds):
        deadline, why = time.monotonic() + seconds, "no answer"
        while time.monotonic() < deadline:
            if self.process.returncode is not None:
                raise RuntimeError(
                    f"sdrt ended with status {self.process.returncode} before it was ready; see its log"
                )
            try:
                async with session.get(f"{self.url}/ready", timeout=aiohttp.ClientTimeout(total=5)) as answer:
                    if answer.status == 200:
                        return
                    why = f"status {answer.status}"
            except (aiohttp.ClientError, TimeoutError) as error:
                why = repr(error)
            await asyncio.sleep(POLL_SECONDS)
        raise RuntimeError(f"sdrt is not ready after {seconds:g} s: {why}")

    async def wait(self):
        """The exit status, once there is one."""
        return await self.process.wait()

    def terminate(self):
        if self.process.returncode is None:
            self.process.terminate()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
