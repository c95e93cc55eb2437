"""URLs of databases, as people get them wrong."""

import pytest

from animus.store.engine import driver_url


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "mysql://a:hunter2@b/c",
        "postgresql://a:b@hunter2:port/c",
        "postgresql://a:b@c:hunter2@d/e",  # a password with unescaped characters
        "postgresql:/a:hunter2@b",
        "postgresql://a:hunter2@[::1/c",
    ],
)
def test_a_url_that_is_none_is_refused_without_quoting_it(url: str) -> None:
    """Whatever is wrong with it: it holds a password."""
    with pytest.raises(ValueError, match=r"^is no ") as found:
        driver_url(url)
    assert "hunter2" not in str(found.value)
