"""Ready-made sinks: `Webhook` and `Threshold`. Any callable `(trace, score)` is a sink."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cm2_agent.incidents import Incidents
from cm2_agent.online.worker import Worker
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

if TYPE_CHECKING:
    import httpx

__all__ = ["Alert", "Threshold", "Webhook"]

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class Webhook:
    """A sink that POSTs each scored trace as JSON to `url`, in the background.

    The body is `{type: "cm2.trace.scored", trace, task, reward, reward_version, null_reason, runs, verdicts: [{turn,
    item, value, reason, cause}]}`: ids and verdicts, no word of the dialogue. `X-CM2-Delivery` is the same for a body
    that is sent again. A delivery that fails by a lost connection or by status 408, 425, 429, 500 or 502–504 is tried
    again, then given up and counted. Redirects are not followed: a body goes to the host that was named, or nowhere. Of
    the URL only the host is ever logged, and the secret never.

    Args:
        url: http or https.
        secret: signs the body in the header `X-CM2-Signature: t=SECONDS,v1=HEX`, the HMAC SHA-256 of `SECONDS.BODY`
            (`signature`). None: the header is left out.
        timeout: seconds for one try.
        size: how many deliveries may wait; further ones are dropped and counted.
        pauses: seconds before each further try; their number is that of the further tries.
        proxy: a proxy's URL; none is taken from the environment.

    Raises:
        ValueError: a URL that is not http or https.

    >>> from cm2_agent import Webhook
    >>> webhook = Webhook("https://example.com/hooks/cm2?token=hidden", secret="a shared secret")
    >>> webhook  # watch(graph, checklist, sinks=[webhook])
    Webhook(host='example.com')
    """

    def __init__(
        self,
        url: str,
        secret: str | bytes | None = None,
        *,
        timeout: float = 10.0,
        size: int = 1000,
        pauses: Sequence[float] = (0.5, 2.0, 8.0),
        proxy: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"a webhook's URL has the scheme {parts.scheme or 'none'}; expected http://HOST/… or https://HOST/…"
            )
        self.host = parts.hostname
        self.incidents = Incidents()
        self._url = url
        self._secret = secret.encode() if isinstance(secret, str) else secret
        self._timeout, self._size, self._pauses, self._proxy = timeout, size, tuple(pauses), proxy
        self._worker: Worker[bytes] | None = None
        self._transport: httpx.AsyncHTTPTransport | None = None

    def __repr__(self) -> str:
        return f"Webhook(host={self.host!r})"

    def __call__(self, trace: Trace, score: Score | None) -> None:
        """Queue the delivery and return at once; a trace without a score sends nothing."""
        if score is None:
            return
        if self._worker is None:
            self._worker = Worker(self._deliver, size=self._size, incidents=self.incidents, forget=self._forget)
        self._worker.submit(canonical_json(_body(trace, score)).encode("utf-8", "replace"))

    def report_to(self, incidents: Incidents) -> None:
        """Count failures in these incidents; `watch` calls it, before the first delivery."""
        if self._worker is None:
            self.incidents = incidents

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything queued is delivered or given up; False if that took longer than `timeout` seconds."""
        return True if self._worker is None else self._worker.flush(timeout)

    def _forget(self) -> None:
        self._transport = None

    async def _deliver(self, body: bytes) -> None:
        last = "no answer"
        for pause in (*self._pauses, None):
            try:
                status = await self._post(body)
            except Exception as error:
                last = type(error).__name__
            else:
                if 200 <= status < 300:
                    return
                last = f"status {status}"
                if status not in _RETRIED:
                    hint = "; redirects are not followed: give the final URL" if 300 <= status < 400 else ""
                    self.incidents.add(f"a webhook was not delivered to {self.host}: {last}{hint}")
                    return
            if pause is None:
                break
            await asyncio.sleep(pause)
        self.incidents.add(f"a webhook was not delivered to {self.host} in {len(self._pauses) + 1} tries: {last}")

    async def _post(self, body: bytes) -> int:
        # The bare transport: httpx's client logs every URL, with whatever token stands in it, and may follow redirects.
        import httpx

        if self._transport is None:
            self._transport = httpx.AsyncHTTPTransport(proxy=self._proxy)
        headers = {"content-type": "application/json", "x-cm2-delivery": hashlib.sha256(body).hexdigest()[:32]}
        if self._secret is not None:
            headers["x-cm2-signature"] = signature(self._secret, body, int(time.time()))
        timeouts = httpx.Timeout(self._timeout).as_dict()
        request = httpx.Request("POST", self._url, content=body, headers=headers, extensions={"timeout": timeouts})
        async with asyncio.timeout(self._timeout):
            response = await self._transport.handle_async_request(request)
            await response.aclose()  # the status is enough; the body is not read
            return response.status_code


def signature(secret: bytes, body: bytes, seconds: int) -> str:
    """The value of `X-CM2-Signature`: a receiver computes it with its own copy of the secret, compares, and refuses old
    seconds.

    >>> signature(b"secret", b"{}", 1)[:10]
    't=1,v1=112'
    """
    return f"t={seconds},v1={hmac.new(secret, f'{seconds}.'.encode() + body, hashlib.sha256).hexdigest()}"


@dataclass(frozen=True, kw_only=True)
class Alert:
    """The mean `value` of the last `n` traces, which fell under `below` with the trace `trace_id`. `item` is the item
    whose verdicts were averaged, None for the reward."""

    value: float
    below: float
    n: int
    item: str | None
    trace_id: str
    reward_version: str


class Threshold:
    """A sink that calls `alert(Alert)` when a mean falls under `below`.

    It alerts once when the mean falls, and again only after it rose to `below` or more. What the policy kept from
    being judged is unpaid; what else is missing is left out. A trace that is scored again counts with its last
    score; another reward version begins anew, since numbers of two versions are not comparable. Nothing is alerted
    before `window` traces were seen.

    Args:
        alert: called with an `Alert`; an awaitable that it returns is awaited.
        below: 0…1.
        item: average the share of this item's verdicts that are satisfied. None: average `Score.lower`, or the reward
            where the score is pending.
        window: the number of last traces that are averaged, 1 or more.

    Raises:
        ValueError: `below` or `window` out of range.

    >>> from cm2_agent import Score, Threshold, Trace
    >>> alerts = []
    >>> threshold = Threshold(alerts.append, below=0.5)
    >>> for number, reward in enumerate([1.0, 0.2, 0.1]):
    ...     trace, version = Trace(id=f"t{number}", runs=()), "support@1"
    ...     threshold(trace, Score(trace_id=trace.id, reward_version=version, reward=reward, runs=1))
    >>> [(alert.trace_id, alert.value) for alert in alerts]
    [('t1', 0.2)]
    """

    def __init__(
        self, alert: Callable[[Alert], Any], *, below: float = 0.5, item: str | None = None, window: int = 1
    ) -> None:
        if not 0 <= below <= 1:
            raise ValueError(f"below is {below}; expected a number between 0 and 1")
        if window < 1:
            raise ValueError(f"window is {window}; expected a number of traces, 1 or more")
        self._alert, self._below, self._item, self._window = alert, below, item, window
        self._values: OrderedDict[str, float] = OrderedDict()
        self._version: str | None = None
        self._low = False

    def __call__(self, trace: Trace, score: Score | None) -> Any:
        value = None if score is None else self._value(score)
        if score is None or value is None:
            return None
        if score.reward_version != self._version:
            self._version, self._low = score.reward_version, False
            self._values.clear()
        self._values.pop(trace.id, None)
        self._values[trace.id] = value
        while len(self._values) > self._window:
            self._values.popitem(last=False)
        if len(self._values) < self._window:
            return None
        mean = sum(self._values.values()) / len(self._values)
        was, self._low = self._low, mean < self._below
        if was or not self._low:
            return None
        return self._alert(
            Alert(
                value=mean,
                below=self._below,
                n=len(self._values),
                item=self._item,
                trace_id=trace.id,
                reward_version=score.reward_version,
            )
        )

    def _value(self, score: Score) -> float | None:
        if self._item is None:
            return score.reward if score.lower is None else score.lower
        values = [
            bool(verdict.value)
            for verdict in score.verdicts
            if verdict.item == self._item and (verdict.value is not None or verdict.cause == "content")
        ]
        return sum(values) / len(values) if values else None


def _body(trace: Trace, score: Score) -> dict[str, JSON]:
    verdicts = [
        {
            "turn": turn.turn,
            "item": verdict.item,
            "value": verdict.value,
            "reason": verdict.reason,
            "cause": verdict.cause,
        }
        for turn in score.turns
        for verdict in turn.verdicts
    ]
    return {
        "type": "cm2.trace.scored",
        "trace": trace.id,
        "task": trace.task_id,
        "reward": score.reward,
        "lower": score.lower,
        "upper": score.upper,
        "reward_version": score.reward_version,
        "null_reason": score.null_reason,
        "runs": score.runs,
        "verdicts": verdicts,
    }
