"""The application that `serve run` builds."""

from pydantic import BaseModel, ConfigDict, Field

from .replica import Replica
from .router import Router


class Settings(BaseModel):
    """`args` of the configuration file."""

    model_config = ConfigDict(extra="forbid")

    # `--host` and `--port` are added.
    command: list[str] = Field(["sdrt", "serve"], min_length=1)
    environment: dict[str, str] = {}
    # Seconds from the start of a process to its /ready: it may have a model to download.
    ready_within: float = Field(600, gt=0)
    # How many replicas may die under a request before it is given up.
    attempts: int = Field(3, ge=1)
    max_body_bytes: int = Field(32 << 20, ge=1)


def build(settings: Settings):
    replica = Replica.bind(settings.command, settings.environment, settings.ready_within)
    return Router.bind(replica, settings.attempts, settings.max_body_bytes)
