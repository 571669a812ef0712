"""LlamaIndex LLMs that see images, as teachers: a prompt and pages in, the words of the answer and its tokens out.

Any LLM does whose `achat` takes images; build it with ``max_retries=0``, the teacher retries by itself::

    async with openai_compatible_llm("gpt-5-mini") as llm:
        teacher = Teacher(LLMTeacher(llm), retry_rule=seconds_before_retry)
        ranking = await teacher.rank("How is a polar grid drawn?", images)
"""

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from json import JSONDecodeError

import httpx
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.callbacks.token_counting import get_tokens_from_response
from llama_index.core.llms import LLM
from PIL import Image

from llama_index_ziprerank.pages.images import encode_png

_GARBAGE = (JSONDecodeError, UnicodeDecodeError, ValidationError)
_BUSY = (408, 409, 429)  # request time-out, lock time-out, rate limit; from 500 on the server is at fault


@dataclass(frozen=True)
class LLMAnswer:
    """What the LLM said, and the tokens it took; None where it does not count them."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class MalformedResponseError(RuntimeError):
    """What came over the wire is no answer of an LLM."""


class LLMTeacher:
    """Calls `achat` of an LLM with one user message: the prompt, then the images as PNG."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    async def __call__(self, prompt: str, images: Sequence[Image.Image]) -> LLMAnswer:
        """Ask once. Raises MalformedResponseError for garbage, and whatever the LLM raises."""
        pictures = await asyncio.to_thread(lambda: [ImageBlock(image=encode_png(image)) for image in images])
        message = ChatMessage(role="user", blocks=[TextBlock(text=prompt), *pictures])
        try:
            response = await self._llm.achat([message])
        except (AttributeError, IndexError, KeyError, TypeError, *_GARBAGE) as error:
            raise MalformedResponseError(
                f"what {self._llm.metadata.model_name} answered cannot be read ({type(error).__name__}: {error}); "
                "is the address that of an API?"
            ) from error
        used = get_tokens_from_response(response)
        prompt_tokens, completion_tokens = used if any(used) else (None, None)
        return LLMAnswer(response.message.content or "", prompt_tokens, completion_tokens)


def seconds_before_retry(error: BaseException) -> float | None:
    """Return how long to wait at least before asking an LLM again; None for an error that no second try mends.

    The packages behind LlamaIndex's LLMs share no class of errors, but what they raise for an HTTP status carries a
    `status_code` and mostly the `response`; what they raise for a broken line is, or comes from, one of httpx.
    """
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return _retry_after(error) if status in _BUSY or status >= 500 else None
    temporary = (ConnectionError, TimeoutError, httpx.TransportError, httpx.DecodingError, MalformedResponseError)
    return 0.0 if isinstance(error, temporary) or isinstance(error.__cause__, temporary) else None


@asynccontextmanager
async def openai_compatible_llm(
    model: str, *, api_base: str | None = None, api_key: str | None = None, timeout: float = 300.0
) -> AsyncIterator[LLM]:
    """Open an LLM of OpenAI, or of any server that speaks its chat protocol; it does not retry.

    Args:
        api_base: the server's address up to and with ``/v1``; OPENAI_API_BASE, else OpenAI, when None.
        api_key: OPENAI_API_KEY when None. A server of one's own may need none.
        timeout: seconds that one request may take.

    Raises:
        ImportError: llama-index-llms-openai-like is not installed.
        ValueError: no key for OpenAI.
    """
    try:
        from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}. Install it with: pip install 'llama-index-ziprerank[training]'") from error
    key = api_key or os.environ.get("OPENAI_API_KEY")
    if not key and not (api_base or os.environ.get("OPENAI_API_BASE")):
        raise ValueError("OpenAI wants a key. Set OPENAI_API_KEY, or name another server that speaks its protocol.")
    async with httpx.AsyncClient(follow_redirects=True, auth=_Key(key) if key else None) as client:
        yield OpenAILike(
            model=model,
            api_base=api_base,
            api_key="none",  # the client adds it: a field would stand in repr, to_dict and traces
            is_chat_model=True,
            timeout=timeout,
            max_retries=0,
            async_http_client=client,
        )


class _Key(httpx.Auth):
    """Adds the key to requests; a redirect to another host does not get it."""

    def __init__(self, key: str) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._key}"
        yield request


def _retry_after(error: BaseException) -> float:
    """Read the header Retry-After, seconds or a date (RFC 9110, section 10.2.3); 0 without one."""
    value = getattr(getattr(error, "response", None), "headers", {}).get("retry-after", "0")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
