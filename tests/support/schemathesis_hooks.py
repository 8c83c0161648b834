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
    r"|Expected `int( \| null)?`, got `float`"  # to JSON Schema 1.0 is an integer
    r"|^(url|headers|body): "  # what http.request itself refuses
)


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:  # noqa: ARG001 - the hook's form
    """Keep a failure, unless a valid request was refused by such a rule, each of its errors by one."""
    if type(failure).__name__ != "RejectedPositiveData":
        return True
    problem = response.json()
    if problem["type"] == "urn:baton:problem:key-reused":
        return False
    errors = problem.get("errors", ())
    return not errors or not all(BEYOND_SCHEMA.search(each["message"]) for each in errors)
