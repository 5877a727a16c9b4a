"""What the collector survives: kill -9 at random points under load, and broken requests.

    python -m tests.bench.bench_collector [KILLS] [REQUESTS]      # 50 and 10,000; one JSON line

`lost` and `twice` count acknowledged spans that no run holds, or several; `failures` are answers of 500 and above.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter

from cm2_agent.server.settings import Settings
from cm2_agent.store import SQLStore
from tests.server.crashing import Load, Process, stored_spans
from tests.server.fuzzed import fuzzed
from tests.server.running import collecting


def killed(kills: int) -> dict[str, int]:
    draw = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/cm2.db"
        load = Load(12 * kills, seed=7, clients=6)
        for _ in range(kills):
            process = Process(url, "--quiet", "0.2")
            load.send(process.address, stop_after=draw.randint(1, 25), on_stop=process.kill)
            process.kill()
        process = Process(url, "--quiet", "0.2")
        load.send(process.address)
        code = process.stop()
        with SQLStore(url) as store:
            found = stored_spans(store)
    sent = {(one["trace"], one["span"]) for piece in load.acknowledged for one in piece}
    return {
        "kills": kills,
        "acknowledged": len(sent),
        "lost": len([one for one in sent if not found[one]]),
        "twice": len([one for one in sent if found[one] > 1]),
        "others": len(set(found) - sent),
        "exit": code,
    }


def broken(requests: int) -> dict[str, object]:
    draw = random.Random(11)
    statuses: Counter[int] = Counter()
    limits = Settings(quiet=0.0, most_body=1 << 20, most_unpacked=2 << 20)
    with (
        tempfile.TemporaryDirectory() as folder,
        SQLStore(f"sqlite:///{folder}/cm2.db") as store,
        collecting(store, limits) as running,
    ):
        for _ in range(requests):
            body, headers = fuzzed(draw)
            statuses[running.client.post("/v1/traces", content=body, headers=headers).status_code] += 1
        running.flush()
        alive = running.client.get("/healthz").status_code
    failures = sum(count for status, count in statuses.items() if status >= 500)
    return {"requests": requests, "statuses": dict(sorted(statuses.items())), "failures": failures, "healthz": alive}


def main() -> None:
    kills, requests = (int(one) for one in (*sys.argv[1:], *("50", "10000")[len(sys.argv) - 1 :]))
    print(json.dumps({"killed": killed(kills), "broken": broken(requests)}))


if __name__ == "__main__":
    main()
