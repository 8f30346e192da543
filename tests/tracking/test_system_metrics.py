import time
from collections.abc import Mapping

from stages.tracking.system_metrics import record_system_metrics


def test_the_use_of_the_machine_is_logged_while_it_trains_and_at_the_end() -> None:
    logged: list[Mapping[str, float]] = []
    with record_system_metrics(logged.append, wanted=True, seconds=0.02):
        time.sleep(0.2)
    assert len(logged) > 1
    assert logged[-1]["system/system_memory_usage_megabytes"] > 10
    assert 0 <= logged[-1]["system/cpu_utilization_percentage"] <= 100


def test_nothing_is_logged_where_it_is_not_wanted() -> None:
    logged: list[Mapping[str, float]] = []
    with record_system_metrics(logged.append, wanted=False):
        pass
    assert logged == []
