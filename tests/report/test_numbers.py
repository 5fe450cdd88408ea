"""Numbers as a person reads them."""

import pytest

from pipeline.report.numbers import percent, plain, spread


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (1234567, "1,234,567"),
        (0.9953, "0.9953"),
        (-0.9953, "-0.9953"),
        (3.14159, "3.142"),
        (31.4159, "31.42"),
        (314.159, "314.2"),
        (3141.59, "3,142"),
        (31415.9, "31,416"),
        (1.5e7, "1.500e+07"),
        (1.234567e-5, "1.235e-05"),
    ],
)
def test_four_digits(value, shown):
    assert plain(value) == shown


@pytest.mark.parametrize(("value", "digits", "shown"), [(31.96, 3, "32.0"), (0.25, 2, "0.25"), (123.4, 2, "123"), (2e-9, 2, "2.0e-09")])
def test_as_many_digits_as_are_asked_for(value, digits, shown):
    assert plain(value, digits) == shown


@pytest.mark.parametrize("value", [0.0123456, 0.00123456, 0.000123456, -0.00123456])
def test_a_small_number_keeps_its_digits(value):
    """Or an MSE of 0.000123 reads 0.0001."""
    assert float(plain(value)) == pytest.approx(value, rel=1e-3)


def test_shares_are_per_cent():
    assert [percent(share) for share in (0.031, 0.0, 1.0, None)] == ["3.1 %", "0.0 %", "100.0 %", "–"]
    assert [percent(share) for share in (0.00042, 1 / 131072)] == ["0.042 %", "0.00076 %"], "what fires is not shown as never firing"


def test_one_value_stands_alone_and_several_have_a_range():
    assert spread([0.5]) == "0.5000"
    assert spread([0.5, None]) == "0.5000"
    assert spread([0.25, 0.75, 0.5]) == "0.5000 (0.2500 – 0.7500)"
    assert spread([0.1, 0.3], percent) == "20.0 % (10.0 % – 30.0 %)"
    assert spread([None, None]) == spread([]) == "–"
