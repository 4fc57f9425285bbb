"""Which metrics an expression asks for."""

import pytest

from support.prometheus import metrics_of


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("up", {"up"}),
        ('up{job="kvnode"} == 0', {"up"}),
        ("sum by (route) (rate(a_total{x=~\"$y\", z!='w'}[$__rate_interval]))", {"a_total"}),
        ("histogram_quantile(0.99, sum by (job, le) (rate(a_seconds_bucket[5m]))) > 0.1", {"a_seconds_bucket"}),
        ("a * on (job, instance) group_left (cluster) b", {"a", "b"}),
        ("sum(a) by (x) / sum without (y) (b)", {"a", "b"}),
        ('1 - a{l="} b"} / c', {"a", "c"}),
        ("2 * a + on () 1e3 * b unless c offset 5m", {"a", "b", "c"}),
        ("absent(a) or vector(1)", {"a"}),
        ('count_values("version", kvnode_node_info)', {"kvnode_node_info"}),
    ],
)
def test_metrics_of_an_expression(expression: str, names: set[str]) -> None:
    assert metrics_of(expression) == names
