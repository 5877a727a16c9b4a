"""What the collector survives: kill -9 at random points under load, broken requests, a full disk, a locked database,
and sixteen clients at once.

    python -m tests.bench.bench_collector [KILLS] [REQUESTS] [SECONDS]      # 50, 10,000 and 30; one JSON line

`lost` and `twice` count acknowledged spans that no run holds, or several; `failures` are answers of 500 and above.
SECONDS is how long another process holds the database's lock; `rss_mb` is the server's memory before, and at most.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter

from cm2_agent.server.settings import Settings
from cm2_agent.store import SQLStore
from tests.bench.collector_trouble import at_once, full_disk, locked
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
    kills, requests, seconds = (int(one) for one in (*sys.argv[1:], *("50", "10000", "30")[len(sys.argv) - 1 :]))
    parts = {
        "killed": killed(kills),
        "broken": broken(requests),
        "full_disk": full_disk(),
        "locked": locked(seconds),
        "at_once": at_once(),
    }
    print(json.dumps(parts))


if __name__ == "__main__":
    main()
