"""What wrk tells, and what makes a round of it worthless. The load itself is wrk's, on a server that is not there."""

import shutil

import pytest
from bench.dialects import ETCD, KVNODE, WEBDIS, Dialect, puts, value_of
from bench.load import PERCENTILES, http_request, measure, parse

ERRORS = {"connect": 0, "read": 0, "write": 0, "status": 0, "timeout": 0}

OUTPUT = """Running 2s test @ http://127.0.0.1:1
  1 threads and 64 connections
    Latency     3.00ms    1.00ms  20.00ms   90.00%%
Requests/sec:  99999.00

wrk-result {"requests":5000,"duration_us":2000000,"percentiles_us":{"50":3000.0,"99":9500.0,"99.5":9900.0},\
"counts":{"refused":7},"errors":{"connect":0,"read":0,"write":0,"status":%d,"timeout":0}}
"""


class TestParse:
    def test_a_round_without_errors(self) -> None:
        load = parse(OUTPUT % 0)
        assert (load.answers, load.rate, load.p50_ms, load.p99_ms) == (5000, 2500.0, 3.0, 9.5)
        assert load.percentiles_ms[99.5] == 9.9
        assert load.counts == {"refused": 7}
        assert load.objection is None

    def test_answers_that_are_not_2xx_make_it_worthless(self) -> None:
        assert parse(OUTPUT % 3).objection == "errors: 3 status"

    @pytest.mark.parametrize("output", ["", "Requests/sec: 100.00\n", OUTPUT % 0 + OUTPUT % 0])
    def test_no_result_is_an_error_and_not_a_figure(self, output: str) -> None:
        with pytest.raises(ValueError, match="did not say"):
            parse(output)

    def test_nothing_answered_is_not_a_rate_of_zero(self) -> None:
        nothing = (OUTPUT % 0).replace('"requests":5000', '"requests":0')
        assert parse(nothing).objection == "nothing was answered"


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_says_it_when_nobody_listens() -> None:
    load = measure("http://127.0.0.1:1", seconds=1, connections=2)
    assert load.objection == "nothing was answered"
    assert set(load.percentiles_ms) == set(PERCENTILES)


def test_a_request_on_the_wire() -> None:
    assert http_request("GET", "/a") == b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"
    put = http_request("POST", "/a", b"{}")
    assert put.endswith(b"Content-Length: 2\r\n\r\n{}")


@pytest.mark.parametrize("dialect", [KVNODE, ETCD, WEBDIS])
def test_all_servers_are_asked_for_the_same_puts(dialect: Dialect) -> None:
    ours, theirs = puts(KVNODE, 100, seed=1, size=50), puts(dialect, 100, seed=1, size=50)
    # A key and a value can be told from the request in every dialect: as many differ.
    assert len(set(ours)) == len(set(theirs)) > 25
    assert theirs == puts(dialect, 100, seed=1, size=50) != puts(dialect, 100, seed=2, size=50)


def test_values_have_20_to_100_bytes_with_their_quotes() -> None:
    sizes = {len(value_of(number)) + 2 for number in range(20_000)}
    assert (min(sizes), max(sizes)) == (20, 100)
    assert {len(value_of(number, 100)) + 2 for number in range(20_000)} == {100}
