import pytest

from pipeline.broker.topology import (
    Route,
    UnknownRoute,
    arguments,
    parse,
    prerequisites,
    retry_route,
    work_route,
)
from storage.model import Priority


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("tasks.high", Route("tasks.high", Priority.HIGH, 0)),
        ("tasks.medium", Route("tasks.medium", Priority.MEDIUM, 0)),
        ("tasks.low", Route("tasks.low", Priority.LOW, 0)),
        ("tasks.high.retry.1s", Route("tasks.high.retry.1s", Priority.HIGH, 1)),
        ("tasks.low.retry.86400s", Route("tasks.low.retry.86400s", Priority.LOW, 86_400)),
        ("tasks.dlq", Route("tasks.dlq", None, 0)),
    ],
)
def test_a_route_says_all_there_is_to_know_of_its_queue(name: str, route: Route) -> None:
    assert parse(name) == route


@pytest.mark.parametrize(
    "name",
    [
        "",
        "tasks",
        "tasks.urgent",
        "tasks.HIGH",
        "tasks.high\n",
        " tasks.high",
        "tasks.high.retry.0s",
        "tasks.high.retry.05s",
        "tasks.high.retry.30",
        "tasks.high.retry.-1s",
        "tasks.high.retry.86401s",
        "tasks.high.retry.999999s",
        "tasks.high.retry.٣s",
        "tasks.dlq.retry.1s",
        "amq.direct",
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(UnknownRoute, match=r"is no route: tasks\.<high\|medium\|low>"):
        parse(name)
    with pytest.raises(UnknownRoute):
        arguments(name)
    with pytest.raises(UnknownRoute):
        prerequisites(name)


@pytest.mark.parametrize("priority", Priority)
def test_names_are_built_as_they_are_parsed(priority: Priority) -> None:
    assert parse(work_route(priority)) == (work_route(priority), priority, 0)
    assert parse(retry_route(priority, 30)) == (retry_route(priority, 30), priority, 30)


def test_the_arguments_of_queues_in_production_are_frozen() -> None:
    assert arguments("tasks.high") == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 100,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "tasks.dlq",
    }
    assert arguments("tasks.low.retry.30s") == {
        "x-queue-type": "quorum",
        "x-message-ttl": 30_000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "tasks.low",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert arguments("tasks.dlq") == {"x-queue-type": "quorum", "x-delivery-limit": 100}


@pytest.mark.parametrize("name", ["tasks.medium", "tasks.medium.retry.5s", "tasks.dlq"])
def test_what_a_queue_dead_letters_to_is_declared_before_it(name: str) -> None:
    target = arguments(name).get("x-dead-letter-routing-key")
    before = prerequisites(name)

    assert name not in before
    assert target is None or target in before
    for index, earlier in enumerate(before):
        assert set(prerequisites(earlier)) <= set(before[:index])
