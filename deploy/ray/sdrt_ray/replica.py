"""A replica: one `sdrt serve`, and the way to it."""

import asyncio
import contextlib
import logging
import os

import aiohttp
from ray import serve

from .messages import Answer, end_to_end
from .process import Process, ProcessGone

logger = logging.getLogger("ray.serve")
# uvicorn, in front of the router, states its own.
STATED_BY_THE_PROXY = {"date", "server"}


@serve.deployment
class Replica:
    """Lives as long as its process, so that Serve sees a dead process as a dead replica, and starts another."""

    async def __init__(self, command, environment, ready_within):
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            # A queue may be long; who gives up is the client.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            auto_decompress=False,
        )
        self.process = await Process.start(command, environment)
        try:
            await self.process.wait_until_ready(self.session, ready_within)
        except BaseException:
            self.process.terminate()
            await self.session.close()
            raise
        self.stopping = False
        self.watch = asyncio.create_task(self.die_with_process())

    async def die_with_process(self):
        status = await self.process.wait()
        if not self.stopping:
            logger.error("sdrt ended with status %s, and so does its replica", status)
            # At once: while a replica without a process lives, it looks idle and draws requests.
            os._exit(1)

    async def check_health(self):
        """Called by Serve, which replaces a replica after three failures."""
        async with self.session.get(
            f"{self.process.url}/health", timeout=aiohttp.ClientTimeout(total=10)
        ) as answer:
            answer.raise_for_status()

    @contextlib.asynccontextmanager
    async def sent(self, request):
        """The request under way, as aiohttp's answer to it and the headers to pass on."""
        try:
            async with self.session.request(
                request.method,
                self.process.url + request.target,
                headers=request.headers,
                data=request.body or None,
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
                allow_redirects=False,
            ) as answer:
                if answer.status == 503:
                    raise ProcessGone(f"sdrt shuts down, or its device is gone: {(await answer.text())[:200]}")
                headers = end_to_end(answer.headers.items())
                yield answer, [(name, value) for name, value in headers if name.lower() not in STATED_BY_THE_PROXY]
        except (aiohttp.ClientError, OSError) as error:
            raise ProcessGone(f"sdrt did not answer in full: {error!r}") from error

    async def forward(self, request):
        """Yields the Answer, and the pieces of its body where it is a stream. Left early, it cancels the request."""
        async with self.sent(request) as (answer, headers):
            if answer.content_type != "text/event-stream":
                yield Answer(answer.status, headers, await answer.read())
                return
            yield Answer(answer.status, headers, None)
            async for piece in answer.content.iter_any():
                yield piece

    async def ask(self, request):
        """The name of this replica, and the Answer as a whole."""
        async with self.sent(request) as (answer, headers):
            replica = serve.get_replica_context().replica_id.unique_id
            return replica, Answer(answer.status, headers, await answer.read())

    def __del__(self):
        """Called by Serve once nothing is in flight."""
        self.stopping = True
        if hasattr(self, "process"):
            self.process.terminate()
