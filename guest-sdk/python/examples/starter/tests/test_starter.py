import pytest
from foldstream import NotFound
from foldstream.testing import Harness, event
from starter import Starter


def test_visits_are_counted_per_page() -> None:
    starter = Harness(Starter)
    starter.given(event("visits.home"), event("visits.about"), event("visits.home"))

    assert starter.query("visits", "home") == 2
    assert starter.get("page/about") == 1
    starter.assert_same_for_any_batching()


def test_page_that_nobody_visited_is_not_found() -> None:
    with pytest.raises(NotFound):
        Harness(Starter).query("visits", "nowhere")
