"""What clients speak to: passes each request to a replica, and to another one if that dies before it has answered."""

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
METRICS_SECONDS = 10
# They are about what one process did before; the next request may come to another.
OF_ONE_PROCESS = {"/sdapi/v1/progress", "/sdapi/v1/interrupt", "/sdapi/v1/options"}


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
            return error(501, "not_supported", f"{path} is about one process, and here are several")
        headers = end_to_end(request.headers.items())
        if path == "/metrics":
            return await self.metrics(headers)
        body = await self.body_of(request)
        if body is None:
            return error(413, "invalid_request_error", f"a body has at most {self.max_body_bytes} bytes here")
        query = f"?{request.url.query}" if request.url.query else ""
        return await self.answer(Request(request.method, request.scope["raw_path"].decode() + query, headers, body))

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

    async def metrics(self, headers):
        """Of all replicas that answer."""
        try:
            pages = await self.replicas.broadcast("metrics", headers).results_async(
                timeout_s=METRICS_SECONDS, return_exceptions=True
            )
        except (DeploymentUnavailableError, TimeoutError) as unavailable:
            return error(503, "server_error", str(unavailable))
        text = metrics.merged(page for page in pages if not isinstance(page, Exception))
        return Response(text, media_type="text/plain; version=0.0.4")


def passed_on(answer, pieces):
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
