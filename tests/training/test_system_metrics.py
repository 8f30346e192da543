import time

from stages.training.system_metrics import record_system_metrics


def test_the_use_of_the_machine_is_logged_while_it_trains_and_at_the_end() -> None:
    logged: list[tuple[dict[str, float], int]] = []
    with record_system_metrics(lambda metrics, step: logged.append((metrics, step)), wanted=True, seconds=0.02):
        time.sleep(0.2)
    assert [step for _, step in logged] == list(range(len(logged)))
    assert len(logged) > 1
    assert logged[-1][0]["system/system_memory_usage_megabytes"] > 10
    assert 0 <= logged[-1][0]["system/cpu_utilization_percentage"] <= 100


def test_nothing_is_logged_where_it_is_not_wanted() -> None:
    logged: list[int] = []
    with record_system_metrics(lambda _, step: logged.append(step), wanted=False):
        pass
    assert logged == []
