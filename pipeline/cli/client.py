"""The API over HTTP: answers that are good, or a Failure that says what to do."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Self

import httpx
import msgspec

from pipeline.cli.failure import ExitCode, Failure, ReplyLost
from storage.model import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from uuid import UUID

# One request waits this long at most: what lies between, proxies above all, cuts quiet connections.
LONGEST_WAIT_SECONDS = 20
ANSWER_SECONDS = 15.0
PAUSE_SECONDS = 0.5

# A proxy of the environment cannot know this machine's loopback.
_LOOPBACK: dict[str, httpx.BaseTransport | None] = {
    f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")
}


class _Fault(msgspec.Struct):
    field: str
    message: str
    allowed: str | list[str] | None = None


class _Problem(msgspec.Struct):
    """An error of the API, RFC 9457."""

    title: str
    detail: str = ""
    errors: tuple[_Fault, ...] = ()


class Client:
    """Calls below `/api/v1` of one service; a context manager.

    Every call raises Failure where the answer is not good, and ReplyLost where the call may have been
    carried out all the same.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not (token.isascii() and token.isprintable()):
            raise Failure("--token: allowed: what a header may hold, printable ASCII")
        self._url = _checked(url)
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=f"{self._url}/api/v1",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=ANSWER_SECONDS,
            transport=transport,
            # Loading certificates takes longer than most calls; plain HTTP has no use for them.
            verify=not self._url.startswith("http://"),
            mounts=None if transport else _LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def get(self, path: str, parameters: Mapping[str, object] | None = None) -> httpx.Response:
        """Read; parameters that are None or empty are left out."""
        given = {name: str(value) for name, value in (parameters or {}).items() if value not in (None, "")}
        return self._call("GET", path, params=given)

    def post(
        self, path: str, body: Mapping[str, object] | None = None, key: str | None = None
    ) -> httpx.Response:
        """Write; with a key a repeat of the same is answered as the first one was."""
        headers = {"Idempotency-Key": key} if key else {}
        return self._call("POST", path, body, headers=headers)

    def delete(self, path: str) -> httpx.Response:
        """Cancel."""
        return self._call("DELETE", path)

    def pages(
        self, path: str, parameters: Mapping[str, object], cursor: str | None, *, every: bool
    ) -> Iterator[httpx.Response]:
        """Read one page of a list, or from there on every one."""
        while True:
            page = self.get(path, {**parameters, "cursor": cursor})
            yield page
            cursor = page.json()["next"]
            if not every or cursor is None:
                return

    def wait(self, task_id: UUID | str, seconds: float) -> httpx.Response:
        """Read a task when it has ended, or when the time is up; a service that restarts is waited for."""
        deadline = time.monotonic() + seconds
        while True:
            asked = time.monotonic()
            left = deadline - asked
            try:
                response = self._wait_once(task_id, left)
                if left <= 0 or ended(response.json()):
                    return response
            except Failure as failure:
                if left <= 0 or failure.exit_code is not ExitCode.UNANSWERED:
                    raise
            self._sleep(max(0.0, min(left, asked + PAUSE_SECONDS - time.monotonic())))

    def _wait_once(self, task_id: UUID | str, left: float) -> httpx.Response:
        wait = min(math.ceil(max(left, 0)), LONGEST_WAIT_SECONDS)
        parameters = {"wait": wait} if wait else {}
        return self._call("GET", f"/tasks/{task_id}", params=parameters, timeout=ANSWER_SECONDS + wait)

    def _call(
        self, method: str, path: str, body: Mapping[str, object] | None = None, **request: Any
    ) -> httpx.Response:
        try:
            if body is not None:
                request["content"] = msgspec.json.encode(body)
                request["headers"]["Content-Type"] = "application/json"
            response = self._http.request(method, path, **request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Failure(
                f"cannot reach {self._url}: {error}\n"
                "`make run` starts the service; --url or BATON_URL name one that runs elsewhere",
                ExitCode.UNANSWERED,
            ) from error
        except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeError) as error:
            raise Failure(f"no request can be made of this: {error}") from error
        except httpx.TransportError as error:
            raise ReplyLost(f"no answer from {self._url}: {str(error) or type(error).__name__}") from error
        self._check(response)
        return response

    def _check(self, response: httpx.Response) -> None:
        media_type = response.headers.get("content-type", "").partition(";")[0]
        if response.is_success and media_type == "application/json":
            return
        message = _explain(response) if media_type == "application/problem+json" else None
        message = message or (
            f"{response.request.url} answered {response.status_code} {response.reason_phrase} with"
            f" {media_type or 'nothing'}, as Baton does not; check --url or BATON_URL"
        )
        if response.is_server_error:
            raise ReplyLost(message)
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            later = response.headers.get("retry-after", "some")
            raise Failure(
                f"{message}\nNothing was handed over; repeat it in {later} seconds.", ExitCode.UNANSWERED
            )
        raise Failure(message)


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
        if parsed.scheme in {"http", "https"} and parsed.host:
            return url.rstrip("/")
    except (httpx.InvalidURL, UnicodeError):
        pass
    raise Failure(f"--url {url}: allowed: http://host:port or https://host:port")


def ended(task: Mapping[str, Any]) -> bool:
    """Tell whether nothing but a replay moves the task any more."""
    return Status[task["status"]].terminal


def _explain(response: httpx.Response) -> str | None:
    """Write a problem as one line, and one more for each failing field."""
    try:
        problem = msgspec.json.decode(response.content, type=_Problem)
    except msgspec.MsgspecError:
        return None
    headline = f"{problem.title} ({response.status_code})"
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return f"{headline}; --token or BATON_TOKEN gives one"
    if not problem.errors:
        return f"{headline}: {problem.detail}" if problem.detail else headline
    return "\n".join((headline, *(f"  {_fault(fault)}" for fault in problem.errors)))


def _fault(fault: _Fault) -> str:
    allowed = fault.allowed if isinstance(fault.allowed, str) else ", ".join(fault.allowed or ())
    return f"{fault.field}: {fault.message}" + (f"; allowed: {allowed}" if allowed else "")
