"""What Schemathesis counts as a failure and is none: rules that JSON Schema has no words for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import schemathesis

if TYPE_CHECKING:
    from schemathesis import Case, HookContext, Response
    from schemathesis.core.failures import Failure

BEYOND_SCHEMA = re.compile(
    r"NUL or half a surrogate pair"
    r"|integers of 64 bits"
    r"|stands beside run_at"
    r"|^is out of range$"  # run_at: JSON Schema compares no times
    r"|Expected `int( \| null)?`, got `float`"  # to JSON Schema 1.0 is an integer
    r"|^(url|headers|body): "  # what http.request itself refuses
)


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:  # noqa: ARG001 - the hook's form
    """Keep a failure, unless such a rule explains it."""
    match type(failure).__name__:
        case "RejectedPositiveData":
            return not _is_beyond_schema(response.json())
        case "AcceptedNegativeData":
            # What does not fit may also be too long: to Schemathesis 413 and 414 are no refusals.
            return response.status_code not in {413, 414}
    return True


def _is_beyond_schema(problem: Any) -> bool:
    if problem["type"] == "urn:baton:problem:key-reused":
        return True
    messages = [each["message"] for each in problem.get("errors", ())]
    return bool(messages) and all(map(BEYOND_SCHEMA.search, messages))
