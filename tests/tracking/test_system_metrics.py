import time
from collections.abc import Mapping

from stages.tracking.system_metrics import record_system_metrics


def test_the_use_of_the_machine_is_logged_while_it_trains_and_at_the_end() -> None:
    logged: list[Mapping[str, float]] = []
    with record_system_metrics(logged.append, wanted=True, seconds=0.02):
        while len(logged) < 2:
            time.sleep(0.01)
    assert all(name.startswith("system/") for name in logged[-1])
    assert logged[-1]["system/system_memory_usage_megabytes"] > 10
    assert 0 <= logged[-1]["system/cpu_utilization_percentage"] <= 100
    assert "system/disk_usage_percentage" in logged[-1]
    assert any("network_receive" in name for name in logged[-1])


def test_a_training_shorter_than_the_interval_has_a_point() -> None:
    logged: list[Mapping[str, float]] = []
    with record_system_metrics(logged.append, wanted=True, seconds=60):
        assert sum(range(10**6)) > 0
    assert len(logged) == 1
    assert logged[0]["system/cpu_utilization_percentage"] > 0  # counted since the start, not since the machine's


def test_nothing_is_logged_where_it_is_not_wanted() -> None:
    logged: list[Mapping[str, float]] = []
    with record_system_metrics(logged.append, wanted=False):
        pass
    assert logged == []
