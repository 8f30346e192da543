"""Answer programs that speak OpenAI's completions API, on this machine alone: http://127.0.0.1:8000/v1.

An example: `python -m stages.commands.serve`, then
`curl -s http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "what is CNN"}'`.
"""

import json
import secrets
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from itertools import tee
from typing import Annotated, Any, Literal

import pydantic
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from stages import command_line
from stages.artifacts.provenance_json import MODEL_FOLDER
from stages.core.generation import Sampling, generate, stream
from stages.core.language_model import MOST_PROMPTS, LanguageModel, text_pieces
from stages.errors import UserError
from stages.load import load
from stages.tracking.scoring_server import GuardedFastAPI, RequestEndedError, StoppableOutput

HOST = "127.0.0.1"
MOST_CHOICES = 128

MOST_STOPS = 4  # as in OpenAI's API

Finish = Literal["stop", "length"]

# What clients send unasked: keys that are not supported, with values that change nothing.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1), "echo": (None, False), "frequency_penalty": (None, 0), "logit_bias": (None, {}),
    "logprobs": (None,), "presence_penalty": (None, 0), "stream_options": (None,), "suffix": (None, ""),
}  # fmt: skip


class CompletionRequest(pydantic.BaseModel):
    """The body of POST /v1/completions; what is left out has OpenAI's default. What is not here is refused by name."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str | Annotated[list[str], pydantic.Field(min_length=1, max_length=MOST_PROMPTS)]
    model: str | None = None
    max_tokens: Annotated[int, pydantic.Field(ge=1)] | None = 16
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    n: Annotated[int, pydantic.Field(ge=1, le=MOST_CHOICES)] | None = 1
    stop: str | Annotated[list[str], pydantic.Field(max_length=MOST_STOPS)] | None = None
    """Texts that end a completion, and are no part of it."""
    seed: int | None = None
    """Null draws one."""
    stream: bool | None = False
    user: str | None = None
    """Read by nobody."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _leave_out_what_changes_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value not in _WITHOUT_EFFECT.get(key, ())}

    def stops(self) -> list[str]:
        """Return the texts that end a completion."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    def sampling(self, choice: int) -> Sampling:
        """Return how one of the n completions of a prompt is drawn.

        Raises:
            UserError: a value is out of range.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed + choice
        return Sampling(temperature, None, self.top_p, seed)


class UnknownModelError(Exception):
    """A request names another model than the one that is served."""


def main() -> None:
    """Serve a model until Ctrl-C."""
    parser = command_line.command_parser(__doc__)
    parser.add_argument(
        "model", nargs="?", default=str(MODEL_FOLDER),
        help=f"a folder, runs:/ID or models:/NAME/VERSION (default {MODEL_FOLDER})",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=8000, help="listen there (default 8000; 0: a free one)")
    options = parser.parse_args()
    with listen(options.port) as listening:
        app = application(load(options.model), options.model)
        address = f"http://{HOST}:{listening.getsockname()[1]}/v1"
        if not options.quiet:
            print(f"Serving {options.model} at {address}/completions. Ctrl-C ends it.", flush=True)
        config = uvicorn.Config(app, log_level="info" if options.verbose else "warning")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def listen(port: int) -> socket.socket:
    """Take a port of this machine.

    Raises:
        UserError: it cannot be used.
    """
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError):
        raise UserError(
            f"port {port} cannot be used, perhaps it is taken: try --port {port % 65535 + 1}, or make serve "
            f"PORT={port % 65535 + 1}"
        ) from None


def application(model: LanguageModel, name: str) -> FastAPI:
    """Return the web application; who has gone is no longer computed for, as in MLflow's server.

    Args:
        model: what completes.
        name: what /v1/models calls it.
    """
    model.saved.network.output.__class__ = StoppableOutput  # this layer runs once a token
    app = GuardedFastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # no page of another site asks it
    app.add_exception_handler(RequestValidationError, _refuse_request)
    app.add_exception_handler(UserError, _refuse_value)
    app.add_exception_handler(UnknownModelError, _refuse_model)
    app.add_exception_handler(RequestEndedError, _nobody_waits)
    app.add_exception_handler(HTTPException, _refuse_address)
    began = int(time.time())

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [{"id": name, "object": "model", "created": began, "owned_by": "user"}]}

    @app.post("/v1/completions", response_model=None)
    def completions(request: CompletionRequest) -> dict[str, Any] | StreamingResponse:
        """Complete prompts, at once or token by token."""
        if request.model not in (None, name):
            raise UnknownModelError(f"model: found {request.model!r}, allowed: {name!r}, or none")
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        token_ids = [model.prompt_ids(text, f"prompt {number}") for number, text in enumerate(prompts, start=1)]
        longest = _longest_completion(request, model.most_tokens)
        samplings = [request.sampling(choice) for choice in range(request.n or 1)]
        answer = {
            "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": name,
        }  # fmt: skip
        if request.stream:
            events = _events(model, token_ids, longest, samplings, request.stops(), answer)
            return StreamingResponse(events, media_type="text/event-stream")
        return answer | _complete(model, token_ids, longest, samplings, request.stops())

    return app


def _longest_completion(request: CompletionRequest, most: int) -> int:
    asked = 16 if request.max_tokens is None else request.max_tokens
    if asked > most:
        raise UserError(f"max_tokens: found {asked}, allowed: 1 to {most:,}")
    return asked


def _complete(
    model: LanguageModel, prompts: list[list[int]], longest: int, samplings: list[Sampling], stops: list[str]
) -> dict[str, Any]:
    """Return choices and usage; the n choices of a prompt follow each other."""
    eos_id = model.vocabulary.eos_id
    drawn = [list(generate(model.saved.network, prompts, eos_id, longest, sampling)) for sampling in samplings]
    completions = [choices[row] for row in range(len(prompts)) for choices in drawn]
    choices = []
    for index, completion in enumerate(completions):
        pieces, ends = zip(*_pieces(iter(completion), model, stops), strict=True)
        choices.append(_choice(index, "".join(pieces), ends[-1]))
    read, written = sum(map(len, prompts)), sum(map(len, completions))
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return {"choices": choices, "usage": usage}


def _events(
    model: LanguageModel,
    prompts: list[list[int]],
    longest: int,
    samplings: list[Sampling],
    stops: list[str],
    answer: dict[str, Any],
) -> Iterator[str]:
    """Yield server-sent events: the choices one after the other, each in pieces."""
    asked = [(prompt, sampling) for prompt in prompts for sampling in samplings]
    for index, (prompt, sampling) in enumerate(asked):
        tokens = stream(model.saved.network, prompt, model.vocabulary.eos_id, longest, sampling)
        for piece, finish in _pieces(tokens, model, stops):
            yield _event(answer | {"choices": [_choice(index, piece, finish)]})
    yield "data: [DONE]\n\n"


def _pieces(tokens: Iterator[int], model: LanguageModel, stops: list[str]) -> Iterator[tuple[str, Finish | None]]:
    """Yield a completion's text up to the first of the stops, and last why it ended; what may begin a stop waits."""
    tokens, chosen = tee(tokens)
    waiting = ""
    for piece in text_pieces(tokens, model.vocabulary):
        waiting += piece
        found = [at for stop in stops if (at := waiting.find(stop)) >= 0]
        if found:
            yield waiting[: min(found)], "stop"
            return
        begun = (size for stop in stops for size in range(1, len(stop)) if waiting.endswith(stop[:size]))
        ready = len(waiting) - max(begun, default=0)
        if ready:
            yield waiting[:ready], None
            waiting = waiting[ready:]
    yield waiting, "stop" if list(chosen)[-1] == model.vocabulary.eos_id else "length"


def _choice(index: int, text: str, finish: Finish | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _refuse_request(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - FastAPI's signature
    """Answer a request of another form; the message names each key that is wrong."""
    details = error.errors() if isinstance(error, RequestValidationError) else []
    keys = [str(each["loc"][1]) for each in details if len(each["loc"]) > 1 and each["type"] != "json_invalid"]
    if not keys:
        return _error(400, "the body is not read, allowed: a JSON object, sent with Content-Type: application/json")
    found = "; ".join(f"{'.'.join(str(part) for part in each['loc'][1:])}: {each['msg']}" for each in details)
    return _error(400, f"{found}; allowed: {', '.join(CompletionRequest.model_fields)}", param=keys[0])


async def _refuse_value(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    return _error(400, str(error))


async def _refuse_model(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    return _error(404, str(error), param="model", code="model_not_found")


async def _refuse_address(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 404
    found = f"{request.method} {request.url.path}"
    return _error(status, f"found {found}, allowed: POST /v1/completions, GET /v1/models")


async def _nobody_waits(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    return _error(499, "the client has gone", code="request_ended")


def _error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    body = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return JSONResponse({"error": body}, status)


if __name__ == "__main__":
    command_line.run(main)
