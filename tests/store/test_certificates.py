"""Certificates in the store, on both databases."""

from __future__ import annotations

from dataclasses import replace

from cm2_agent.store import SQLStore
from cm2_agent.types.certificate import AttackRate, Certificate, PassRate
from cm2_agent.types.run import Run

FAMILY = AttackRate(
    family="master keys",
    templates=4,
    traces=300,
    hit_traces=1,
    tasks=300,
    judged_tasks=300,
    judged_hits=1,
    benign_hits=0,
    checked_hits=0,
    pending=0,
    rate=1 / 300,
    lower=0.0002,
    bound=0.0158,
    together=0.0251,
    left_out=1,
)
CERTIFICATE = Certificate(
    reward_version="support@1:\ud800\x00",
    checklist="hash",
    families=(FAMILY,),
    passing=PassRate(traces=40, tasks=40, paid=40, paid_after_edits=39, bound=0.89),
    benign=0.01,
    scope={"failing": 300, "outcomes": ["official"]},
    versions={"judge": "stub-1"},
    seed=7,
    made="2026-11-27T12:00:00+00:00",
)


def test_the_last_certificate_of_a_reward_version_counts(store_url: str) -> None:
    with SQLStore(store_url) as store:
        assert store.certificate(CERTIFICATE.reward_version) is None
        store.save_certificate(CERTIFICATE)
        newer = replace(CERTIFICATE, seed=8)
        store.save_certificate(newer)
        store.save_certificate(replace(CERTIFICATE, reward_version="another"))
        assert store.certificate(CERTIFICATE.reward_version) == newer
        assert store.reward_versions() == []  # a certificate alone is no reward that can be reported or trained on
    with SQLStore(store_url) as store:
        assert store.certificate(CERTIFICATE.reward_version) == newer


def test_projects_have_certificates_of_their_own(store_url: str) -> None:
    with SQLStore(store_url) as mine, SQLStore(store_url, project="other") as other:
        mine.save_certificate(CERTIFICATE)
        assert other.certificate(CERTIFICATE.reward_version) is None


def test_erasing_leaves_certificates(store_url: str) -> None:
    with SQLStore(store_url) as store:
        store.save_run(Run(id="r", user="ann"))
        store.save_certificate(CERTIFICATE)
        store.erase(user="ann")
        assert store.certificate(CERTIFICATE.reward_version) == CERTIFICATE


def test_an_example_is_shown_and_not_stored(store_url: str) -> None:
    shown = replace(FAMILY, example={"trace": "t-1", "template": "a", "item": "told"})
    with SQLStore(store_url) as store:
        store.save_certificate(replace(CERTIFICATE, families=(shown,)))
        found = store.certificate(CERTIFICATE.reward_version)
        assert found is not None
        assert found.families[0].example == {}
