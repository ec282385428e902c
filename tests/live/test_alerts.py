"""The alert rules by Prometheus's own tool: ``PROMTOOL=promtool make live`` (of Debian's package prometheus)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support import LIVE, ROOT

ALERTS = ROOT / "compose" / "monitoring" / "alerts.yml"
PROMTOOL = LIVE.get("PROMTOOL", "")

pytestmark = [pytest.mark.live, pytest.mark.skipif(not PROMTOOL, reason="PROMTOOL names no promtool")]


def promtool(*words: object) -> None:
    ran = subprocess.run([PROMTOOL, *map(str, words)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_files_are_understood() -> None:
    promtool("check", "rules", ALERTS)
    promtool("check", "config", ROOT / "compose" / "monitoring" / "prometheus.yml")


def test_each_alert_fires_for_what_it_is_meant_for(tmp_path: Path) -> None:
    cases = (Path(__file__).parent / "alerts_test.yml").read_text(encoding="utf-8")
    (tmp_path / "alerts_test.yml").write_text(cases.replace("[ALERTS]", f"[{ALERTS}]"), encoding="utf-8")
    promtool("test", "rules", tmp_path / "alerts_test.yml")
