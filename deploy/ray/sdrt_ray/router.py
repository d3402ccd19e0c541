"""What clients speak to: passes each request to a replica, and to another one if that dies before it has answered."""

import asyncio
import json
import logging

from ray import serve
from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from starlette.responses import JSONResponse, Response, StreamingResponse

from . import metrics
from .messages import Request, end_to_end
from .process import ProcessGone

logger = logging.getLogger("ray.serve")
# The replica or its process died. Painting has no effect but the picture, so another may begin anew.
LOST = (ProcessGone, RayActorError, ReplicaUnavailableError, WorkerCrashedError)
RETRY_AFTER_SECONDS = 5
RETRY_PAUSE_SECONDS = 0.2
BROADCAST_SECONDS = 10
# They are about what one process has in hand, and do not say which.
OF_ONE_PROCESS = {"/sdapi/v1/progress", "/sdapi/v1/interrupt"}


@serve.deployment
class Router:
    def __init__(self, replicas, attempts, max_body_bytes):
        """`attempts`: how many replicas a request may cost. Of a request that kills what paints it, there are few."""
        self.replicas = replicas
        self.forward = replicas.options(method_name="forward", stream=True)
        self.attempts, self.max_body_bytes = attempts, max_body_bytes

    async def __call__(self, request):
        path = request.url.path
        if path in OF_ONE_PROCESS:
            return error(501, "invalid_request_error", f"{path} is about one process, and here are several")
        body = await self.body_of(request)
        if body is None:
            return error(413, "invalid_request_error", f"a body has at most {self.max_body_bytes} bytes here")
        target = request.scope["raw_path"].decode() + (f"?{request.url.query}" if request.url.query else "")
        given = Request(request.method, target, end_to_end(request.headers.items()), body)
        if path == "/metrics":
            return await self.metrics(given)
        if path.startswith("/pictures/"):
            return await self.find(given)
        return await self.answer(given)

    async def body_of(self, request):
        """None if it is too long."""
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self.max_body_bytes:
                return None
        return bytes(body)

    async def answer(self, request):
        for attempt in range(1, self.attempts + 1):
            pieces = self.forward.remote(request)
            try:
                answer = await anext(pieces)
                return passed_on(answer, pieces)
            except LOST as lost:
                logger.warning("attempt %d of %d: %s", attempt, self.attempts, summary(lost))
                await asyncio.sleep(RETRY_PAUSE_SECONDS)
            except BackPressureError:
                return error(
                    429, "rate_limit_error", "all queues are full", {"Retry-After": f"{RETRY_AFTER_SECONDS}"}
                )
            except DeploymentUnavailableError as unavailable:
                return error(503, "server_error", unavailable.message)
            except BaseException:
                # The client has gone: nobody waits for this picture.
                pieces.cancel()
                raise
        return error(502, "server_error", f"{self.attempts} replicas died while they had this request")

    async def ask_all(self, request):
        """(replica, Answer) of the replicas that answer."""
        try:
            answers = await self.replicas.broadcast("ask", request).results_async(
                timeout_s=BROADCAST_SECONDS, return_exceptions=True
            )
        except (DeploymentUnavailableError, TimeoutError) as failure:
            logger.warning("%s %s of all replicas: %s", request.method, request.target, summary(failure))
            return []
        return [answer for answer in answers if not isinstance(answer, Exception)]

    async def metrics(self, request):
        pages = [(replica, answer.body.decode()) for replica, answer in await self.ask_all(request)]
        return Response(metrics.merged(pages), media_type=metrics.CONTENT_TYPE)

    async def find(self, request):
        """What one replica has and the others do not."""
        answers = [answer for _, answer in await self.ask_all(request)]
        if not answers:
            return error(503, "server_error", "no replica answered")
        return passed_on(min(answers, key=lambda answer: answer.status))


def passed_on(answer, pieces=None):
    if answer.body is None:
        response = StreamingResponse(events(pieces), answer.status)
    else:
        response = Response(answer.body, answer.status)
    response.raw_headers += [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers
    ]
    return response


async def events(pieces):
    """A stream that has begun cannot begin anew elsewhere: its last event says what happened."""
    try:
        async for piece in pieces:
            yield piece
    except LOST as lost:
        logger.warning("a stream broke off: %s", summary(lost))
        content = {
            "type": "error",
            **body_of_error("server_error", "the replica that painted this died; ask again"),
        }
        yield f"event: error\ndata: {json.dumps(content)}\n\n".encode()
    finally:
        pieces.cancel()


def summary(lost):
    cause = lost.cause if isinstance(lost, RayTaskError) else lost
    return f"{type(cause).__name__}: {cause}".partition("\n")[0]


def body_of_error(kind, message):
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def error(status, kind, message, headers=None):
    """In OpenAI's form."""
    return JSONResponse(body_of_error(kind, message), status, headers)
