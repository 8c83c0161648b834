"""The OpenAPI document says what the gateway does, and its pages need nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator, ValidationError  # type: ignore[import-untyped]
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.problems import ProblemType
from pipeline.handlers import Handlers, handler, load
from tests.support.gateway import HOST, Gateway, gateway, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TOKEN = "token-0123456789abcdef"
ID = "01890a5d-ac96-774b-bcce-b302099a8057"
SETTINGS: list[dict[str, Any]] = [{}, {"api_tokens": (TOKEN,)}, {"allow_anonymous": True}]


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Gateway]:
    async with gateway(handlers=load(["pipeline.handlers.example"])) as opened:
        yield opened


async def document_of(api: Gateway) -> Any:
    return (await api.client.get("/schema/openapi.json")).json()


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def somewhere(path: str) -> str:
    return path.replace("{task_id}", ID).replace("{row_id}", "1").replace("{dead_letter_id}", "1")


def names_in(operation: Any, place: str) -> list[str]:
    return [each["name"] for each in operation["parameters"] if each["in"] == place]


def valid(document: Any, schema: Any, value: object) -> None:
    Draft202012Validator({**schema, "components": document["components"]}).validate(value)


@pytest.mark.parametrize("settings", SETTINGS)
async def test_it_is_valid_openapi(settings: dict[str, Any]) -> None:
    async with gateway(**settings) as api:
        document = await document_of(api)

    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


async def test_every_route_is_described(api: Gateway) -> None:
    described = {f"{method} {path}" for method, path, _ in operations(await document_of(api))}
    routes = {
        f"{method} {re.sub(':str', '', route.path_format)}"
        for route in api.app.routes
        for method in getattr(route, "methods", ())
    }
    pages = {each for each in routes if each.startswith(("GET /docs", "GET /schema"))}

    assert described == {each for each in routes if not each.startswith("OPTIONS ")} - pages
    assert len(pages) == 5


async def test_every_operation_can_be_read(api: Gateway) -> None:
    document = await document_of(api)
    names = [operation["operationId"] for _, _, operation in operations(document)]

    assert len(set(names)) == len(names)
    for _, path, operation in operations(document):
        assert operation["summary"]
        assert set(operation["tags"]) <= {each["name"] for each in document["tags"]}
        assert names_in(operation, "path") == re.findall(r"{(\w+)}", path)
        assert all(each["description"] and each["schema"] for each in operation["parameters"])


async def test_every_problem_occurs_but_those_of_no_operation() -> None:
    occurring = set()
    for settings in SETTINGS:
        async with gateway(**settings) as api:
            document = await document_of(api)
        assert set(document["components"]["examples"]) == {each.slug for each in ProblemType}
        for _, _, operation in operations(document):
            for status, response in operation["responses"].items():
                content = response["content"].get("application/problem+json", {"examples": {}})
                occurring |= {(int(status), slug) for slug in content["examples"]}

    of_no_operation = {ProblemType.METHOD_NOT_ALLOWED, ProblemType.CLIENT_GONE}
    assert occurring == {(each.status, each.slug) for each in ProblemType if each not in of_no_operation}


async def test_a_token_is_asked_for_where_there_are_some() -> None:
    async with gateway(api_tokens=(TOKEN,)) as guarded, gateway() as local:
        asking, open_to_all = await document_of(guarded), await document_of(local)

    assert asking["security"] == [{"token": []}]
    assert asking["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert asking["paths"]["/health/live"]["get"]["security"] == []
    assert "401" in asking["paths"]["/api/v1/tasks"]["get"]["responses"]
    assert "401" not in asking["paths"]["/health/live"]["get"]["responses"]
    assert open_to_all["security"] == []
    assert "securitySchemes" not in open_to_all["components"]
    assert "401" not in open_to_all["paths"]["/api/v1/tasks"]["get"]["responses"]


async def test_each_call_takes_the_parameters_it_is_described_with(api: Gateway) -> None:
    for method, path, operation in operations(await document_of(api)):
        if path.startswith("/health/"):
            continue
        response = await api.client.request(method, f"{somewhere(path)}?unheard=of", json={"reason": "x"})
        assert response.json()["errors"][0]["allowed"] == names_in(operation, "query")


async def test_each_body_takes_the_fields_it_is_described_with(api: Gateway) -> None:
    document = await document_of(api)
    schemas = document["components"]["schemas"]
    for method, path, operation in operations(document):
        if "requestBody" not in operation:
            continue
        response = await api.client.request(method, somewhere(path), json={"unheard": "of"})
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
        kinds = [each["$ref"].split("/")[-1] for each in schemas[name].get("oneOf", ())]
        for each in kinds or [name]:
            assert response.json()["errors"][0]["allowed"] == list(schemas[each]["properties"])
            assert schemas[each]["additionalProperties"] is False


async def test_each_example_of_an_answer_has_the_form_it_is_described_with(api: Gateway) -> None:
    document = await document_of(api)
    for _, _, operation in operations(document):
        for response in operation["responses"].values():
            for content in response["content"].values():
                shown = content.get("examples", {"": {"value": content.get("example")}})
                for each in shown.values():
                    slug = each.get("$ref", "").split("/")[-1]
                    value = document["components"]["examples"][slug]["value"] if slug else each["value"]
                    valid(document, content["schema"], value)


@pytest.mark.parametrize("path", ["/api/v1/tasks", "/api/v1/tasks/batch"])
async def test_each_example_of_what_is_handed_over_is_accepted(api: Gateway, path: str) -> None:
    document = await document_of(api)
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        valid(document, content["schema"], example["value"])
        assert (await api.client.post(path, json=example["value"])).status_code == 201


async def test_a_batch_holds_tasks_as_they_are_handed_over_one_by_one(api: Gateway) -> None:
    document = await document_of(api)
    schema = {"$ref": "#/components/schemas/NewBatch"}

    valid(document, schema, {"tasks": [{"kind": "echo"}, {"kind": "sleep", "payload": {"seconds": 1}}]})
    with pytest.raises(ValidationError):
        valid(document, schema, {"tasks": [{"kind": "sleep", "payload": {"seconds": -1}}]})


async def test_answers_have_the_form_they_are_described_with(api: Gateway) -> None:
    document = await document_of(api)
    failed, undeliverable = await api.submit(), await api.submit()
    await api.fail(failed)
    await api.give_up(undeliverable)

    for method, path, operation in operations(document):
        if method == "GET":
            response = await api.client.get(somewhere(path).replace(ID, failed["id"]))
            content = operation["responses"][str(response.status_code)]["content"]
            assert response.status_code == 200
            valid(document, content[response.headers["content-type"]]["schema"], response.json())


class Order(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(ge=1)]


class TestKinds:
    @handler("shop.order")
    async def order(self: Order) -> None:
        """Take an order."""

    @handler("shop.list")
    async def list_orders(self: dict[str, Order]) -> None:
        """List orders."""

    async def test_the_body_of_each_kind_has_the_schema_of_its_payload(self) -> None:
        async with gateway(handlers=Handlers([self.order, self.list_orders])) as api:
            document = await document_of(api)

        schemas = document["components"]["schemas"]
        assert schemas["NewTask"]["discriminator"]["mapping"] == {
            "shop.list": "#/components/schemas/NewTask.shop.list",
            "shop.order": "#/components/schemas/NewTask.shop.order",
        }
        one = schemas["NewTask.shop.order"]
        assert one["description"] == "Take an order."
        assert one["properties"]["kind"]["const"] == "shop.order"
        assert one["properties"]["payload"]["$ref"] == "#/components/schemas/Order"
        assert schemas["Order"]["properties"]["number"] == {"type": "integer", "minimum": 1}

    async def test_a_payload_is_required_where_none_is_not_one(self) -> None:
        async with gateway(handlers=Handlers([self.order, self.list_orders])) as api:
            schemas = (await document_of(api))["components"]["schemas"]

        assert schemas["NewTask.shop.order"]["required"] == ["kind", "payload"]
        assert schemas["NewTask.shop.list"]["required"] == ["kind"]


class TestPages:
    async def test_the_page_names_only_files_of_this_gateway(self, api: Gateway) -> None:
        page = await api.client.get("/docs")
        names = re.findall(r'(?:src|href)="([^"]*)"', page.text)

        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert [name for name in names if not name.startswith(("/docs/", "/schema/"))] == ["data:,"]
        for name in names[1:]:
            assert (await api.client.get(name)).status_code == 200

    async def test_only_what_bears_its_version_in_its_name_is_kept_for_good(self, api: Gateway) -> None:
        for path in ("/docs", "/docs/docs.js", "/schema/openapi.json"):
            assert (await api.client.get(path)).headers["cache-control"] == "no-cache"
        script = await api.client.get("/docs/swagger-ui-5.35.0/swagger-ui-bundle.js")
        assert "immutable" in script.headers["cache-control"]

    @pytest.mark.parametrize("path", ["/schema", "/schema/swagger", "/docs/x", "/docs/../settings.toml"])
    async def test_nothing_else_is_there(self, api: Gateway, path: str) -> None:
        answer = await api.send(method="GET", path=path, headers=[HOST])

        assert problem(answer) == (404, "no-such-path")

    async def test_pages_of_other_sites_may_not_read_them(self, api: Gateway) -> None:
        response = await api.client.get("/docs", headers={"host": "rebound.example"})

        assert problem(response) == (421, "misdirected")
