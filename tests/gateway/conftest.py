"""A gateway over real HTTP, in front of a real gRPC server whose answers the test chooses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from animus_gateway.routes import contract_files
from gateway_harness import Stack, running


@pytest.fixture(scope="session")
async def running_stack() -> AsyncIterator[Stack]:
    """One stack for the session."""
    async with running(contract_files()) as stack:
        yield stack


@pytest.fixture
def stack(running_stack: Stack) -> Stack:
    """The stack, with nothing sent yet."""
    running_stack.upstream.reset()
    return running_stack
