"""The OpenAPI 3.1 document, made of the calls as they are bound and of the kinds as they are registered."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import examples
from gateway.auth import OPEN_PATHS
from gateway.payloads import NewBatch, NewTask
from gateway.problems import MEDIA_TYPE, ProblemDetails, ProblemType, details
from gateway.queries import PATHS
from pipeline.handlers import PayloadInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from litestar.handlers import HTTPRouteHandler

    from gateway.calls import Answer, Call
    from gateway.queries import Parameter
    from gateway.settings import GatewaySettings
    from pipeline.handlers import Handler

Json = dict[str, Any]

DESCRIPTION = """\
Hand a task over, and ask at any time where it is. A 201 means that it is durable.

Every error is `application/problem+json` (RFC 9457). `type` names it for programs; `errors` names each field,
parameter or header that does not fit, and what is allowed there. A 503 may be repeated, and a 409 `busy`:
a `POST` of tasks with the same `Idempotency-Key`, for the first one may have been carried out. A 429 changes
nothing: repeat it after `Retry-After`. Any other path answers 404 `no-such-path`, any other method 405
`method-not-allowed`.
"""
TAGS = {
    "Tasks": "Hand over, look up, wait, cancel, replay.",
    "Dead letters": "What ended badly.",
    "Outbox": "Hand-overs on their way to the broker.",
    "Kinds": "What can be handed over.",
    "Health": "For probes; no token is asked.",
}
SECURITY_SCHEMES = {"token": {"type": "http", "scheme": "bearer", "description": "One of API_TOKENS."}}

_ANY_CALL = (
    ProblemType.BAD_REQUEST,
    ProblemType.BODY_TIMEOUT,
    ProblemType.HEAD_TOO_LARGE,
    ProblemType.INTERNAL,
)
_ANY_BODY = (
    ProblemType.MALFORMED_JSON,
    ProblemType.TOO_DEEP,
    ProblemType.BODY_TOO_LARGE,
    ProblemType.UNSUPPORTED_MEDIA_TYPE,
)
_RESPONSE_HEADERS = {
    "Retry-After": {"description": "Seconds after which a repeat may help.", "schema": {"type": "integer"}},
    "WWW-Authenticate": {"description": "The scheme that is asked for.", "schema": {"type": "string"}},
}


class Document:
    """Describes routes that were bound by Call."""

    def __init__(
        self,
        routes: Sequence[HTTPRouteHandler],
        handlers: Mapping[str, Handler[..., Any]],
        settings: GatewaySettings,
    ) -> None:
        self._routes = routes
        self._handlers = handlers
        self._settings = settings
        self._schemas: Json = {}
        self._references: dict[Any, Json] = {}

    def build(self) -> Json:
        """Write the document."""
        self._collect_schemas()
        paths: dict[str, Json] = {}
        for route in self._routes:
            call: Call = route.opt["call"]
            path = call.path.replace(":str", "")
            paths.setdefault(path, {})[call.method.lower()] = self._operation(call, route.fn)
        # No servers are named: by the specification, the one that answers this document is meant.
        return {
            "openapi": "3.1.0",
            "info": {"title": "Baton", "version": "1", "description": DESCRIPTION},
            "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
            "paths": paths,
            "security": [{"token": []}] if self._settings.api_tokens else [],
            "components": {
                "schemas": self._schemas,
                "examples": {
                    each.slug: {
                        "summary": each.title,
                        "value": details(examples.PROBLEMS[each], "/api/v1/tasks"),
                    }
                    for each in ProblemType
                },
                **({"securitySchemes": SECURITY_SCHEMES} if self._settings.api_tokens else {}),
            },
        }

    def _collect_schemas(self) -> None:
        calls: list[Call] = [route.opt["call"] for route in self._routes]
        ours: list[Any] = [NewTask, ProblemDetails]
        ours += [call.body.struct for call in calls if call.body]
        ours += [answer.body for call in calls for answer in call.answers]
        ours = [*dict.fromkeys(ours)]
        payloads = [handler.payload_type for handler in self._handlers.values()]
        references, self._schemas = msgspec.json.schema_components(
            [*ours, *payloads], ref_template="#/components/schemas/{name}"
        )
        self._references = dict(zip(ours, references, strict=False))
        self._split_by_kind(dict(zip(self._handlers, references[len(ours) :], strict=True)))

    def _split_by_kind(self, payloads: Mapping[str, Json]) -> None:
        """Make of the body of any kind one for each kind, with the schema of its payload."""
        name = NewTask.__name__
        fields = self._schemas[name]
        mapping = {}
        for kind, payload in payloads.items():
            properties = fields["properties"]
            own = {
                "kind": {**properties["kind"], "const": kind},
                "payload": {**properties["payload"], **payload},
            }
            self._schemas[f"{name}.{kind}"] = {
                **fields,
                "title": kind,
                "description": inspect.getdoc(self._handlers[kind].function) or "",
                "properties": {**properties, **own},
                "required": ["kind", "payload"] if _needs_payload(self._handlers[kind]) else ["kind"],
            }
            mapping[kind] = f"#/components/schemas/{name}.{kind}"
        self._schemas[name] = {
            "title": name,
            "description": "A new task, by its kind.",
            "oneOf": [{"$ref": reference} for reference in mapping.values()],
            "discriminator": {"propertyName": "kind", "mapping": mapping},
        }
        batch = self._schemas[NewBatch.__name__]
        batch["properties"]["tasks"]["items"] = self._references[NewTask]

    def _operation(self, call: Call, function: Any) -> Json:
        summary, _, description = (inspect.getdoc(function) or "").partition("\n\n")
        operation: Json = {
            "operationId": call.name,
            "tags": [call.tag],
            "summary": summary.rstrip("."),
            "description": description,
            "parameters": list(_parameters(call)),
            "responses": {
                **{str(answer.status): self._success(answer) for answer in call.answers},
                **{str(status): self._failure(types) for status, types in self._problems(call).items()},
            },
        }
        if call.path in OPEN_PATHS:
            operation["security"] = []
        if call.body:
            operation["requestBody"] = {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": self._references[call.body.struct],
                        "examples": {name: {"value": value} for name, value in call.bodies.items()},
                    }
                },
            }
        return operation

    def _problems(self, call: Call) -> dict[int, list[ProblemType]]:
        """Gather what the call can be refused with, by status: its own, and what follows from its form."""
        types = {*_ANY_CALL, *call.problems}
        if call.path not in OPEN_PATHS:
            types |= {ProblemType.QUERY_TOO_LONG, ProblemType.INVALID}
            if self._settings.api_tokens:
                types.add(ProblemType.UNAUTHORIZED)
            elif not self._settings.allow_anonymous:
                types |= {ProblemType.FOREIGN_ORIGIN, ProblemType.MISDIRECTED}
        if "{" in call.path:
            types |= {ProblemType.NOT_FOUND, ProblemType.NO_SUCH_PATH}  # the latter for an id with a slash
        if call.body:
            types.update(_ANY_BODY)
        by_status: dict[int, list[ProblemType]] = {}
        for each in ProblemType:
            if each in types:
                by_status.setdefault(each.status, []).append(each)
        return by_status

    def _success(self, answer: Answer) -> Json:
        return {
            "description": answer.description,
            "headers": {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in answer.headers.items()
            },
            "content": {
                "application/json": {
                    "schema": self._references[answer.body],
                    "example": msgspec.Raw(msgspec.json.encode(answer.example)),
                }
            },
        }

    def _failure(self, types: Iterable[ProblemType]) -> Json:
        headers = set()
        if any(each.retry_after_seconds is not None for each in types):
            headers.add("Retry-After")
        if ProblemType.UNAUTHORIZED in types:
            headers.add("WWW-Authenticate")
        return {
            "description": "; ".join(each.title for each in types),
            "headers": {name: _RESPONSE_HEADERS[name] for name in sorted(headers)},
            "content": {
                MEDIA_TYPE: {
                    "schema": self._references[ProblemDetails],
                    "examples": {each.slug: {"$ref": f"#/components/examples/{each.slug}"} for each in types},
                }
            },
        }


def _parameters(call: Call) -> Iterator[Json]:
    for name in re.findall(r"{(\w+):str}", call.path):
        yield {"name": name, "in": "path", "required": True, **_form(PATHS[name])}
    for name, parameter in call.query.parameters.items():
        yield {"name": name, "in": "query", **_form(parameter)}
    for name, parameter in call.headers.items():
        yield {"name": name, "in": "header", **_form(parameter)}


def _form(parameter: Parameter) -> Json:
    allowed = parameter.allowed if isinstance(parameter.allowed, str) else ", ".join(parameter.allowed)
    return {
        "description": f"{parameter.meaning} Allowed: {allowed}.".strip(),
        "schema": parameter.schema,
    }


def _needs_payload(handler: Handler[..., Any]) -> bool:
    """Tell whether the {} that stands for a payload left out is none."""
    try:
        handler.decode(b"{}")
    except PayloadInvalid:
        return True
    return False
